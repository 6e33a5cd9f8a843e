"""One row within one round: a variant that was verified, bound to its inputs, and its samples so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from stn_infer.benchmarking.harness.load import closed_loop, paced
from stn_infer.benchmarking.harness.variant import BoundVariant, Clock
from stn_infer.benchmarking.record import Measurement, Paced, Round, Throughput
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.stats import median
from stn_infer.errors import one_line

Call = Callable[[], object]

_WINDOW = 5  # calls
_STABLE = 0.1
_ESTIMATE = 5  # calls that tell how long one takes


class Row:
    """Takes the samples of one row.

    Args:
        found: what is known of it before it is timed.
        bound: what is timed.
        load_s, first_call_ms: its cold start.
        method, clock: how samples are taken, and by which clock.
    """

    def __init__(
        self,
        found: Measurement,
        bound: BoundVariant,
        method: Method,
        clock: Clock,
        *,
        load_s: float,
        first_call_ms: float,
    ) -> None:
        self.bound = bound
        self._found, self._method, self._clock = found, method, clock
        self._cold = {"load_s": round(load_s, 6), "first_call_ms": round(first_call_ms, 6)}
        self._samples: list[float] = []
        self._throttled: list[int] = []
        self._last_turn = range(0)
        self._wall_s = self._spent_s = 0.0
        self._left_out = dict(found.left_out)
        self._throughput: tuple[Throughput, ...] = ()
        self._paced: tuple[Paced, ...] = ()
        self.cut_short = False
        self._warm = warm_up(bound.call, method.warmup_limit, clock.now, method.warmup_seconds)
        self._call_s = median(bound.burst(_ESTIMATE, clock)) / 1e3

    def turn(self) -> None:
        """Take this turn's samples."""
        # The variant before has filled the caches, and its threads may still be awake: one call goes unrecorded.
        self.bound.call()
        start, first = self._clock.now(), len(self._samples)
        self._samples += self.bound.burst(self._calls_per_turn(), self._clock)
        self._last_turn = range(first, len(self._samples))
        self._spent_s += self._clock.now() - start
        if self._method.l2 == "flushed":
            self._left_out["throughput"] = "flushing the level-2 cache takes wall time of its own"
        else:
            self._wall_s = self._spent_s

    def mark_throttled(self) -> None:
        """Mark the samples of the last turn as taken while throttled."""
        self._throttled += self._last_turn

    def _calls_per_turn(self) -> int:
        """As many as give the row its seconds and samples in all turns of all rounds, within its limit."""
        method = self._method
        turns = method.rounds * method.turns
        call_s = max(self._call_s, 1e-7)
        wanted = max(math.ceil(method.samples / turns), math.ceil(method.seconds / turns / call_s))
        most = max(1, int(method.row_limit / method.turns / call_s))
        self.cut_short |= most < wanted
        return min(wanted, most)

    def lacks_samples(self) -> bool:
        """Whether this round's share of seconds or samples is not there yet, and there is time left."""
        method = self._method
        enough = len(self._samples) * method.rounds >= method.samples
        enough &= sum(self._samples) / 1e3 * method.rounds >= method.seconds
        if not enough and self._spent_s >= method.row_limit:
            self.cut_short = True
        return not enough and not self.cut_short

    def under_load(self) -> None:
        """Throughput and latency under load, where asked for; after the turns, since it disturbs them."""
        method, bound = self._method, self.bound
        seconds = method.traffic_seconds / method.rounds
        if not bound.concurrent:
            others = (callers for callers in method.concurrency if callers > 1)
            self._left_out |= {f"throughput with {callers} callers": bound.alone for callers in others}
        self._throughput = tuple(
            closed_loop(bound, callers, seconds, self._clock)
            for callers in method.concurrency
            if callers == 1 or bound.concurrent
        )
        self._paced = tuple(paced(bound, rate, seconds, self._clock) for rate in method.rates)

    def failed(self, error: Exception) -> Measurement:
        """The row where it ran once and fails now: out of memory, for example."""
        found = self._found
        return replace(
            found, status="unavailable", reason=one_line(error), runs_on={}, samplers=(), stages=None, left_out={}
        )

    def measured(self, number: int) -> Measurement:
        """The row with what round ``number`` measured."""
        warmup_calls, settled = self._warm
        measured = Round(
            round=number,
            **self._cold,
            warmup_calls=warmup_calls,
            settled=settled,
            samples_ms=tuple(round(sample, 6) for sample in self._samples),
            wall_s=round(self._wall_s, 6),
            throttled=tuple(self._throttled),
            cut_short=self.cut_short,
            throughput=self._throughput,
            paced=self._paced,
        )
        found = self._found
        items = found.batch_size if self.bound.items is None else self.bound.items
        return replace(found, status="timed", items=items, rounds=(measured,), left_out=self._left_out)


def warm_up(
    call: Call, limit_seconds: float, clock: Callable[[], float] = time.perf_counter, least_seconds: float = 0.0
) -> tuple[int, bool]:
    """Call until the medians of the last two windows of five calls lie within 10 %, or the time is up.

    It takes at least ``least_seconds``.

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
            if abs(now - before) <= _STABLE * before:
                return len(times), True
        if clock() - start > limit_seconds:
            return len(times), False
