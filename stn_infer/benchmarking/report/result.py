"""What a benchmark found: rows with every raw sample, and what they were measured on. `codec.py` writes it as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from stn_infer.benchmarking.machine.monitor import Machine, Reading
from stn_infer.benchmarking.record import Round, SamplerPlacement, Stages, Status
from stn_infer.benchmarking.report import stats
from stn_infer.benchmarking.request import Case, Request
from stn_infer.metadata import Precision

_SPREAD = 0.1  # between rounds
_DRIFT = 0.05  # from the first to the last third of a round
_OUTLIERS = 0.05


#: 3 has int8, ``inputs`` of a case, ``left_out`` of a row and ``gpu_held_back_ns`` of a reading.
SCHEMA_VERSION = 3

#: Among a model's hashes: the samples that int8's ranges were taken from.
RANGES = "int8 samples"


@dataclass(frozen=True)
class Measurement:
    """One variant of one model at one batch size: a row.

    Attributes:
        model: the name of its case.
        precision: of its case.
        variant: a key of :data:`stn_infer.benchmarking.variants.names.VARIANTS`.
        batch_size: samples a call.
        status: ``timed``; ``failed``: outputs differ from the reference or a sampler ran elsewhere, so that it has no
            figures; ``unavailable``.
        reason: why it was not timed; empty when it was.
        error: the largest error over its scale in any round; None: never run.
        items: samples a call, which at the end-to-end boundary are more than the batch.
        runs_on: what the runtime says of itself: version, providers, threads, how copies are made.
        samplers: who ran each sampler.
        stages: milliseconds a call in the grid's computation, in sampling and in the rest, by the runtime's profiler,
            which slows it down: shares are to be trusted, sums are not.
        rounds: what was measured.
        left_out: what was asked for and not measured, to the reason: ``stages``, ``the grid's share``, ``samplers``,
            ``throughput``, ``throughput with N callers``.
    """

    model: str
    precision: Precision
    variant: str
    batch_size: int
    status: Status
    reason: str = ""
    error: float | None = None
    items: int = 0
    runs_on: Mapping[str, str] = field(default_factory=dict)
    samplers: tuple[SamplerPlacement, ...] = ()
    stages: Stages | None = None
    rounds: tuple[Round, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict, metadata={"since": 3})

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from the others of a result: model, precision, batch size, variant."""
        return self.model, self.precision, self.batch_size, self.variant

    @cached_property
    def samples_ms(self) -> tuple[float, ...]:
        """Every sample of every round."""
        return tuple(sample for each in self.rounds for sample in each.samples_ms)

    @property
    def by_round(self) -> tuple[tuple[float, ...], ...]:
        """The samples of each round."""
        return tuple(each.samples_ms for each in self.rounds)

    @cached_property
    def percentiles(self) -> Mapping[float, float]:
        """Percentile to milliseconds, those that there are enough samples for; empty when it was not timed."""
        return stats.percentiles(self.samples_ms) if self.samples_ms else {}

    @property
    def median_ms(self) -> float | None:
        """Median time of a call, milliseconds; None when it was not timed."""
        return self.percentiles.get(50)

    @property
    def p90_ms(self) -> float | None:
        """90th percentile by nearest rank; None with fewer than 64 samples."""
        return self.percentiles.get(90)

    @property
    def shares(self) -> Mapping[str, float] | None:
        """The stages as shares of their sum; None where they are not known."""
        total = sum(self.stages.values()) if self.stages else 0.0
        return {stage: value / total for stage, value in self.stages.items()} if self.stages and total > 0 else None

    @property
    def throughput(self) -> float | None:
        """Samples a second of one caller, from wall time; None when it was not timed, or a round has no wall time."""
        walls = [each.wall_s for each in self.rounds]
        return len(self.samples_ms) * self.items / sum(walls) if self.samples_ms and min(walls) > 0 else None

    @property
    def spread(self) -> float | None:
        """(slowest - fastest) / median of the rounds' medians; None with fewer than two rounds."""
        medians = [stats.median(samples) for samples in self.by_round if samples]
        return (max(medians) - min(medians)) / stats.median(medians) if len(medians) > 1 else None

    @cached_property
    def outliers(self) -> int:
        """Samples more than five scaled MADs from the median of their round."""
        return sum(stats.count_outliers(samples) for samples in self.by_round)


