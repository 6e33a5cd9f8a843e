"""A clock that the test turns, for whatever takes one as an argument."""

from __future__ import annotations

from collections.abc import Callable


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
