"""How many times faster one row is than another, measured in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence

from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.stats import Interval, paired_ratio

#: What the others are compared with: the first of these that was timed.
BASELINES = ("eager", "ort-plain", "ort")


def baseline(rows: Sequence[Measurement]) -> Measurement | None:
    """The row that the others of its batch size are compared with."""
    timed = {row.variant: row for row in rows if row.status == "timed"}
    return next((timed[name] for name in (*BASELINES, *timed) if name in timed), None)


def speedup(row: Measurement, over: Measurement) -> Interval:
    """time of ``over`` / time of ``row``, in the rounds that both have."""
    rounds = {each.round: each.samples_ms for each in row.rounds}
    shared = [(each.samples_ms, rounds[each.round]) for each in over.rounds if each.round in rounds]
    return paired_ratio([slow for slow, _ in shared], [fast for _, fast in shared])


def reported(row: Measurement, over: Measurement) -> Interval | None:
    """The speedup that reports give; None where a row is unstable and the rounds are too few for an interval."""
    ratio = speedup(row, over)
    return None if ratio.low is None and (row.flags or over.flags) else ratio


def ratio_text(ratio: Interval) -> str:
    """``3.12x (2.98 to 3.27)``: in brackets the 95 % interval; without it where there are too few rounds."""
    text = f"{digits(ratio.value)}x"
    return text if ratio.low is None else f"{text} ({_bounds(ratio)})"


def speedup_text(ratio: Interval, over: str) -> str:
    """``3.12x speedup over eager (95 % CI 2.98 to 3.27)``; without the interval where there are too few rounds."""
    text = f"{digits(ratio.value)}x speedup over {over}"
    return text if ratio.low is None else f"{text} ({bounds_text(ratio)})"


def bounds_text(ratio: Interval) -> str:
    """``95 % CI 2.98 to 3.27``; empty where there are too few rounds."""
    return f"95 % CI {_bounds(ratio)}" if ratio.low is not None else ""


def digits(value: float) -> str:
    """Three digits of a ratio, at most two of them after the point."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _bounds(ratio: Interval) -> str:
    assert ratio.low is not None and ratio.high is not None
    return f"{digits(ratio.low)} to {digits(ratio.high)}"
