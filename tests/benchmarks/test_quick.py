"""``benchmarks/quick.py`` and ``instructions.py``: how the regression check evaluates its measurements."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import instructions, quick, turns
from stn_infer import plugin

needs_library = pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built")
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")


class Machine:
    """A virtual clock: variants take ``seconds`` per call, and another process sometimes takes the processor."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.slow = 1.0
        self._chance = random.Random(seed)

    def call(self, seconds: float) -> None:
        if self._chance.random() < 0.1:
            self.slow = self._chance.choice([1.0, 1.0, 1.4, 3.0])
        self.now += seconds * self.slow * self._chance.uniform(1.0, 1.05)


def made(**fields: Any) -> Any:
    same = {"ratios": {}, "instructions": {}, "cpu": "xeon, avx2", "libraries": "torch 2", "compiler": "gcc 12"}
    return quick.Quick(**{**same, **fields})


def fastest_calls(seed: int, seconds: dict[str, float]) -> dict[str, float]:
    """The result of one process for variants with these times per call."""
    machine = Machine(seed)
    calls = {variant: partial(machine.call, taken) for variant, taken in seconds.items()}
    plan = turns.Plan(20, calls=1, turn_seconds=0.012, seconds=1e9)
    timings = turns.interleave(calls, plan, lambda: machine.now)
    return {variant: min(timing.samples_ms) for variant, timing in timings.items()}


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_holds_on_a_noisy_machine(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(quick, "CASES", {"case": {"fast / slow": ("slow", "fast")}})
    chance = random.Random(seed)
    processes = []
    for number in range(quick.MOST):
        # effects on a whole process: memory layout, and in one of six processes a faster clock for one variant
        seconds = {"slow": 0.0010 * chance.uniform(1.0, 1.06), "fast": 0.0004 * chance.uniform(1.0, 1.06)}
        if chance.random() < 1 / 6:
            seconds[chance.choice(["slow", "fast"])] *= 0.6
        processes.append({"case": fastest_calls(100 * seed + number, seconds)})
    assert quick.ratios_of(processes) == {"case: fast / slow": pytest.approx(2.5, rel=0.1)}


def test_a_slowdown_is_a_regression_and_a_small_change_is_not() -> None:
    before = made(ratios={"a": 4.0, "b": 4.0, "gone": 1.0}, instructions={"k": 1000, "l": 1000})
    now = made(ratios={"a": 3.8, "b": 3.5, "new": 1.0}, instructions={"k": 1010, "l": 1030})
    changes = {change.name: change for change in quick.compare(before, now)}
    assert set(changes) == {"a", "b", "k", "l"}
    assert [name for name, change in changes.items() if change.regressed] == ["b", "l"]
    assert changes["b"].change == pytest.approx(-0.125)
    assert quick.remarks(before, now) == []


@pytest.mark.parametrize(
    ("elsewhere", "regressed", "remark"),
    [
        ({"cpu": "epyc, avx512"}, ["k"], "ratios not compared, another machine: baseline xeon, avx2, now epyc, avx512"),
        ({"libraries": "torch 3"}, ["k"], "ratios not compared, other versions: baseline torch 2, now torch 3"),
        ({"compiler": "gcc 13"}, ["a"], "counts not compared, another compiler: baseline gcc 12, now gcc 13"),
        ({"instructions": {}}, ["a"], "no instruction counts: valgrind is not installed"),
    ],
)
def test_figures_from_other_conditions_are_shown_and_not_compared(
    elsewhere: dict[str, Any], regressed: list[str], remark: str
) -> None:
    before = made(ratios={"a": 4.0}, instructions={"k": 1000})
    now = made(**{"ratios": {"a": 2.0}, "instructions": {"k": 2000}, **elsewhere})
    changes = quick.compare(before, now)
    assert [change.name for change in changes if change.regressed] == regressed
    assert {change.name for change in changes} == {"a", *now.instructions}
    assert quick.remarks(before, now) == [remark]


def test_the_committed_baseline_has_all_figures() -> None:
    baseline = quick.load(quick.BASELINE)
    names = {f"{case}: {ratio}" for case, pairs in quick.CASES.items() for ratio in pairs}
    assert baseline.ratios.keys() == names
    assert baseline.instructions.keys() == {name for name, *_ in instructions.problems()}
    assert baseline.compiler and baseline.cpu and baseline.libraries


@pytest.mark.parametrize("content", [{"ratios": {}}, [], "nothing"])
def test_a_damaged_baseline_is_one_line(tmp_path: Path, content: object) -> None:
    (tmp_path / "quick.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"^no baseline in .*--update$"):
        quick.load(tmp_path / "quick.json")


def test_a_baseline_of_another_version_is_not_compared_with(tmp_path: Path) -> None:
    (tmp_path / "quick.json").write_text(json.dumps({**vars(made()), "schema_version": 2}))
    with pytest.raises(SystemExit, match=r"^expected a baseline of version 3, .*--update$"):
        quick.load(tmp_path / "quick.json")


@needs_library
def test_the_compiler_is_known_from_the_library(tmp_path: Path) -> None:
    assert "GCC: " in quick.compiler(plugin.library_path()) or "clang" in quick.compiler(plugin.library_path())
    (tmp_path / "other.so").write_bytes(b"\x7fELF\0GCC: (A 1) 12.2.0\0GCC: (A 1) 12.2.0\0Debian clang version 14.0.6\0")
    assert quick.compiler(tmp_path / "other.so") == "Debian clang version 14.0.6; GCC: (A 1) 12.2.0"


@needs_library
@needs_valgrind
def test_instructions_are_counted_case_by_case_without_symbols(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / plugin.FILE_NAME
    shutil.copy(plugin.library_path(), library)
    if strip := shutil.which("strip"):  # as pip does when it installs
        subprocess.run([strip, library], check=True)
    monkeypatch.setenv(plugin.ENVIRONMENT, str(library))
    counts = instructions.count()
    assert counts.keys() == {name for name, *_ in instructions.problems()}
    assert all(100_000 < count < 10_000_000 for count in counts.values()), counts
    # a bicubic tap reads sixteen pixels where a bilinear one reads four
    bicubic, bilinear = (counts[f"affine {kind}, 16x1x28x28"] for kind in ("bicubic reflection", "bilinear zeros"))
    assert bicubic > 3 * bilinear
    # 16,384 pixels of three channels, against 12,544 of one
    assert counts["affine bilinear zeros, 1x3x128x128"] > 1.5 * bilinear


@needs_library
def test_valgrind_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "valgrind"
    broken.write_text("#!/bin/sh\necho '==1== Memcheck' >&2\necho 'valgrind: no such tool' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^valgrind failed: valgrind: no such tool$"):
        instructions.count()
    broken.unlink()
    assert instructions.count() == {}
