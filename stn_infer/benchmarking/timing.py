"""Time several callables fairly: warmed up until stable, then in turns, in random order, in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stn_infer.benchmarking.stats import median

Call = Callable[[], object]
Clock = Callable[[], float]

_WINDOW = 5
_STEADY = 0.1
_FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """How samples are taken.

    Attributes:
        samples: calls recorded of each variant, at most.
        burst: calls recorded in a row before the next variant's turn. One more goes before them unrecorded: the
            variant before it has filled the caches, and its threads may still be awake.
        seconds: no new round begins after this long; at least three rounds are made.
        warmup_seconds: the longest warm-up of one variant.
        seed: of the order of variants in each round.
    """

    samples: int = 96
    burst: int = 6
    seconds: float = 30.0
    warmup_seconds: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """What one variant took.

    Attributes:
        samples_ms: one value a recorded call, milliseconds, in the order they were made.
        warmup_calls: calls before that.
        settled: whether the warm-up ended because times had become stable, rather than by its limit.
    """

    samples_ms: tuple[float, ...]
    warmup_calls: int
    settled: bool


def interleave(calls: Mapping[str, Call], plan: Plan, clock: Clock = time.perf_counter) -> dict[str, Timing]:
    """Time each of ``calls``; all see the same conditions, since they take turns in rounds of random order."""
    warm = {name: warm_up(call, plan.warmup_seconds, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    generator = random.Random(plan.seed)
    order = list(calls)
    rounds = -(-plan.samples // plan.burst)
    start = clock()
    for index in range(rounds):
        if index >= _FEWEST_ROUNDS and clock() - start > plan.seconds:
            break
        generator.shuffle(order)
        for name in order:
            call = calls[name]
            call()
            for _ in range(min(plan.burst, plan.samples - len(samples[name]))):
                samples[name].append(_timed(call, clock))
    return {name: Timing(tuple(samples[name]), *warm[name]) for name in calls}


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
        times.append(_timed(call, clock))
        if len(times) >= 2 * _WINDOW and clock() - start >= least_seconds:
            before, now = median(times[-2 * _WINDOW : -_WINDOW]), median(times[-_WINDOW:])
            if abs(now - before) <= _STEADY * before:
                return len(times), True
        if clock() - start > limit_seconds:
            return len(times), False


def _timed(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return (clock() - start) * 1e3