@dataclass(frozen=True)
class Model:
    """What a case turned out to be.

    Attributes:
        name: what it is called in the table; two cases of one result never share a name and a precision.
        case: the request for it.
        input_shapes: of its inputs, without batch.
        inputs: what was fed, e.g. ``handwritten digits``.
        inputs_sha256: batch size (as text) to the hash of all input bytes.
        reference: what outputs were verified against.
        tolerance: on each output's error over its scale.
        sha256: file or weights to its hash: ``weights``, ``plain``, ``portable``, ``plugin library``, ``file``: the
            ONNX file that was given, and ``int8 samples``: those that ranges were taken from.
        build_s: seconds to make each file.
        notes: what a reader must know of it.
    """

    name: str
    case: Case
    input_shapes: tuple[tuple[int, ...], ...]
    inputs: str
    inputs_sha256: Mapping[str, str]
    reference: str
    tolerance: float
    sha256: Mapping[str, str]
    build_s: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundLog:
    """One finished round of one model: what the machine did meanwhile, and who else used it.

    Attributes:
        model, precision: its case.
        round: its number.
        seconds: wall time, opening and warming up included.
        others: the share of all cores that other processes used, just before.
        busy_processes: how many other processes used more than 5 % of a core just before.
        readings: the machine, between turns.
    """

    model: str
    precision: Precision
    round: int
    seconds: float
    others: float
    busy_processes: int
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class BenchResult:
    """A benchmark, finished or not.

    Attributes:
        command: the command line that made it; empty when it was made through the Python API.
        created: when it began, UTC.
        request: what was asked for.
        machine, versions: where; ``versions`` holds packages, driver and CUDA.
        settings: what else times depend on: TF32, environment variables of thread pools.
        models: one a case.
        log: the finished rounds.
        measurements: one row for each model, batch size and variant.
    """

    command: str
    created: str
    request: Request
    machine: Machine
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    models: tuple[Model, ...]
    log: tuple[RoundLog, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether every variant that could be run gave the reference's outputs, where it was asked to."""
        return all(measurement.status != "failed" for measurement in self.measurements)

    @property
    def stages_of_kernels(self) -> bool:
        """Whether a row's shares are of its kernels' time alone, and its median holds copies and launches besides."""
        return self.request.device != "cpu" and self.request.method.boundary != "device"

    @property
    def complete(self) -> bool:
        """Whether all rounds are in it."""
        return len(self.log) == len(self.models) * self.request.method.rounds

    def get(self, variant: str, batch_size: int, model: str | None = None) -> Measurement:
        """The measurement of ``variant`` at ``batch_size``; of the first model unless one is named.

        Raises:
            KeyError: it was not asked for.
        """
        for measurement in self.measurements:
            if (measurement.variant, measurement.batch_size) == (variant, batch_size) and model in (
                None,
                measurement.model,
            ):
                return measurement
        raise KeyError(f"{variant} at batch size {batch_size}")

    def to_json(self) -> str:
        """All of it, with the figures that follow from the samples beside them; times in milliseconds."""
        content = asdict(self)
        for row, measurement in zip(content["measurements"], self.measurements, strict=True):
            row["figures"] = figures(measurement)
        return json.dumps({"schema_version": content.pop("schema_version"), **content}, indent=1) + "\n"


def case_name(models: Collection[tuple[str, str]], model: str, precision: str) -> str:
    """A model among others, by name and precision: either where they differ in it, both, or nothing."""
    parts = [model] if len({name for name, _ in models}) > 1 else []
    parts += [precision] if len({each for _, each in models}) > 1 else []
    return " in ".join(parts)


def model_name(result: BenchResult, model: str, precision: str) -> str:
    """A result's model; empty where it is the only one."""
    return case_name([(each.name, each.case.precision) for each in result.models], model, precision)


def row_name(result: BenchResult, row: Measurement) -> str:
    """A row's variant, after its model where there are several."""
    name = model_name(result, row.model, row.precision)
    return f"{name}, {row.variant}" if name else row.variant


def flags(row: Measurement) -> tuple[str, ...]:
    """Each reason why a row's figures are not steady, one phrase each; empty for a row to be trusted."""
    samples = row.samples_ms
    if row.status != "timed" or not samples:
        return ()
    found = []
    if row.spread is not None and row.spread > _SPREAD:
        found.append(f"rounds differ by {row.spread:.0%}")
    modes = stats.two_modes(samples)
    if modes is not None:
        found.append(f"two modes, {modes[0]:.3g} and {modes[1]:.3g} ms")
    drift = _drift(row)
    if modes is None and abs(drift) > _DRIFT:
        found.append(f"drifts by {drift:+.0%} within a round")
    if row.outliers > _OUTLIERS * len(samples):
        found.append(f"{row.outliers / len(samples):.0%} outliers")
    unsettled = sum(not each.settled for each in row.rounds)
    if unsettled:
        found.append(f"warm-up did not settle in {unsettled} of {len(row.rounds)} rounds")
    if any(each.cut_short for each in row.rounds):
        found.append("cut short by the row's time limit")
    throttled = sum(len(each.throttled) for each in row.rounds)
    if throttled:
        found.append(f"{throttled / len(samples):.0%} taken while throttled")
    return tuple(found)


def _drift(row: Measurement) -> float:
    """The median over the rounds of how much slower the last third of a round is than its first."""
    changes = []
    for samples in row.by_round:
        third = len(samples) // 3
        if third >= 4:
            changes.append(stats.median(samples[-third:]) / stats.median(samples[:third]) - 1)
    return stats.median(changes) if changes else 0.0


def figures(measurement: Measurement) -> dict[str, Any]:
    """What follows from a row's samples, as it is written beside them."""
    return {
        "samples": len(measurement.samples_ms),
        "percentiles_ms": {f"p{percent:g}": value for percent, value in measurement.percentiles.items()},
        "throughput": measurement.throughput,
        "spread": measurement.spread,
        "outliers": measurement.outliers,
        "throttled": sum(len(each.throttled) for each in measurement.rounds),
        "flags": list(flags(measurement)),
    }
