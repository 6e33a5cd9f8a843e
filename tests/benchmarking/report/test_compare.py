"""Two results side by side: what got slower is found, what did not is left in peace, and doubts are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stn_infer.benchmarking.report.compare import compare
from stn_infer.benchmarking.report.files import comparison_markdown
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import BenchResult
from stn_infer.errors import ModelError, UsageError
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=0.1, samples=66, turns=2, warmup_seconds=0.01)


def measured(seed: int, factor: float = 1.0, method: Method = METHOD, **milliseconds: float) -> BenchResult:
    """A result of noisy backends on a machine that is ``factor`` times slower."""
    backends = {name: Simulated(noisy(value)) for name, value in milliseconds.items()}
    rounds = lambda number, generator: factor * float(np.exp(generator.normal(0, 0.004)))  # noqa: E731
    return Simulation(backends, seed=seed, round_factor=rounds).go(method)


def test_what_got_slower_is_flagged_and_the_rest_is_not() -> None:
    found = compare(measured(1, eager=2.0, ort=1.0, compile=3.0), measured(2, eager=2.0, ort=1.1, compile=2.5))
    verdicts = {change.variant: change.verdict for change in found.changes}
    assert verdicts == {"eager": "same", "ort": "slower", "compile": "faster"}
    (slower,) = found.regressions
    assert slower.ratio is not None and slower.ratio.low is not None and slower.ratio.high is not None
    assert slower.ratio.low < 1.1 < slower.ratio.high
    assert found.warnings == ()
    text = comparison_markdown(found)
    assert "| 4 | ort | " in text and "| slower |" in text


def test_a_certain_change_below_the_threshold_is_no_regression() -> None:
    before, after = measured(1, ort=1.0), measured(2, ort=1.03)
    (change,) = compare(before, after).changes
    assert change.ratio is not None and change.ratio.excludes_one and change.verdict == "same"
    assert compare(before, after, threshold=0.02).regressions


def test_relative_to_a_variant_another_machine_is_no_regression() -> None:
    before, after = measured(1, eager=2.0, ort=1.0), measured(2, factor=1.5, eager=2.0, ort=1.0)
    assert {change.verdict for change in compare(before, after).changes} == {"slower"}
    (change,) = compare(before, after, relative_to="eager").changes
    assert change.verdict == "same" and change.ratio is not None and change.ratio.value == pytest.approx(1, abs=0.03)
    slower = measured(3, factor=1.5, eager=2.0, ort=1.2)
    (change,) = compare(before, slower, relative_to="eager").changes
    assert change.verdict == "slower"
    with pytest.raises(UsageError, match="was not timed in both"):
        compare(before, after, relative_to="compile")


def test_few_rounds_give_no_verdict() -> None:
    short = replace(METHOD, rounds=3)
    found = compare(measured(1, method=short, ort=1.0), measured(2, method=short, ort=2.0))
    assert [change.verdict for change in found.changes] == ["unknown"]
    assert found.regressions == () and "an interval needs 6" in found.warnings[0]


def test_a_row_that_is_gone_is_a_regression() -> None:
    before = measured(1, ort=1.0, eager=1.0)
    backends = {"ort": Simulated(fixed(1.0), error=ModelError("refused")), "eager": Simulated(noisy(1.0))}
    after = Simulation(backends, seed=2).go(METHOD)
    (gone,) = compare(before, after).regressions
    assert (gone.variant, gone.verdict, gone.remark) == ("ort", "gone", "refused")


def test_what_makes_two_results_hard_to_compare_is_told() -> None:
    before = measured(1, ort=1.0)
    after = measured(2, ort=1.0)
    model = replace(after.models[0], inputs_sha256={"4": "other"}, sha256={"weights": "other"})
    after = replace(
        after,
        machine=replace(after.machine, cpu="Another CPU"),
        versions={**after.versions, "torch": "0.1"},
        models=(model,),
        request=replace(after.request, threads=7),
    )
    text = "\n".join(compare(before, after).warnings)
    for part in ("another machine", "Another CPU", "other inputs", "other weights", "torch", "1 in A, 7 in B"):
        assert part in text
    apart = replace(after, request=replace(after.request, method=replace(METHOD, boundary="device")))
    with pytest.raises(UsageError, match="never compared"):
        compare(before, apart)
    with pytest.raises(UsageError, match="no row in common"):
        compare(before, measured(1, eager=1.0))
