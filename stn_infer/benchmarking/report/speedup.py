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


def ratio_text(ratio: Interval) -> str:
    """``3.12x (2.98 to 3.27)``: in brackets the 95 % interval; without it where there are too few rounds."""
    text = f"{ratio.value:.2f}x"
    return text if ratio.low is None else f"{text} ({ratio.low:.2f} to {ratio.high:.2f})"


def speedup_text(ratio: Interval, over: str) -> str:
    """``3.12x speedup over eager (95 % CI 2.98 to 3.27)``; without the interval where there are too few rounds."""
    text = f"{ratio.value:.2f}x speedup over {over}"
    return text if ratio.low is None else f"{text} (95 % CI {ratio.low:.2f} to {ratio.high:.2f})"
