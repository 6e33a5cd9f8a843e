"""One round: open every variant, verify it, warm it up, and time them in turns."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from stn_infer.benchmarking.harness.row import Row
from stn_infer.benchmarking.harness.variant import BoundVariant, Clock, Inspection, Opener, OpenVariant
from stn_infer.benchmarking.machine.monitor import Monitor, Reading
from stn_infer.benchmarking.record import Measurement, Status
from stn_infer.benchmarking.request import Progress, Request
from stn_infer.benchmarking.result import Model
from stn_infer.errors import StnInferError, one_line
from stn_infer.reference.comparison import Expected

T = TypeVar("T")

_MOST_TURNS = 20  # times those asked for, before a row that never gets its seconds is cut short


@dataclass(frozen=True)
class RoundTask:
    """What to do in a round.

    Attributes:
        model: what is measured; its tolerance is on each output's error over its scale.
        request: its device is where the samplers must run, its method how samples are taken.
        number: of the round; the first one also finds out where the samplers run, and where the time goes.
        variants: their names.
    """

    model: Model
    request: Request
    number: int
    variants: tuple[str, ...]

    def untimed(self, variant: str, batch_size: int, status: Status, reason: str = "") -> Measurement:
        """A row without figures."""
        return Measurement(
            model=self.model.name,
            precision=self.model.case.precision,
            variant=variant,
            batch_size=batch_size,
            status=status,
            reason=reason,
        )


@dataclass(frozen=True)
class RoundReport:
    """A finished round: a row for each variant and batch size, and what the machine did between turns."""

    measurements: tuple[Measurement, ...]
    readings: tuple[Reading, ...]


def run_round(
    task: RoundTask,
    expected: Mapping[int, Expected],
    opener: Opener,
    clock: Clock,
    monitor: Monitor,
    say: Progress = lambda text: None,
) -> RoundReport:
    """Run it in this process.

    Args:
        task: what to do.
        expected: batch size to inputs and outputs.
        opener: opens a variant by its name.
        clock, monitor: time, and what the machine does.
        say: called with the name of the variant that is used next.
    """
    return _Running(task, opener, clock, monitor).run(expected, say)


class _Running:
    def __init__(self, task: RoundTask, opener: Opener, clock: Clock, monitor: Monitor) -> None:
        self._task, self._method = task, task.request.method
        self._opener, self._clock, self._monitor = opener, clock, monitor
        self._generator = random.Random(f"{self._method.seed}/{task.number}")
        self._start = clock.now()
        self._rows: list[Measurement] = []
        self._readings: list[Reading] = []

    def run(self, expected: Mapping[int, Expected], say: Progress) -> RoundReport:
        self._readings.append(self._read())
        with ExitStack() as opened:
            variants: dict[str, tuple[OpenVariant, float]] = {}
            for name in self._shuffled(self._task.variants):
                say(name)
                began = self._clock.now()
                try:
                    variant = self._opener(name)
                except StnInferError as error:
                    self._rows += [self._task.untimed(name, batch, "unavailable", str(error)) for batch in expected]
                    continue
                variants[name] = variant, self._clock.now() - began
                opened.callback(variant.close)
            for batch in self._shuffled(list(expected)):
                with ExitStack() as bound:
                    rows: list[Row] = []
                    for name in self._shuffled(list(variants)):
                        say(f"{name}, batch {batch}")
                        untimed = self._task.untimed(name, batch, "unavailable")
                        row = self._prepare(untimed, *variants[name], expected[batch])
                        if row is not None:
                            bound.callback(row.bound.close)
                            rows.append(row)
                    say(f"batch {batch}")
                    self._time(rows)
        return RoundReport(tuple(self._rows), tuple(self._readings))

    def _prepare(self, found: Measurement, variant: OpenVariant, load_s: float, expected: Expected) -> Row | None:
        """Bind, make the first call, verify, in the first round inspect, and warm up; None where it has no figures."""
        try:
            bound = variant.bind(expected.inputs)
            began = self._clock.now()
            bound.call()
            first_call_ms = (self._clock.now() - began) * 1e3
            error = expected.error(list(bound.outputs()))
            verified = replace(found, status="failed", error=error, runs_on=variant.describe())
            limit = self._task.model.tolerance
            if not error <= limit:
                reason = f"outputs are off by {error:.1e} of their scale, expected at most {limit:.0e}: not timed"
                self._rows.append(replace(verified, reason=reason))
                return None
            seen = _inspected(bound) if self._task.number == 0 else Inspection()
            device = self._task.request.device
            elsewhere = [it for it in seen.samplers if not _is_at(it.place, device)]
            if elsewhere:
                reason = "; ".join(f"sampler {it.node} ({it.op}) ran on {it.place}" for it in elsewhere)
                reason += f", not on {device}: not timed"
                self._rows.append(replace(verified, reason=reason, samplers=seen.samplers))
                return None
            inspected = replace(verified, samplers=seen.samplers, stages=seen.stages, left_out=seen.left_out)
            return Row(inspected, bound, self._method, self._clock, load_s=load_s, first_call_ms=first_call_ms)
        except StnInferError as failure:
            self._rows.append(replace(found, reason=one_line(failure)))
            return None

    def _time(self, rows: Sequence[Row]) -> None:
        """Time all rows in turns of random order; those that still lack samples go on. Garbage is collected before."""
        before = self._read()
        self._readings.append(before)
        running, waiting = list(rows), list(rows)
        gc.collect()
        gc.disable()
        try:
            turn = 0
            while waiting:
                for row in self._shuffled(waiting):
                    try:
                        row.turn()
                    except StnInferError as error:
                        self._rows.append(row.failed(error))
                        running.remove(row)
                        waiting.remove(row)
                        before = self._read()
                        continue
                    reading = self._read()
                    if reading.throttled_since(before):
                        row.mark_throttled()
                        self._readings.append(reading)
                    before = reading
                self._readings.append(self._read())
                turn += 1
                if turn >= self._method.turns:
                    waiting = [row for row in waiting if row.lacks_samples()]
                if turn >= _MOST_TURNS * self._method.turns:
                    for row in waiting:
                        row.cut_short = True
                    break
            for row in running:
                row.under_load()
        finally:
            gc.enable()
        self._rows += [row.measured(self._task.number) for row in running]

    def _read(self) -> Reading:
        return self._monitor.read(self._clock.now() - self._start)

    def _shuffled(self, of: Sequence[T]) -> list[T]:
        return self._generator.sample(of, len(of))


def _inspected(bound: BoundVariant) -> Inspection:
    """What the variant reports; any exception of a profiler costs a row its shares, not its times."""
    try:
        return bound.inspect()
    except Exception as error:
        return Inspection(left_out=dict.fromkeys(("samplers", "stages"), f"the inspection failed: {one_line(error)}"))


def _is_at(place: str, device: str) -> bool:
    """Whether a sampler's place (a device's or a provider's name) is on the kind of device that is measured."""
    on_gpu = any(word in place.lower() for word in ("cuda", "tensorrt", "gpu"))
    return on_gpu == device.startswith("cuda")
