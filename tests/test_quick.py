from __future__ import annotations

import importlib.util
import json
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stn_infer import plugin


def load_quick() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "quick.py"
    spec = importlib.util.spec_from_file_location("quick", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quick"] = module
    spec.loader.exec_module(module)
    return module


quick = load_quick()


class Machine:
    """A virtual clock on which two variants take ``seconds`` a call, and now and then somebody else the processor."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.slow = 1.0
        self._chance = random.Random(seed)

    def call(self, seconds: float) -> None:
        if self._chance.random() < 0.1:
            self.slow = self._chance.choice([1.0, 1.0, 1.4, 3.0])
        self.now += seconds * self.slow * self._chance.uniform(1.0, 1.05)


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_holds_on_a_noisy_machine(seed: int) -> None:
    machine = Machine(seed)
    rivals = {"a": lambda: machine.call(0.0004), "b": lambda: machine.call(0.0010)}
    best = quick.best_turns(rivals, rounds=40, clock=lambda: machine.now, seed=seed)
    assert best["b"] / best["a"] == pytest.approx(2.5, rel=0.1)


def test_what_got_slower_is_a_regression_and_what_moved_a_little_is_not() -> None:
    before = quick.Quick({"a": 4.0, "b": 4.0, "gone": 1.0}, {"k": 1000, "l": 1000}, "gcc", "avx2")
    now = quick.Quick({"a": 3.8, "b": 3.5, "new": 1.0}, {"k": 1010, "l": 1030}, "gcc", "avx2")
    changes = {change.name: change for change in quick.compare(before, now)}
    assert set(changes) == {"a", "b", "k", "l"}
    assert [name for name, change in changes.items() if change.regressed] == ["b", "l"]
    assert changes["b"].change == pytest.approx(-0.125)


def test_the_committed_baseline_names_what_is_measured() -> None:
    baseline = quick.load(quick.BASELINE)
    names = {f"{case}: {ratio}" for case, pairs in quick.CASES.items() for ratio in pairs}
    assert baseline.ratios.keys() == names
    assert baseline.instructions.keys() == {name for name, *_ in quick.kernel_cases()}


def test_a_damaged_baseline_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "quick.json").write_text(json.dumps({"ratios": {}}))
    with pytest.raises(SystemExit, match=r"no baseline in .*--update"):
        quick.load(tmp_path / "quick.json")


@pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built")
def test_the_counted_kernels_run() -> None:
    quick.run_kernels()


@pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted_case_by_case() -> None:
    counts = quick.count_instructions()
    assert all(count > 10_000 for count in counts.values())
    # a bicubic tap reads sixteen pixels where a bilinear one reads four
    bicubic, bilinear = (counts[f"affine {kind}, 16x1x28x28"] for kind in ("bicubic reflection", "bilinear zeros"))
    assert bicubic > 3 * bilinear
