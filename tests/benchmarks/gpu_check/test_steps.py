"""The steps of a check on a GPU: their order, their time, and that their programs take their arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.gpu_check.steps import FIRST, FIRST_SECONDS, ROOT, Step, gpu_tests, kernel_names, steps


def named(device: str, tiny: bool = False) -> dict[str, Step]:
    found = steps(device, Path("/results"), "gpu-h200", tiny=tiny)
    assert len({step.name for step in found}) == len(found)
    return {step.name: step for step in found}


def test_correctness_and_headline_figures_come_first_and_in_time() -> None:
    found = named("cuda:0")
    names = list(found)
    assert names[0] == "library" and tuple(names[1 : 1 + len(FIRST)]) == FIRST
    assert sum(found[name].limit for name in FIRST) <= FIRST_SECONDS
    rest = names[1 + len(FIRST) :]
    assert rest == ["feed", "profiles", "decode", "memcheck", "initcheck", "counters", "compile", "peers"]


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_commands_are_for_the_device(device: str) -> None:
    for step in named(device).values():
        assert step.least <= step.limit
        assert not (device == "cpu" and not step.gpu_only and "--cuda" in step.command), step.name
        if "--device" in step.command:
            assert step.command[step.command.index("--device") + 1] == device
    scripts = {word for step in named(device).values() for word in step.command if word.endswith(".py")}
    assert len(scripts) > 5 and all((ROOT / script).exists() for script in scripts)


def test_the_profiler_counts_our_kernels() -> None:
    counters = named("cuda:0")["counters"].command
    pattern = counters[counters.index("-k") + 1].removeprefix("regex:")
    assert "affine_kernel" in kernel_names() and len(kernel_names()) > 1
    assert all(re.search(pattern, name) for name in kernel_names())
    assert not any(re.search(pattern, name) for name in ("probe_kernel", "vectorized_elementwise_kernel"))


def test_all_files_with_tests_for_a_gpu_are_run() -> None:
    found = set(gpu_tests())
    assert {"tests/plugins/test_cuda.py", "tests/test_fused.py", "tests/backends/test_slots.py"} <= found
    assert not any("host" in path or "sanitizers" in path for path in found)  # steps of their own
