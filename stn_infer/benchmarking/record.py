"""One row of a benchmark, the same from the worker process that measures it to the report that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from stn_infer.benchmarking import stats
from stn_infer.metadata import Precision

Status = Literal["timed", "failed", "unavailable"]

#: A model's name and precision.
CaseKey = tuple[str, str]

#: The parts of a call: computing the sampling grid, sampling, and the rest of the network.
STAGES = ("grid", "sampling", "rest")

#: Stage to milliseconds per call; without ``grid`` where its part of the rest is not known.
Stages = Mapping[str, float]

_SPREAD = 0.1  # between rounds
_DRIFT = 0.05  # from the first to the last third of a round
_OUTLIERS = 0.05


@dataclass(frozen=True)
class SamplerPlacement:
    """Where one sampler of a model ran: the node or call, its operator, and the execution provider or device."""

    node: str
    op: str
    place: str


@dataclass(frozen=True)
class Throughput:
    """Concurrent callers in a closed loop: how many calls were completed in how much wall time."""

    callers: int
    calls: int
    wall_s: float


@dataclass(frozen=True)
class Paced:
    """Calls that arrive evenly at ``rate`` per second; each latency counts from when its call was due."""

    rate: float
    latencies_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round measured of one row.

    Attributes:
        round: its number, from 0.
        load_s: opening the variant: reading the file, building the session or the engine.
        first_call_ms: the first call after that; for torch.compile it includes the compilation.
        warmup_calls: calls until times were stable.
        settled: whether they became stable within the limit.
        samples_ms: one value per call, in the order they were made.
        wall_s: wall time of all recorded calls.
        throttled: indices of the samples that were taken while the processor or the GPU was throttled.
        cut_short: whether the row's time limit ended it.
        throughput, paced: figures under load, where asked for.
    """

    round: int
    load_s: float
    first_call_ms: float
    warmup_calls: int
    settled: bool
    samples_ms: tuple[float, ...]
    wall_s: float
    throttled: tuple[int, ...] = ()
    cut_short: bool = False
    throughput: tuple[Throughput, ...] = ()
    paced: tuple[Paced, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One variant of one model at one batch size: a row.

    Attributes:
        model: the name of its case.
        precision: of its case.
        variant: a key of :data:`stn_infer.benchmarking.variants.names.VARIANTS`, or ``package.module:function``.
        batch_size: samples per call.
        status: ``timed``; ``failed``: outputs differ from the reference or a sampler ran elsewhere, so that it has no
            figures; ``unavailable``.
        reason: why it was not timed; empty when it was.
        error: the largest error over its scale in any round; None: never run.
        items: samples per call, which at the end-to-end boundary are more than the batch.
        runs_on: what the runtime reports of itself: version, providers, threads, how copies are made.
        samplers: where each sampler ran.
        stages: milliseconds per call in each stage, by the runtime's profiler. It slows the calls down: use the shares,
            not the sums.
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
    def case_key(self) -> CaseKey:
        """What identifies its model in a result."""
        return self.model, self.precision

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What identifies it in a result: model, precision, batch size, variant."""
        return self.model, self.precision, self.batch_size, self.variant

    def joined(self, later: Measurement) -> Measurement:
        """This row with what a later round found; once it fails, it has no figures left."""
        if self.status != "timed" or later.status != "timed":
            return later if self.status == "timed" else self
        return replace(
            self,
            error=max(self.error or 0.0, later.error or 0.0),
            rounds=(*self.rounds, *later.rounds),
            left_out={**self.left_out, **later.left_out},
        )

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
    def shares(self) -> Stages | None:
        """The stages as shares of their sum; None where they are not known."""
        total = sum(self.stages.values()) if self.stages else 0.0
        return {stage: value / total for stage, value in self.stages.items()} if self.stages and total > 0 else None

    @property
    def throughput(self) -> float | None:
        """Samples per second of one caller, from wall time; None when it was not timed, or a round has no wall time."""
        walls = [each.wall_s for each in self.rounds]
        return len(self.samples_ms) * self.items / sum(walls) if self.samples_ms and min(walls) > 0 else None

    @property
    def spread(self) -> float | None:
        """(slowest - fastest) / median of the rounds' medians; None with fewer than two rounds."""
        medians = [stats.median(samples) for samples in self.by_round if samples]
        return (max(medians) - min(medians)) / stats.median(medians) if len(medians) > 1 else None

    @property
    def drift(self) -> float:
        """The median over the rounds of how much slower the last third of a round is than its first."""
        thirds = [(samples, len(samples) // 3) for samples in self.by_round if len(samples) >= 12]
        changes = [stats.median(samples[-third:]) / stats.median(samples[:third]) - 1 for samples, third in thirds]
        return stats.median(changes) if changes else 0.0

    @cached_property
    def outliers(self) -> int:
        """Samples more than five scaled MADs from the median of their round."""
        return sum(stats.count_outliers(samples) for samples in self.by_round)

    @property
    def throttled(self) -> int:
        """How many samples were taken while the processor or the GPU was throttled."""
        return sum(len(each.throttled) for each in self.rounds)

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Each reason why the measurement is unstable, one phrase each; empty for a stable one."""
        count = len(self.samples_ms)
        if self.status != "timed" or not count:
            return ()
        found = []
        if self.spread is not None and self.spread > _SPREAD:
            found.append(f"rounds differ by {self.spread:.0%}")
        modes = stats.two_modes(self.samples_ms)
        if modes is not None:
            found.append(f"two modes, {modes[0]:.3g} and {modes[1]:.3g} ms")
        elif abs(self.drift) > _DRIFT:
            found.append(f"drifts by {self.drift:+.0%} within a round")
        if self.outliers > _OUTLIERS * count:
            found.append(f"{self.outliers / count:.0%} outliers")
        unsettled = sum(not each.settled for each in self.rounds)
        if unsettled:
            found.append(f"warm-up did not settle in {unsettled} of {len(self.rounds)} rounds")
        if any(each.cut_short for each in self.rounds):
            found.append("cut short by the row's time limit")
        if self.throttled:
            found.append(f"{self.throttled / count:.0%} taken while throttled")
        return tuple(found)

    @property
    def figures(self) -> dict[str, Any]:
        """What follows from the samples, as the JSON file has it beside them."""
        return {
            "samples": len(self.samples_ms),
            "percentiles_ms": {f"p{percent:g}": value for percent, value in self.percentiles.items()},
            "throughput": self.throughput,
            "spread": self.spread,
            "outliers": self.outliers,
            "throttled": self.throttled,
            "flags": list(self.flags),
        }
