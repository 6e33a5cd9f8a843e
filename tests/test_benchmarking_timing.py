"""Warming up, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable

from stn_infer.benchmarking.timing import warm_up


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
