"""One round: open every variant, verify it, warm it up, and time them in turns."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from stn_infer.benchmarking.harness.load import closed_loop, paced
from stn_infer.benchmarking.harness.runner import BoundVariant, Clock, Inspection, Opener, OpenVariant
from stn_infer.benchmarking.machine.monitor import Monitor, Reading
from stn_infer.benchmarking.record import Paced, Round, SamplerPlacement, Stages, Status, Throughput
from stn_infer.benchmarking.report.stats import median
from stn_infer.benchmarking.request import Method
from stn_infer.errors import StnInferError, one_line
from stn_infer.reference.comparison import Expected

Call = Callable[[], object]
_WINDOW = 5
_STEADY = 0.1


Progress = Callable[[str], None]

_ESTIMATE = 5  # calls that say how long one takes
_MOST_TURNS = 20  # times those asked for, before a row that never gets its seconds is let go


@dataclass(frozen=True)
class RowRound:
    """What one round found for one variant at one batch size; ``round`` is None where it was not timed."""

    variant: str
    batch_size: int
    status: Status
    reason: str = ""
    error: float | None = None
    items: int = 0
    runs_on: Mapping[str, str] = field(default_factory=dict)
    samplers: tuple[SamplerPlacement, ...] = ()
    stages: Stages | None = None
    round: Round | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport:
    """A finished round."""

    rows: tuple[RowRound, ...]
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class RoundTask:
    """What to do in a round.

    Attributes:
        number: of the round; the first one also asks who runs the samplers, and where the time goes.
        variants: their names.
        expected: batch size to inputs and outputs.
        tolerance: on each output's error over its scale.
        device: where the samplers must run; ``cpu`` or ``cuda:N``.
        method: how.
    """

    number: int
    variants: tuple[str, ...]
    expected: Mapping[int, Expected]
    tolerance: float
    device: str
    method: Method


def run_round(
    task: RoundTask, opener: Opener, clock: Clock, monitor: Monitor, say: Progress = lambda text: None
) -> RoundReport:
    """Run it in this process. ``say`` is told the name of the variant that is about to be touched."""
    generator = random.Random(f"{task.method.seed}/{task.number}")
    start = clock.now()
    rows: list[RowRound] = []
    readings = [monitor.read(0.0)]
    runners: dict[str, OpenVariant] = {}
    load_s: dict[str, float] = {}
    with ExitStack() as stack:
        for name in generator.sample(task.variants, len(task.variants)):
            say(name)
            began = clock.now()
            try:
                runners[name] = opener(name)
            except StnInferError as error:
                rows += [RowRound(name, batch, "unavailable", str(error)) for batch in task.expected]
                continue
            load_s[name] = clock.now() - began
            stack.callback(runners[name].close)
        for batch in generator.sample(list(task.expected), len(task.expected)):
            with ExitStack() as buffers:
                ready: list[_Row] = []
                for name in generator.sample(list(runners), len(runners)):
                    say(f"{name}, batch {batch}")
                    outcome = _prepare(name, runners[name], load_s[name], batch, task, clock)
                    if isinstance(outcome, _Row):
                        buffers.callback(outcome.bound.close)
                        ready.append(outcome)
                    else:
                        rows.append(outcome)
                say(f"batch {batch}")
                readings += _take_turns(ready, task.method, generator, clock, monitor, start)
                rows += [row.finish(task.number) for row in ready]
    return RoundReport(tuple(rows), tuple(readings))


class _Row:
    """A variant that was verified, and its samples so far."""

    def __init__(self, head: RowRound, bound: BoundVariant, load_s: float, first_call_ms: float) -> None:
        self.head, self.bound = head, bound
        self._load_s, self._first_call_ms = load_s, first_call_ms
        self.samples: list[float] = []
        self.throttled: list[int] = []
        self.wall_s = self._spent_s = 0.0
        self.left_out = dict(head.left_out)
        self.cut_short = False
        self.problem = ""
        self._warm = (0, False)
        self._call_s = 0.0
        self._throughput: tuple[Throughput, ...] = ()
        self._paced: tuple[Paced, ...] = ()

    def warm(self, method: Method, clock: Clock) -> None:
        self._warm = warm_up(self.bound.call, method.warmup_limit, clock.now, method.warmup_seconds)
        self._call_s = median(self.bound.burst(_ESTIMATE, clock)) / 1e3

    def calls_a_turn(self, method: Method) -> int:
        """So many that the row's seconds and samples come together in all turns of all rounds, within its limit."""
        turns = method.rounds * method.turns
        call_s = max(self._call_s, 1e-7)
        wanted = max(math.ceil(method.samples / turns), math.ceil(method.seconds / turns / call_s))
        most = max(1, int(method.row_limit / method.turns / call_s))
        self.cut_short |= most < wanted
        return min(wanted, most)

    def lacks(self, method: Method) -> bool:
        """Whether this round's share of seconds or samples is not there yet, and there is time left."""
        enough = len(self.samples) * method.rounds >= method.samples
        enough &= sum(self.samples) / 1e3 * method.rounds >= method.seconds
        if not enough and self._spent_s >= method.row_limit:
            self.cut_short = True
        return not enough and not self.cut_short

    def turn(self, method: Method, clock: Clock) -> None:
        # The variant before has filled the caches, and its threads may still be awake: one call goes unrecorded.
        self.bound.call()
        start = clock.now()
        self.samples += self.bound.burst(self.calls_a_turn(method), clock)
        self._spent_s += clock.now() - start
        if method.l2 == "flushed":
            self.left_out["throughput"] = "flushing the level-2 cache takes wall time of its own"
        else:
            self.wall_s = self._spent_s

    def under_load(self, method: Method, clock: Clock) -> None:
        """Throughput and latency under load, where asked for; after the turns, since it disturbs them."""
        seconds = method.traffic_seconds / method.rounds
        if not self.bound.concurrent:
            others = (callers for callers in method.concurrency if callers > 1)
            self.left_out |= {f"throughput with {callers} callers": self.bound.alone for callers in others}
        self._throughput = tuple(
            closed_loop(self.bound, callers, seconds, clock)
            for callers in method.concurrency
            if callers == 1 or self.bound.concurrent
        )
        self._paced = tuple(paced(self.bound, rate, seconds, clock) for rate in method.rates)

    def finish(self, number: int) -> RowRound:
        if self.problem:
            return RowRound(self.head.variant, self.head.batch_size, "unavailable", self.problem, self.head.error)
        found = Round(
            number,
            round(self._load_s, 6),
            round(self._first_call_ms, 6),
            *self._warm,
            tuple(round(sample, 6) for sample in self.samples),
            round(self.wall_s, 6),
            tuple(self.throttled),
            self.cut_short,
            self._throughput,
            self._paced,
        )
        head = self.head
        return RowRound(
            head.variant,
            head.batch_size,
            "timed",
            "",
            head.error,
            self.bound.items,
            head.runs_on,
            head.samplers,
            head.stages,
            found,
            self.left_out,
        )


