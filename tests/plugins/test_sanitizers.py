"""The kernels' C++ test, with and without sanitizers, for every instruction set and on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stn_infer import plugin
from tests.support.paths import ROOT
from tests.support.plugin_cases import ISAS

PLUGINS = ROOT / "plugins"
LIMIT = 1200  # seconds for a program or a build; each takes less than three minutes of an idle core


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
    library = folder / "libstn_plugins.so"
    run(folder / "tensorrt_host", library)
    for where in ((), ("--cuda-on-cpu",)):
        run(folder / "tests" / "onnxruntime_host", library, *where)


def kernels_test(folder: Path) -> Path:
    """The test program for the library in use; one that was built with the library needs no compiler."""
    library, program = plugin.library_path(), folder / "kernels_test"
    if shutil.which("c++") is None:
        program = library.parent / "tests" / "kernels_test"
        if not program.is_file():
            pytest.skip(f"no C++ compiler, and no {program} (built with -DSTN_TESTS=ON)")
        return program
    flags = ["-std=c++17", "-O1", f"-I{PLUGINS / 'include'}", f"-Wl,-rpath,{library.parent}", "-pthread"]
    source = PLUGINS / "tests" / "kernels_test.cpp"
    subprocess.run(["c++", *flags, str(source), str(library), "-ldl", "-o", str(program)], check=True)
    return program


@pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built: stn-infer plugin build")
def test_every_combination_of_the_kernels(tmp_path: Path) -> None:
    program = kernels_test(tmp_path)
    for isa in ISAS:
        run(program, isa=isa)


@needs_compiler
@pytest.mark.slow
def test_plain_kernels_and_plugins_under_sanitizers(tmp_path: Path) -> None:
    """A subset of the combinations without SIMD; the test below runs all of them with SIMD."""
    build(tmp_path, "-DSTN_SANITIZE=address,undefined,float-cast-overflow", "-DSTN_SIMD=OFF")
    assert run(tmp_path / "tests" / "kernels_test", "--every", "5").startswith("plain")
    assert "cuda: " in run(tmp_path / "tests" / "kernels_test", "--cuda-on-cpu", "--every", "13")
    run_hosts(tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_kernels_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    build(tmp_path, f"-DSTN_SANITIZE={sanitizers}")
    for isa in ISAS:
        run(tmp_path / "tests" / "kernels_test", isa=isa)
    # the CUDA kernels' threads run one after the other here: the thread sanitizer is slow and finds little
    part = ("--every", "11") if sanitizers == "thread" else ()
    run(tmp_path / "tests" / "kernels_test", "--cuda-on-cpu", *part)
    run_hosts(tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_cuda_kernels_under_compute_sanitizer(tool: str, tmp_path: Path) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer: it comes with the CUDA toolkit")
    if not plugin.available() or not plugin.load().stn_has_cuda():
        pytest.skip("the plugin library has no CUDA kernels: stn-infer plugin build")
    program = kernels_test(tmp_path)
    plain = subprocess.run([str(program), "--cuda", "--every", "997"], capture_output=True, text=True, check=False)
    if plain.returncode == 2:
        pytest.skip(f"no usable GPU: {plain.stderr.strip()}")
    # devices that do not exist are refused on purpose, by calls of CUDA that fail
    quiet = ("--report-api-errors", "no") if tool == "memcheck" else ()
    command = [sanitizer, "--tool", tool, *quiet, "--error-exitcode", "9", str(program), "--cuda", "--every", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this GPU, or the sandbox that it is in")
    assert done.returncode == 0, output
    assert "cuda: " in output and " 0 failed" in output
    assert "ERROR SUMMARY: 0 errors" in output or "(0 errors, 0 warnings)" in output
