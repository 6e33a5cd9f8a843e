"""A variant under load: several callers at once, or calls that arrive when they are due."""

from __future__ import annotations

import math
import threading

from stn_infer.benchmarking.harness.variant import BoundVariant, Clock
from stn_infer.benchmarking.record import Paced, Throughput


def closed_loop(bound: BoundVariant, callers: int, seconds: float, clock: Clock) -> Throughput:
    """``callers`` threads, each calling again as soon as its call is done, for ``seconds`` of wall time at least.

    Raises:
        Exception: the first exception that a caller raised.
    """
    counts = [0] * callers
    problems: list[BaseException] = []
    start = clock.now()

    def loop(index: int) -> None:
        try:
            while clock.now() - start < seconds and not problems:
                bound.call()
                counts[index] += 1
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=loop, args=(index,)) for index in range(1, callers)]
    for thread in threads:
        thread.start()
    loop(0)
    for thread in threads:
        thread.join()
    wall = clock.now() - start
    if problems:
        raise problems[0]
    return Throughput(callers, sum(counts), round(wall, 6))


def paced(bound: BoundVariant, rate: float, seconds: float, clock: Clock) -> Paced:
    """Calls that are due every 1 / ``rate`` seconds, one caller; a latency counts from the moment its call was due.

    A call that has to wait for a slow one before it has that wait in its latency: nothing is left out because it could
    not be started in time ("coordinated omission"). Where the rate is more than the variant can do, latencies grow
    for as long as it lasts.
    """
    start = clock.now()
    latencies = []
    for index in range(max(1, math.ceil(rate * seconds))):
        due = start + index / rate
        clock.wait_until(due)
        bound.call()
        latencies.append(round((clock.now() - due) * 1e3, 6))
    return Paced(rate, tuple(latencies))
