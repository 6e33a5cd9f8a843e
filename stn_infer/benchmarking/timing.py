"""When a call's times have become stable."""

from __future__ import annotations

import time
from collections.abc import Callable

from stn_infer.benchmarking.stats import median

Call = Callable[[], object]
Clock = Callable[[], float]

_WINDOW = 5
_STEADY = 0.1


def warm_up(
    call: Call, limit_seconds: float, clock: Clock = time.perf_counter, least_seconds: float = 0.0
) -> tuple[int, bool]:
    """Call until the medians of the last two windows of five calls lie within 10 %, or the time is up.

    It goes on for ``least_seconds`` at least, whatever the times are.

    Returns:
        How many calls it took, and whether they became stable.
    """
    times: list[float] = []
    start = clock()
    while True:
        begin = clock()
        call()
        times.append(clock() - begin)
        if len(times) >= 2 * _WINDOW and clock() - start >= least_seconds:
            before, now = median(times[-2 * _WINDOW : -_WINDOW]), median(times[-_WINDOW:])
            if abs(now - before) <= _STEADY * before:
                return len(times), True
        if clock() - start > limit_seconds:
            return len(times), False
