"""Comparisons within a result, and the sentences that say what a difference is due to."""

from __future__ import annotations

from collections.abc import Sequence

from stn_infer.benchmarking.judge import flags
from stn_infer.benchmarking.result import BenchResult, Measurement, Model
from stn_infer.benchmarking.stats import Interval, paired_ratio

#: What the others are compared with: the first of these that was timed.
BASELINES = ("eager", "ort-plain", "ort")


def rows_of(result: BenchResult, model: Model, batch_size: int | None = None) -> list[Measurement]:
    """A model's rows, at one batch size or at all."""
    return [
        row
        for row in result.measurements
        if (row.model, row.precision) == (model.name, model.case.precision) and batch_size in (None, row.batch_size)
    ]


def baseline(rows: Sequence[Measurement]) -> Measurement | None:
    """The row that the others of its batch size are compared with."""
    timed = {row.variant: row for row in rows if row.status == "timed"}
    for name in BASELINES:
        if name in timed:
            return timed[name]
    return next(iter(timed.values()), None)


def speed_up(row: Measurement, against: Measurement) -> Interval:
    """How many times faster ``row`` is than ``against``, measured in the same rounds."""
    rounds = {each.round: each.samples_ms for each in row.rounds}
    shared = [(each.samples_ms, rounds[each.round]) for each in against.rounds if each.round in rounds]
    return paired_ratio([slow for slow, _ in shared], [fast for _, fast in shared])


def ratio_text(ratio: Interval) -> str:
    """``3.12x (2.98 to 3.27)``; without bounds where there are too few rounds."""
    text = f"{ratio.value:.2f}x"
    return text if ratio.low is None else f"{text} ({ratio.low:.2f} to {ratio.high:.2f})"


def explanation(result: BenchResult) -> list[str]:
    """A sentence or three for each model: which variant is fastest, and what the difference is due to."""
    found = []
    for model in result.models:
        batch = max(model.case.batch_sizes)
        rows = rows_of(result, model, batch)
        told = [_fastest(rows, batch), _grid(rows), _fused(rows)]
        title = f"{model.name}: " if len(result.models) > 1 else ""
        found += [title + text for text in told if text]
    return found


def _fastest(rows: Sequence[Measurement], batch: int) -> str:
    timed = [row for row in rows if row.median_ms is not None]
    against = baseline(rows)
    if against is None or len(timed) < 2:
        return ""
    fastest = min(timed, key=lambda row: row.median_ms or 0.0)
    if fastest is against:
        return f"at batch {batch} nothing is faster than {against.variant}"
    ratio = speed_up(fastest, against)
    if ratio.low is not None and not ratio.excludes_one:
        return f"at batch {batch} no variant can be told apart from {against.variant} for certain"
    text = f"at batch {batch} {fastest.variant} is the fastest: {ratio_text(ratio)} {against.variant}"
    return text + _doubt(fastest, against)


def _grid(rows: Sequence[Measurement]) -> str:
    plain, ours = _timed(rows, "ort-plain"), _timed(rows, "ort")
    shares = [_share(row, "grid") for row in (plain, ours)]
    if plain is None or ours is None or shares[0] is None or shares[1] is None:
        return ""
    ratio = speed_up(ours, plain)
    if ratio.value < 1.02 or (ratio.low is not None and not ratio.excludes_one):
        return (
            f"ort and ort-plain differ little: computing the sampling grid is {shares[0]:.0%} of ort-plain's time "
            f"and {shares[1]:.0%} of ort's"
        )
    return (
        f"ort is {ratio_text(ratio)} ort-plain, because computing the sampling grid took {shares[0]:.0%} of "
        f"ort-plain's time and takes {shares[1]:.0%} of ort's{_doubt(ours, plain)}"
    )


def _fused(rows: Sequence[Measurement]) -> str:
    ours, fused = _timed(rows, "ort"), _timed(rows, "ort-fused")
    if ours is None or fused is None or not ours.stages or not fused.stages:
        return ""
    before = ours.stages["grid"] + ours.stages["sampling"]
    after = fused.stages["grid"] + fused.stages["sampling"]
    ratio = speed_up(fused, ours)
    certain = ratio.low is None or ratio.excludes_one
    verb = f"is {ratio_text(ratio)} ort" if certain else "cannot be told apart from ort"
    text = f"ort-fused {verb}: the plugin's op takes {after:.2g} ms where grid and GridSample take {before:.2g} ms"
    return text + _doubt(fused, ours)


def _doubt(*rows: Measurement) -> str:
    """What goes behind a comparison of rows that are not all steady."""
    doubtful = [row.variant for row in rows if flags(row)]
    return f" (to be taken with care: {' and '.join(doubtful)} not steady)" if doubtful else ""


def _timed(rows: Sequence[Measurement], variant: str) -> Measurement | None:
    return next((row for row in rows if row.variant == variant and row.status == "timed"), None)


def _share(row: Measurement | None, stage: str) -> float | None:
    if row is None or not row.stages:
        return None
    total = sum(row.stages.values())
    return row.stages[stage] / total if total else None
