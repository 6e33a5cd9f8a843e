"""The kernels' C++ test and the plugins' hosts, built without optimization and with sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PLUGINS = ROOT / "plugins"
LIMIT = 1200  # seconds for a program or a build, which take minutes

needs_compiler = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or C++ compiler"
)


def run(*command: str | Path, isa: str = "") -> str:
    """Returns a program's output; asserts that it succeeds and reports no failures."""
    environment = os.environ | ({"STN_CPU_ISA": isa} if isa else {})
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    return done.stdout


def build(folder: Path, *options: str) -> None:
    """The library and its C++ tests without optimization: with sanitizers the optimizer takes many minutes.

    The CUDA kernels are compiled for the CPU.
    """
    flags = ["-DSTN_CUDA=CPU", "-DSTN_TESTS=ON", "-DCMAKE_BUILD_TYPE=Debug", *options]
    subprocess.run(
        ["cmake", "-S", str(PLUGINS), "-B", str(folder), *flags], check=True, capture_output=True, timeout=LIMIT
    )
    targets = ["--target", "kernels_test", "tensorrt_host", "onnxruntime_host"]
    subprocess.run(
        ["cmake", "--build", str(folder), "--parallel", *targets], check=True, capture_output=True, timeout=LIMIT
    )


def run_hosts(folder: Path) -> None:
    """The programs that take the place of TensorRT and onnxruntime around the plugins."""
    library = folder / "libstn_plugins.so"
    run(folder / "tensorrt_host", library)
    for where in ((), ("--cuda-on-cpu",)):
        run(folder / "tests" / "onnxruntime_host", library, *where)
