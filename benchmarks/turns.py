"""Time several callables in one process: warmed up until stable, then in turns, in random order.

This is for ``quick.py``, whose variants take turns every few milliseconds. To measure a model's latency, use
`stn-infer bench`, whose rounds are processes and which verifies before it times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stn_infer.benchmarking.harness.row import Call, warm_up

Clock = Callable[[], float]

_FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """How samples are taken.

    Attributes:
        rounds: the maximum number of turns of each variant.
        calls: the minimum number of recorded calls per turn. One unrecorded call precedes them, because the previous
            variant has filled the caches and its threads may still be awake.
        turn_seconds: the minimum time of a turn's recorded calls.
        seconds: no new round starts after this time; at least three rounds are made.
        warmup_seconds: the maximum warm-up time of a variant.
        seed: of the order of variants in each round.
    """

    rounds: int = 16
    calls: int = 6
    turn_seconds: float = 0.0
    seconds: float = 30.0
    warmup_seconds: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """The times of one variant.

    Attributes:
        samples_ms: one value per recorded call, in milliseconds, in order of time.
        warmup_calls: the number of calls during the warm-up.
        settled: whether the warm-up ended because times were stable, and not at its limit.
    """

    samples_ms: tuple[float, ...]
    warmup_calls: int
    settled: bool


def interleave(calls: Mapping[str, Call], plan: Plan, clock: Clock = time.perf_counter) -> dict[str, Timing]:
    """Time each of ``calls``, which take turns in rounds of random order, so that conditions are the same for all."""
    warm = {name: warm_up(call, plan.warmup_seconds, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    generator = random.Random(plan.seed)
    order = list(calls)
    start = clock()
    for index in range(plan.rounds):
        if index >= _FEWEST_ROUNDS and clock() - start > plan.seconds:
            break
        generator.shuffle(order)
        for name in order:
            samples[name] += _turn(calls[name], plan, clock)
    return {name: Timing(tuple(samples[name]), *warm[name]) for name in calls}


def _turn(call: Call, plan: Plan, clock: Clock) -> list[float]:
    call()
    taken: list[float] = []
    start = clock()
    while len(taken) < plan.calls or clock() - start < plan.turn_seconds:
        begin = clock()
        call()
        taken.append((clock() - begin) * 1e3)
    return taken
