"""What a benchmark found, and how it is written down: JSON with every raw sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from stn_infer.benchmarking.machine import Machine
from stn_infer.benchmarking.stats import median, p90
from stn_infer.benchmarking.timing import Plan

SCHEMA_VERSION = 1

Status = Literal["timed", "failed", "unavailable"]


@dataclass(frozen=True)
class Measurement:
    """One variant at one batch size, from arrays in main memory to arrays in main memory.

    Attributes:
        variant: its name, a key of :data:`stn_infer.benchmarking.variants.VARIANTS`.
        batch_size: samples a call.
        status: ``timed``; ``failed``: its outputs differ from the reference, so it was not timed; ``unavailable``.
        reason: why it was not timed; empty when it was.
        error: the largest difference from the reference over the largest magnitude in it (or 1); None: never run.
        samples_ms: one value a call, in the order they were made.
        warmup_calls, settled: see :class:`stn_infer.benchmarking.timing.Timing`.
        runs_on: what the backend says of itself: runtime, version, providers, threads.
    """

    variant: str
    batch_size: int
    status: Status
    reason: str = ""
    error: float | None = None
    samples_ms: tuple[float, ...] = ()
    warmup_calls: int = 0
    settled: bool = False
    runs_on: tuple[tuple[str, str], ...] = ()

    @property
    def median_ms(self) -> float | None:
        """Median time of a call, milliseconds; None when it was not timed."""
        return median(self.samples_ms) if self.samples_ms else None

    @property
    def p90_ms(self) -> float | None:
        """90th percentile by nearest rank; None with fewer than 64 samples."""
        return p90(self.samples_ms) if self.samples_ms else None

    @property
    def throughput(self) -> float | None:
        """Samples a second at the median time; None when it was not timed."""
        return None if self.median_ms is None else self.batch_size / self.median_ms * 1e3


@dataclass(frozen=True)
class BenchResult:
    """A benchmark of one model.

    Attributes:
        model: its name.
        device: where all variants ran.
        inputs: what was fed, e.g. ``handwritten digits``.
        reference: ``float64`` or ``float32``, the type of the eager run that outputs were verified against.
        tolerance: on each output's error over its scale.
        plan: how samples were taken.
        machine, versions: where.
        cpu_share_in_use: of all cores, by others, just before each batch size was measured; the largest.
        measurements: one for each variant and batch size.
        notes: what a reader must know, such as that the machine was busy.
        command: the command line that made it; empty when it was made through the Python API.
    """

    model: str
    device: str
    inputs: str
    reference: str
    tolerance: float
    plan: Plan
    machine: Machine
    versions: Mapping[str, str]
    cpu_share_in_use: float
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    command: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether every variant that could be run gave the reference's outputs."""
        return all(measurement.status != "failed" for measurement in self.measurements)

    def get(self, variant: str, batch_size: int) -> Measurement:
        """The measurement of ``variant`` at ``batch_size``.

        Raises:
            KeyError: it was not asked for.
        """
        for measurement in self.measurements:
            if (measurement.variant, measurement.batch_size) == (variant, batch_size):
                return measurement
        raise KeyError(f"{variant} at batch size {batch_size}")

    def to_json(self) -> str:
        """All of it as JSON, with the figures that follow from the samples beside them; times in milliseconds."""
        fields = asdict(self)
        fields["measurements"] = [
            {
                **asdict(measurement),
                "runs_on": dict(measurement.runs_on),
                "median_ms": measurement.median_ms,
                "p90_ms": measurement.p90_ms,
                "throughput": measurement.throughput,
            }
            for measurement in self.measurements
        ]
        return json.dumps({"schema_version": fields.pop("schema_version"), **fields}, indent=1) + "\n"
