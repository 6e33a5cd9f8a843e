"""What one round measured of one row, as a worker process hands it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["timed", "failed", "unavailable"]

#: Milliseconds a call in "sampling", in "rest" and, where it can be told from these, in the computation of the "grid".
Stages = Mapping[str, float]


@dataclass(frozen=True)
class SamplerPlacement:
    """Who ran one sampler of a model: the node or call, its operator, and the provider or device."""

    node: str
    op: str
    place: str


@dataclass(frozen=True)
class Throughput:
    """Callers at once in a closed loop: how many calls were done in how much wall time."""

    callers: int
    calls: int
    wall_s: float


@dataclass(frozen=True)
class Paced:
    """Calls that arrive evenly at ``rate`` a second; each latency counts from when its call was due."""

    rate: float
    latencies_ms: tuple[float, ...]


@dataclass(frozen=True)
class Round:
    """What one round found for one row.

    Attributes:
        round: its number, from 0.
        load_s: opening the variant: reading the file, building the session or the engine.
        first_call_ms: the first call after that; for torch.compile it holds the compilation.
        warmup_calls, settled: until times were stable; False: they were not within the limit.
        samples_ms: one value a call, in the order they were made.
        wall_s: wall time of all recorded calls.
        throttled: indices of the samples that were taken while the processor or the GPU held its clocks back.
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
