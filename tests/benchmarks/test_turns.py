"""``benchmarks/turns.py``: timing in turns, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import turns
from tests.support.clocks import Clock


def test_every_variant_gets_its_own_times_and_the_same_number_of_calls() -> None:
    clock = Clock()
    calls = {"slow": clock.taking(2.0), "fast": clock.taking(0.5)}
    timings = turns.interleave(calls, turns.Plan(rounds=4, calls=5, seconds=1e9), clock)
    assert timings["slow"].samples_ms == pytest.approx([2000] * 20)
    assert timings["fast"].samples_ms == pytest.approx([500] * 20)
    assert timings["fast"].settled


def test_a_turn_lasts_equally_long_for_fast_and_slow_variants() -> None:
    clock = Clock()
    calls = {"slow": clock.taking(2.0), "fast": clock.taking(0.5), "slowest": clock.taking(9.0)}
    timings = turns.interleave(calls, turns.Plan(rounds=4, calls=1, turn_seconds=4.0, seconds=1e9), clock)
    assert {name: len(timing.samples_ms) for name, timing in timings.items()} == {"slow": 8, "fast": 32, "slowest": 4}


def test_variants_take_turns_in_changing_order() -> None:
    clock = Clock()
    tick = clock.taking(1.0)
    made: list[str] = []

    def record(name: str) -> Callable[[], None]:
        def call() -> None:
            tick()
            made.append(name)

        return call

    turns.interleave({name: record(name) for name in "abc"}, turns.Plan(rounds=10, calls=4, seconds=1e9), clock)
    timed = made[-10 * 15 :]
    rounds = ["".join(timed[start : start + 15 : 5]) for start in range(0, 150, 15)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) > 1
    assert all(timed[start : start + 5] == [timed[start]] * 5 for start in range(0, 150, 5))


def test_the_first_call_of_a_turn_is_not_recorded() -> None:
    clock = Clock()
    # settled after ten calls of 1 s; from then on each turn is one slow call and two fast ones
    call = clock.taking(*[1.0] * 10, *[9.0, 1.0, 1.0] * 10)
    plan = turns.Plan(rounds=10, calls=2, seconds=1e9, warmup_seconds=1e9)
    timings = turns.interleave({"only": call}, plan, clock)
    assert timings["only"].warmup_calls == 10
    assert timings["only"].samples_ms == pytest.approx([1000.0] * 20)


def test_at_least_three_rounds_despite_the_time_limit() -> None:
    clock = Clock()
    calls = {"a": clock.taking(10.0), "b": clock.taking(10.0)}
    timings = turns.interleave(calls, turns.Plan(rounds=100, calls=6, seconds=1), clock)
    assert {len(timing.samples_ms) for timing in timings.values()} == {18}
