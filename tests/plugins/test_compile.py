"""The CUDA sources compile without a warning: to PTX here, for every architecture in the slow run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PLUGINS = ROOT / "plugins"
EVERY = (75, 80, 86, 89, 90, 100, 120)
LIMIT = 1200  # seconds; every architecture takes two minutes of an idle core


def compile_for(output: Path, *targets: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        if os.environ.get("STN_REQUIRE_PARTS"):
            pytest.fail("nvcc is missing, and STN_REQUIRE_PARTS asks for it")
        pytest.skip("no nvcc")
    options = ["-std=c++17", "-Werror=all-warnings", "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror", "-DSTN_WITH_CUDA"]
    folders = [f"-I{PLUGINS / name}" for name in ("include", "src", ".")]
    source = PLUGINS / "src" / "kernels" / "cuda_warp.cu"
    command = [nvcc, *options, *targets, *folders, "-c", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 0


def test_cuda_compiles_without_optimization(tmp_path: Path) -> None:
    """To PTX, which takes three seconds instead of fifteen."""
    compile_for(tmp_path / "warp.o", "-O0", "-Xcicc=-O0", "-gencode=arch=compute_90,code=compute_90")


@pytest.mark.slow
def test_cuda_compiles_for_every_architecture(tmp_path: Path) -> None:
    compile_for(tmp_path / "warp.o", "-O1", *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in EVERY))
