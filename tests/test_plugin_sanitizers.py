"""The kernels' C++ test, as it is and under the sanitizers, for every instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from plugin_cases import ISAS

from stn_infer import plugin

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"


needs_compiler = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or C++ compiler"
)


def run_for_every_isa(program: Path) -> None:
    for isa in ISAS:
        environment = os.environ | {"STN_CPU_ISA": isa}
        done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " 0 failed" in done.stdout


@needs_compiler
@pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built: stn-infer plugin build")
def test_every_combination_of_the_kernels(tmp_path: Path) -> None:
    library, program = plugin.library_path(), tmp_path / "kernels_test"
    flags = ["-std=c++17", "-O1", f"-I{PLUGINS / 'include'}", f"-Wl,-rpath,{library.parent}", "-pthread"]
    source = PLUGINS / "tests" / "kernels_test.cpp"
    subprocess.run(["c++", *flags, str(source), str(library), "-o", str(program)], check=True)
    run_for_every_isa(program)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_kernels_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    # Not optimised: with sanitizers the optimiser takes many minutes for the SIMD kernels.
    flags = ["-DSTN_CUDA=OFF", "-DSTN_TESTS=ON", f"-DSTN_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=Debug"]
    subprocess.run(["cmake", "-S", str(PLUGINS), "-B", str(tmp_path), *flags], check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--parallel", "--target", "kernels_test"]
    subprocess.run(build, check=True, capture_output=True)
    run_for_every_isa(next(tmp_path.rglob("kernels_test")))
