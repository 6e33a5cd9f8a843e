"""What a benchmark is asked to measure, and how: how long, how often, between which boundaries.

benchmarks/METHOD.md says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, get_args

from stn_infer.benchmarking.stats import FEWEST_ROUNDS
from stn_infer.errors import UsageError
from stn_infer.metadata import Precision

#: Is given one line of progress at a time.
Progress = Callable[[str], None]

Boundary = Literal["host", "device", "end-to-end"]
L2 = Literal["warm", "flushed"]

#: Boundary to what lies inside it.
BOUNDARIES: dict[Boundary, str] = {
    "host": "arrays in main memory to arrays in main memory, including copies to and from a GPU",
    "device": "inputs and outputs stay on the device, where the runtime keeps them; on a GPU timed by CUDA events",
    "end-to-end": "image files to a written file of predictions: decode, preprocess, run, write",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """How samples are taken. A row is one variant at one batch size; its figures are totals over all rounds.

    Attributes:
        rounds: fresh processes; each times every row.
        seconds: a row's calls add up to at least this.
        samples: a row has at least this many.
        turns: how often per round the rows of a batch size take turns, in random order.
        warmup_seconds: a warm-up takes at least this, and goes on until times are stable.
        warmup_limit: but at most this.
        row_limit: the most seconds that a row may take per round; a row that it cuts short says so.
        boundary: what a call is, a key of :data:`BOUNDARIES`.
        l2: at the device boundary on a GPU, whether the level-2 cache is flushed before each call.
        concurrency: numbers of concurrent callers to measure throughput with.
        rates: calls per second that arrive evenly, for latencies under that load.
        traffic_seconds: how long each of those lasts, over all rounds.
        seed: of inputs and orders.
        isolate: a fresh process per round; False: all rounds in this process.
        separate: a fresh process per round and variant, whose idle threads may spin, as in a service that runs one
            model; False: the variants of a round share a process, and their idle threads sleep.
    """

    rounds: int = 6
    seconds: float = 3.0
    samples: int = 132
    turns: int = 8
    warmup_seconds: float = 0.2
    warmup_limit: float = 5.0
    row_limit: float = 20.0
    boundary: Boundary = "host"
    l2: L2 = "warm"
    concurrency: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    traffic_seconds: float = 3.0
    seed: int = 0
    isolate: bool = True
    separate: bool = field(default=False, metadata={"since": 3})

    def __post_init__(self) -> None:
        for name in ("rounds", "samples", "turns"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("seconds", "row_limit", "traffic_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is above 0 and finite, not {getattr(self, name)}")
        if self.boundary not in get_args(Boundary):
            raise UsageError(f"a boundary is one of {', '.join(get_args(Boundary))}, not {self.boundary!r}")
        if self.l2 not in get_args(L2):
            raise UsageError(f"l2 is one of {', '.join(get_args(L2))}, not {self.l2!r}")
        if any(callers < 1 for callers in self.concurrency) or any(not 0 < rate < math.inf for rate in self.rates):
            raise UsageError(
                "concurrency is whole numbers of at least 1, and rates are above 0 and finite; "
                f"given {self.concurrency} and {self.rates}"
            )

    @property
    def quick(self) -> bool:
        """Whether it is too short for publication: under 3 s per row, or too few rounds for an interval."""
        return self.seconds < 3 or self.rounds < FEWEST_ROUNDS


@dataclass(frozen=True)
class Case:
    """A model as it was asked for.

    Attributes:
        model: a source, or an ONNX file.
        source: what an ONNX file was exported from, where it was named.
        weights: a checkpoint, where one was named.
        input_shapes: shapes without batch, where they were named.
        precision: of the model's weights and images.
        batch_sizes: samples per call.
        inputs: images, folders or array files that are fed, where they were named.
        tolerance: on each output's error over its scale, where it was named.
    """

    model: str
    _: KW_ONLY
    source: str | None = None
    weights: str | None = None
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    precision: Precision = "fp32"
    batch_sizes: tuple[int, ...] = (1, 64)
    inputs: tuple[str, ...] | None = field(default=None, metadata={"since": 3})
    tolerance: float | None = field(default=None, metadata={"since": 3})


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that was asked for: enough to resume an interrupted run.

    Attributes:
        cases: models.
        variants: names, keys of :data:`stn_infer.benchmarking.variants.names.VARIANTS`.
        device: ``cpu`` or ``cuda:N``.
        threads: threads inside one operator, the same for every runtime.
        tolerance: on each output's error over its scale; None: chosen by the reference.
        method: how.
    """

    cases: tuple[Case, ...]
    variants: tuple[str, ...]
    device: str
    threads: int
    tolerance: float | None
    method: Method


#: ``bench --quick``: seconds rather than minutes, no intervals, not for publication.
QUICK = Method(rounds=3, seconds=0.6, samples=66, turns=4, warmup_seconds=0.1, warmup_limit=1.0, row_limit=3.0)


def check_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes, each once.

    Raises:
        UsageError: there is none, or one is below 1.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        given = ", ".join(map(str, batch_sizes)) or "none"
        raise UsageError(f"batch sizes are whole numbers of at least 1, given {given}")
    return tuple(dict.fromkeys(batch_sizes))
