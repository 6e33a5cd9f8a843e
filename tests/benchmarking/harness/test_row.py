"""Warming up, with a clock that the test turns."""

from __future__ import annotations

from stn_infer.benchmarking.harness.row import warm_up
from tests.support.clocks import Clock


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
