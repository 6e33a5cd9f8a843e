"""Which of the measured ways to run a model is best: the fastest that meets the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stn_infer.benchmarking.result import BenchResult
from stn_infer.errors import VerificationError
from stn_infer.metadata import PRECISIONS, Precision
from stn_infer.printing import counted

#: Settings whose throughputs differ by less than this share are taken for equally fast.
TIE = 0.03

#: Variant of a benchmark to the backend of ``run`` that runs the file in the same way.
BACKENDS = {
    "ort": "ort",
    "ort-fused": "ort",
    "ort-graph": "ort",
    "ort-fused-graph": "ort",
    "openvino": "openvino",
    "openvino-fused": "openvino",
    "trt": "tensorrt",
    "trt-fused": "tensorrt",
    "trt-rtx": "tensorrt-rtx",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run a model, measured.

    Attributes:
        precision: of the file.
        backend: a backend of ``run``.
        batch_size: samples per call.
        threads: threads inside one operator.
        callers: how many calls were made at once for ``throughput``.
        median_ms: median time of a call of a single caller, milliseconds.
        throughput: samples per second of all callers.
        error: the largest error of an output over its scale, of the conversion or in the runtime.
    """

    precision: Precision
    backend: str
    batch_size: int
    threads: int
    callers: int
    median_ms: float
    throughput: float
    error: float

    def __str__(self) -> str:
        return (
            f"{self.precision} in {self.backend}, batch {self.batch_size}, {counted(self.threads, 'thread')}: "
            f"{self.median_ms:.3g} ms per batch, {self.throughput:.0f} samples/s, error {self.error:.1e}"
        )


@dataclass(frozen=True)
class Bounds:
    """What a setting must keep; None: anything.

    Attributes:
        latency_ms: the largest median time of a call.
        max_error: the largest error.
    """

    latency_ms: float | None = None
    max_error: float | None = None

    def excess(self, setting: Setting) -> float:
        """The larger of the ratios of a setting's figures to their bounds; up to 1 it meets them."""
        ratios = (
            (setting.median_ms, self.latency_ms),
            (setting.error, self.max_error),
        )
        return max((value / bound for value, bound in ratios if bound is not None), default=0.0)

    def __str__(self) -> str:
        named = (("--latency-ms", self.latency_ms), ("--max-error", self.max_error))
        return " and ".join(f"{name} {bound:g}" for name, bound in named if bound is not None)


def choose(settings: Sequence[Setting], bounds: Bounds) -> Setting:
    """The setting with the most samples per second among those that meet the bounds.

    Among settings within :data:`TIE` of it, the one with the highest precision, then the smallest batch and the fewest
    threads.

    Raises:
        VerificationError: none meets the bounds, or there is none; the message names the nearest.
    """
    if not settings:
        raise VerificationError("nothing could be timed, so no file was written")
    meeting = [setting for setting in settings if bounds.excess(setting) <= 1]
    if not meeting:
        nearest = min(settings, key=bounds.excess)
        raise VerificationError(f"nothing meets {bounds}, so no file was written; nearest: {nearest}")
    fastest = max(setting.throughput for setting in meeting)
    return min((setting for setting in meeting if setting.throughput >= fastest * (1 - TIE)), key=_preference)


def _preference(setting: Setting) -> tuple[int, int, int, float]:
    rank = PRECISIONS.index(setting.precision)
    return rank, setting.batch_size, setting.threads, -setting.throughput


def settings_of(
    result: BenchResult, precision: Precision, error: float
) -> tuple[tuple[Setting, ...], tuple[tuple[str, str], ...]]:
    """The settings in a benchmark of one file, and its rows without figures: (backend and batch size, reason).

    The throughput is that of the concurrent callers, where the runtime took them, else that of one.

    Args:
        result: of variants in :data:`BACKENDS`, with at most one number of concurrent callers.
        precision: of the file.
        error: of the file's conversion; a setting's is at least this.
    """
    settings, refused = [], []
    for row in result.measurements:
        backend = BACKENDS[row.variant]
        if row.status != "timed" or row.median_ms is None:
            refused.append((f"{precision} in {backend}, batch {row.batch_size}", row.reason or "it has no samples"))
            continue
        together = [load for each in row.rounds for load in each.throughput]
        wall = sum(load.wall_s for load in together)
        if together and wall > 0:
            callers, throughput = together[0].callers, sum(load.calls for load in together) * row.items / wall
        else:
            callers, throughput = 1, row.throughput or row.items * 1000 / row.median_ms
        settings.append(
            Setting(
                precision=precision,
                backend=backend,
                batch_size=row.batch_size,
                threads=result.request.threads,
                callers=callers,
                median_ms=row.median_ms,
                throughput=throughput,
                error=max(error, row.error or 0.0),
            )
        )
    return tuple(settings), tuple(refused)
