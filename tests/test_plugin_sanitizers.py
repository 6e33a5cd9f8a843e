"""The kernels' C++ test under AddressSanitizer and UndefinedBehaviorSanitizer, for every instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from plugin_cases import ISAS

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or C++ compiler")
@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_kernels_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    flags = ["-DSTN_CUDA=OFF", "-DSTN_TESTS=ON", f"-DSTN_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    flags.append("-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1")
    subprocess.run(["cmake", "-S", str(PLUGINS), "-B", str(tmp_path), *flags], check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--parallel", "--target", "kernels_test"]
    subprocess.run(build, check=True, capture_output=True)
    program = next(tmp_path.rglob("kernels_test"))
    for isa in ISAS:
        environment = os.environ | {"STN_CPU_ISA": isa}
        done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " 0 failed" in done.stdout
