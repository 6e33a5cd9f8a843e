"""A time limit leaves out rounds and cuts rows short, and the result says so."""

from __future__ import annotations

import pytest

from stn_infer.benchmarking.report.explain import explanation
from stn_infer.benchmarking.report.notes import notes
from stn_infer.benchmarking.report.tables import speedup_over
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import BenchResult
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=6.0, samples=132, turns=4, warmup_seconds=0.02, warmup_limit=0.5)


def run(simulation: Simulation, method: Method = METHOD, **extra: object) -> BenchResult:
    return simulation.go(method, clock=lambda: simulation.elapsed, **extra)


def simulation() -> Simulation:
    return Simulation({"eager": Simulated(fixed(4.0), load_s=1.0), "ort": Simulated(fixed(1.0), load_s=1.0)})


def test_without_a_limit_and_with_a_wide_one_all_rounds_are_run_in_full() -> None:
    free = run(simulation())
    wide = run(simulation(), time_limit=1e4)
    assert free.complete and wide.complete
    assert [row.samples_ms for row in wide.measurements] == [row.samples_ms for row in free.measurements]


@pytest.mark.parametrize("limit", [9.0, 14.0])
def test_rounds_that_do_not_fit_are_left_out(limit: float) -> None:
    simulated = simulation()
    result = run(simulated, time_limit=limit)
    rounds = len(result.log)
    assert 1 <= rounds < 6 and not result.complete
    assert simulated.elapsed <= limit
    assert simulated.elapsed > limit - simulated.elapsed / rounds, "another one would not have fitted"
    assert any("not finished" in note for note in notes(result))
    assert [log.round for log in result.log] == list(range(rounds))


def test_the_first_round_is_run_however_short_the_limit_is_with_its_rows_cut_short() -> None:
    simulated = simulation()
    result = run(simulated, time_limit=0.001)
    assert len(result.log) == 1
    for row in result.measurements:
        assert row.samples_ms and any("cut short" in flag for flag in row.flags)


def test_what_a_limit_left_out_is_resumed() -> None:
    first = run(simulation(), time_limit=9.0)
    whole = run(simulation(), earlier=first)
    assert whole.complete and len(first.log) < len(whole.log) == 6


def test_a_ratio_without_an_interval_is_not_given_for_an_unstable_pair() -> None:
    quick = Method(rounds=2, seconds=0.2, samples=66, turns=4, warmup_seconds=0.02, warmup_limit=0.5)
    backends = {"eager": Simulated(fixed(4.0)), "ort": Simulated(fixed(1.0))}
    stable = Simulation(backends).go(quick)
    assert speedup_over(stable, stable.models[0], stable.get("ort", 4)) == "4.00x"
    shaky = Simulation({**backends, "ort": Simulated(noisy(1.0, 0.9))}, round_factor=lambda number, _: 1.0 + number)
    found = shaky.go(quick)
    assert found.get("ort", 4).flags
    assert speedup_over(found, found.models[0], found.get("ort", 4)) == "unstable"
    assert explanation(found) == [
        "at batch 4 ort has the lowest median (low confidence: unstable measurement of ort and eager)"
    ]
