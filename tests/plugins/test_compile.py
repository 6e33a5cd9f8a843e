"""The CUDA sources compile without a warning, for every architecture in the slow run, and each GPU has code or PTX."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.tensorrt_parts import missing

PLUGINS = ROOT / "plugins"
CUDA_13 = "75;80;86;87;88;89;90;100;110;103;120;121"
EVERY = "75-real;80-real;86-real;87-real;89-real;90;100-real;120"
LIMIT = 1200  # seconds; every architecture takes two minutes of an idle core


def compile_for(output: Path, *targets: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        missing("no nvcc")
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


def architectures(requested: str, native: str = "", known: str = CUDA_13) -> str:
    """What CMake compiles for, or its sentence."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    given = [f"-DREQUESTED={requested}", f"-DNATIVE={native}", f"-DKNOWN={known}"]
    command = [cmake, *given, "-P", str(PLUGINS / "cuda_architectures.cmake")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.strip()


@pytest.mark.parametrize(
    ("requested", "native", "known", "expected"),
    [
        ("all", "", CUDA_13, EVERY),
        ("all", "89-real", "", EVERY),
        ("native", "", CUDA_13, EVERY),  # nvcc without a GPU
        ("all", "", "50;75;80;86;87;89;90;90a", "75-real;80-real;86-real;87-real;89-real;90"),  # CUDA 12.4
        ("all", "", "100;75;80", "75-real;80-real;100"),  # the newest one has PTX, whichever it is
        ("native", "90-real", CUDA_13, "90"),
        ("native", "90-real;80-real;90-real", CUDA_13, "90;80"),
        ("native", "87-real", CUDA_13, "87"),  # Orin
        ("native", "110-real", CUDA_13, "110"),  # Thor
        ("87;110", "", CUDA_13, "87;110"),
        ("native", "130-real", CUDA_13, "121-virtual"),  # newer than nvcc: the driver compiles PTX
        ("80;90-real;90a", "", CUDA_13, "80;90-real;90a"),
    ],
)
def test_what_is_compiled_for(requested: str, native: str, known: str, expected: str) -> None:
    assert architectures(requested, native, known) == expected


@pytest.mark.parametrize(
    ("requested", "native", "which"),
    [
        ("90;70", "", "sm70"),
        ("native", "70-real", "sm70 (of this machine)"),
        ("110", "", "sm110"),
        ("native", "87-real", "sm87 (of this machine)"),
    ],
)
def test_what_nvcc_does_not_know_is_a_sentence(requested: str, native: str, which: str) -> None:
    assert architectures(requested, native, "90;75;100") == f"nvcc compiles for sm75, sm90, sm100, not for {which}"


def images(cuobjdump: str, file: Path, kind: str) -> set[str]:
    """The architectures of a file's code (``elf``) or PTX (``ptx``)."""
    command = [cuobjdump, f"--list-{kind}", str(file)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\bsm_(\d+)", listed))


@pytest.mark.slow
def test_cuda_compiles_for_every_architecture(tmp_path: Path) -> None:
    """What is compiled for all contains code for each GPU, and PTX for newer ones."""
    output, targets = tmp_path / "warp.o", []
    for name in architectures("all").split(";"):
        number = name.removesuffix("-real")
        ptx = "" if name.endswith("-real") else f",compute_{number}"
        targets.append(f"-gencode=arch=compute_{number},code=[sm_{number}{ptx}]")
    compile_for(output, "-O1", "--threads=0", *targets)
    packages = (str(path) for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/cuobjdump"))
    tool = shutil.which("cuobjdump") or next(packages, None)
    if tool is None:
        missing("no cuobjdump: pip install nvidia-cuda-cuobjdump")
    assert images(tool, output, "elf") == {"75", "80", "86", "87", "89", "90", "100", "120"}
    assert images(tool, output, "ptx") == {"90", "120"}


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or C++ compiler")
@pytest.mark.parametrize("version", ["1.2.3", "1.2.4.dev0", "2.0.0rc1"])
def test_the_library_has_the_whole_version_of_the_package(version: str, tmp_path: Path) -> None:
    """CMake's own versions are numbers only."""
    shutil.copytree(PLUGINS, tmp_path / "plugins")
    (tmp_path / "stn_infer").mkdir()
    (tmp_path / "stn_infer" / "version.py").write_text(f'"""A module."""\n\n__version__ = "{version}"\n')
    configure = ["cmake", "-S", str(tmp_path / "plugins"), "-B", str(tmp_path / "build"), "-DSTN_CUDA=OFF"]
    said = subprocess.run(configure, capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    assert f"-- stn_plugins {version}: CUDA OFF" in said
    commands = (tmp_path / "build" / "compile_commands.json").read_text(encoding="utf-8").replace("\\", "")
    assert f'-DSTN_VERSION="{version}"' in commands
