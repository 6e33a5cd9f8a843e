"""The kernels' C++ test, with and without sanitizers, for every instruction set and on a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from stn_infer import plugin
from tests.support.plugin_cases import ISAS
from tests.support.sanitized import PLUGINS, build, needs_compiler, run, run_hosts

MEMORY = "address,undefined,float-cast-overflow"


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
    build(tmp_path, f"-DSTN_SANITIZE={MEMORY}", "-DSTN_SIMD=OFF")
    assert run(tmp_path / "tests" / "kernels_test", "--every", "5").startswith("plain")
    assert "cuda: " in run(tmp_path / "tests" / "kernels_test", "--cuda-on-cpu", "--every", "13")
    run_hosts(tmp_path)


@needs_compiler
@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    build(tmp_path, f"-DSTN_SANITIZE={MEMORY}")
    for isa in ISAS:
        run(tmp_path / "tests" / "kernels_test", isa=isa)
    run(tmp_path / "tests" / "kernels_test", "--cuda-on-cpu")
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
