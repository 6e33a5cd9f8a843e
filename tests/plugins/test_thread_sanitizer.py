"""The kernels' C++ test and the plugins' hosts under the thread sanitizer, for every instruction set.

A file of its own, because the tests of a file run in one process: it takes minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plugin_cases import ISAS
from tests.support.sanitized import build, needs_compiler, run, run_hosts


@needs_compiler
@pytest.mark.slow
def test_kernels_under_the_thread_sanitizer(tmp_path: Path) -> None:
    build(tmp_path, "-DSTN_SANITIZE=thread")
    for isa in ISAS:
        run(tmp_path / "tests" / "kernels_test", isa=isa)
    # the CUDA kernels' threads run one after the other here: the sanitizer is slow and finds little
    run(tmp_path / "tests" / "kernels_test", "--cuda-on-cpu", "--every", "11")
    run_hosts(tmp_path)