def _prepare(
    name: str, runner: OpenVariant, load_s: float, batch: int, task: RoundTask, clock: Clock
) -> _Row | RowRound:
    """Bind, make the first call, verify, and in the first round ask who runs the samplers; then warm up."""
    expected = task.expected[batch]
    try:
        bound = runner.bind(expected.inputs)
        began = clock.now()
        bound.call()
        first_call_ms = (clock.now() - began) * 1e3
        error = expected.error(list(bound.outputs()))
        runs_on = runner.describe()
        if not error <= task.tolerance:
            reason = f"outputs are off by {error:.1e} of their scale, expected at most {task.tolerance:.0e}: not timed"
            return RowRound(name, batch, "failed", reason, error, runs_on=runs_on)
        seen = _inspected(bound) if task.number == 0 else None
        samplers = seen.samplers if seen else ()
        elsewhere = [sampler for sampler in samplers if not _is_at(sampler.place, task.device)]
        if elsewhere:
            reason = "; ".join(f"sampler {it.node} ({it.op}) ran on {it.place}" for it in elsewhere)
            reason += f", not on {task.device}: not timed"
            return RowRound(name, batch, "failed", reason, error, runs_on=runs_on, samplers=samplers)
        stages, left_out = (seen.stages, seen.left_out) if seen else (None, {})
        head = RowRound(name, batch, "timed", "", error, 0, runs_on, samplers, stages, None, left_out)
        row = _Row(head, bound, load_s, first_call_ms)
        row.warm(task.method, clock)
        return row
    except StnInferError as failure:
        return RowRound(name, batch, "unavailable", one_line(failure))


def _inspected(bound: BoundVariant) -> Inspection:
    """What the variant tells; a profiler that fails, whatever it raises, costs a row its shares and not its times."""
    try:
        return bound.inspect()
    except Exception as error:
        return Inspection(left_out=dict.fromkeys(("samplers", "stages"), f"the inspection failed: {one_line(error)}"))


def _is_at(place: str, device: str) -> bool:
    """Whether a sampler's place (a device's or a provider's name) is on the kind of device that is measured."""
    on_gpu = any(word in place.lower() for word in ("cuda", "tensorrt", "gpu"))
    return on_gpu == device.startswith("cuda")


def _take_turns(
    rows: Sequence[_Row], method: Method, generator: random.Random, clock: Clock, monitor: Monitor, start: float
) -> list[Reading]:
    """Time all rows in turns of random order; those that still lack samples go on. Garbage is collected before."""
    before = monitor.read(clock.now() - start)
    readings = [before]
    gc.collect()
    gc.disable()
    try:
        turn = 0
        waiting = list(rows)
        while waiting:
            for row in generator.sample(waiting, len(waiting)):
                first = len(row.samples)
                try:
                    row.turn(method, clock)
                except StnInferError as error:  # it ran once, and fails now: out of memory, say
                    row.problem = one_line(error)
                    waiting.remove(row)
                    before = monitor.read(clock.now() - start)
                    continue
                reading = monitor.read(clock.now() - start)
                if reading.throttled_since(before):
                    row.throttled += range(first, len(row.samples))
                    readings.append(reading)
                before = reading
            readings.append(monitor.read(clock.now() - start))
            turn += 1
            if turn >= method.turns:
                waiting = [row for row in waiting if row.lacks(method)]
            if turn >= _MOST_TURNS * method.turns:
                for row in waiting:
                    row.cut_short = True
                break
        for row in rows:
            if not row.problem:
                row.under_load(method, clock)
    finally:
        gc.enable()
    return readings


def warm_up(
    call: Call, limit_seconds: float, clock: Callable[[], float] = time.perf_counter, least_seconds: float = 0.0
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
