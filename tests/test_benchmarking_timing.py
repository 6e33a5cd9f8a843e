"""Percentiles by definition, and timing with a clock that the test turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_infer.benchmarking.stats import FLOORS, median, nearest_rank, percentiles
from stn_infer.benchmarking.timing import Plan, interleave, warm_up


class Clock:
    """A clock in seconds that only moves when a call takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float) -> Callable[[], None]:
        """A call that takes these times one after the other, the last one for ever."""
        times = list(seconds)

        def call() -> None:
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return call


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_nearest_rank_is_the_smallest_sample_that_covers_the_share(samples: list[float], percent: float) -> None:
    value = nearest_rank(samples, percent)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= percent / 100 * len(samples) - 1e-9
    assert sum(sample < value for sample in samples) < percent / 100 * len(samples)


def test_known_percentiles() -> None:
    samples = random.Random(0).sample(range(1, 101), 100)
    assert (nearest_rank(samples, 90), nearest_rank(samples, 100), nearest_rank(samples, 0.5)) == (90, 100, 1)
    assert median([3.0, 1.0, 2.0]) == statistics.median([3.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="expected samples"):
        nearest_rank([], 50)


def test_a_p90_needs_enough_samples() -> None:
    assert 90 not in percentiles([1.0] * (FLOORS[90] - 1))
    assert percentiles([1.0] * FLOORS[90])[90] == 1.0


def test_warm_up_ends_when_times_are_stable() -> None:
    clock = Clock()
    calls, settled = warm_up(clock.taking(9, 5, 3, 2, 1.5, 1.2, 1.0), 1000, clock)
    assert settled
    assert calls > 10


def test_warm_up_gives_up_and_says_so() -> None:
    clock = Clock()
    calls, settled = warm_up(clock.taking(*(1.5**index for index in range(60))), 1000, clock)
    assert not settled
    assert clock.now > 1000
    assert calls < 60


def test_every_variant_gets_its_own_times_and_the_same_number_of_calls() -> None:
    clock = Clock()
    timings = interleave({"slow": clock.taking(2.0), "fast": clock.taking(0.5)}, Plan(20, 6, 1e9), clock)
    assert timings["slow"].samples_ms == pytest.approx([2000] * 20)
    assert timings["fast"].samples_ms == pytest.approx([500] * 20)
    assert timings["fast"].settled


def test_variants_take_turns_in_an_order_that_changes() -> None:
    clock, turns = Clock(), []
    tick = clock.taking(1.0)

    def record(name: str) -> Callable[[], None]:
        def call() -> None:
            tick()
            turns.append(name)

        return call

    interleave({name: record(name) for name in "abc"}, Plan(samples=40, burst=4), Clock())
    timed = turns[-10 * 15 :]
    rounds = ["".join(timed[start : start + 15 : 5]) for start in range(0, 150, 15)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) > 1
    assert all(timed[start : start + 5] == [timed[start]] * 5 for start in range(0, 150, 5))


def test_the_first_call_of_a_turn_is_not_recorded() -> None:
    clock = Clock()
    # settled after ten calls of 1 s; from then on each turn is one slow call and two fast ones
    call = clock.taking(*[1.0] * 10, *[9.0, 1.0, 1.0] * 10)
    timings = interleave({"only": call}, Plan(samples=20, burst=2, seconds=1e9, warmup_seconds=1e9), clock)
    assert timings["only"].warmup_calls == 10
    assert timings["only"].samples_ms == pytest.approx([1000.0] * 20)


def test_the_time_limit_leaves_three_rounds() -> None:
    clock = Clock()
    timings = interleave({"a": clock.taking(10.0), "b": clock.taking(10.0)}, Plan(600, 6, seconds=1), clock)
    assert {len(timing.samples_ms) for timing in timings.values()} == {18}
