"""Comparisons within a result, and the sentences that say what a difference is due to."""

from __future__ import annotations

from collections.abc import Sequence

from stn_infer.benchmarking.report.result import BenchResult, Measurement, Model, flags, model_name
from stn_infer.benchmarking.report.stats import Interval, paired_ratio

#: What the others are compared with: the first of these that was timed.
BASELINES = ("eager", "ort-plain", "ort")

_NAMES = {"grid": "in the sampling grid", "sampling": "in the sampling", "rest": "in the rest of the network"}
_LEAST_PART = 0.05  # of what is saved, for a stage to be named


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
        kernels = result.stages_of_kernels
        told = [_fastest(rows, batch, kernels), _grid(rows, kernels)]
        pairs = (("ort", "ort-fused"), ("eager", "fused"), ("trt", "trt-fused"))
        told += [_pair(rows, before, after, kernels) for before, after in pairs]
        name = model_name(result, model.name, model.case.precision)
        found += [f"{name}: {text}" if name else text for text in told if text]
    return found


def _fastest(rows: Sequence[Measurement], batch: int, kernels: bool) -> str:
    timed = [row for row in rows if row.median_ms is not None]
    against = baseline(rows)
    if against is None or len(timed) < 2:
        return ""
    fastest = min(timed, key=lambda row: row.median_ms or 0.0)
    if fastest is against:
        return f"at batch {batch} nothing is faster than {against.variant}"
    ratio = speed_up(fastest, against)
    if ratio.value <= 1 or (ratio.low is not None and not ratio.excludes_one):
        return f"at batch {batch} no variant can be told apart from {against.variant} for certain"
    text = f"at batch {batch} {fastest.variant} is the fastest: {ratio_text(ratio)} {against.variant}"
    return text + ("" if kernels else _due_to(fastest, against)) + _doubt(fastest, against)


def _grid(rows: Sequence[Measurement], kernels: bool) -> str:
    plain, ours = _timed(rows, "ort-plain"), _timed(rows, "ort")
    shares = [_share(row, "grid") for row in (plain, ours)]
    if plain is None or ours is None or shares[0] is None or shares[1] is None:
        return ""
    ratio = speed_up(ours, plain)
    time = "kernels' time" if kernels else "time"
    if ratio.value < 1.02 or (ratio.low is not None and not ratio.excludes_one):
        return (
            f"ort and ort-plain differ little: computing the sampling grid is {shares[0]:.0%} of ort-plain's {time} "
            f"and {shares[1]:.0%} of ort's"
        )
    return (
        f"ort is {ratio_text(ratio)} ort-plain, because computing the sampling grid took {shares[0]:.0%} of "
        f"ort-plain's {time} and takes {shares[1]:.0%} of ort's{_doubt(ours, plain)}"
    )


def _pair(rows: Sequence[Measurement], before: str, after: str, kernels: bool) -> str:
    """What the plugin library's op does to a runtime, where the shares of both are known, the grid's among them."""
    ours, fused = _timed(rows, before), _timed(rows, after)
    if ours is None or fused is None or _share(ours, "grid") is None or _share(fused, "grid") is None:
        return ""
    ratio = speed_up(fused, ours)
    certain = ratio.low is None or ratio.excludes_one
    verb = f"is {ratio_text(ratio)} {before}" if certain else f"cannot be told apart from {before}"
    values = [(row.shares or {}) if kernels else _stages_ms(row) for row in (ours, fused)]
    was, now = (sum(each.get(stage, 0.0) for stage in ("grid", "sampling")) for each in values)
    if kernels:
        text = (
            f"{after} {verb}: grid and sampler are {was:.0%} of the kernels' time in {before}, "
            f"the plugin's op {now:.0%} in {after}"
        )
    else:
        text = f"{after} {verb}: the plugin's op takes {now:.2g} ms where grid and sampler take {was:.2g} ms"
    return text + _doubt(fused, ours)


def _due_to(fast: Measurement, slow: Measurement) -> str:
    """Which stages a difference comes from, where a profile of both says how their time is shared out."""
    if not fast.shares or not slow.shares:
        return ""
    stages = [stage for stage in _NAMES if stage in fast.shares and stage in slow.shares]
    before, after = (_stages_ms(row, "grid" in stages) for row in (slow, fast))
    saved = {stage: before[stage] - after[stage] for stage in stages}
    total = sum(before.values()) - sum(after.values())
    if total <= 0:
        return ""
    names = _NAMES if "grid" in stages else {**_NAMES, "rest": "in the grid and the rest of the network"}
    parts = [
        f"{saved[stage]:.2g} ms {names[stage]} ({before[stage]:.2g} to {after[stage]:.2g})"
        for stage in sorted(stages, key=lambda stage: -saved[stage])
        if saved[stage] >= _LEAST_PART * total
    ]
    return f"; of {total:.2g} ms saved, {', '.join(parts)}" if parts else ""


def _stages_ms(row: Measurement, grid: bool = True) -> dict[str, float]:
    """A profile's shares of the median that was measured without it, milliseconds."""
    found = {stage: share * (row.median_ms or 0.0) for stage, share in (row.shares or {}).items()}
    if not grid:
        found["rest"] = found.get("rest", 0.0) + found.pop("grid", 0.0)
    return found


def _doubt(*rows: Measurement) -> str:
    """What goes behind a comparison of rows that are not all steady."""
    doubtful = [row.variant for row in rows if flags(row)]
    return f" (to be taken with care: {' and '.join(doubtful)} not steady)" if doubtful else ""


def _timed(rows: Sequence[Measurement], variant: str) -> Measurement | None:
    return next((row for row in rows if row.variant == variant and row.status == "timed"), None)


def _share(row: Measurement | None, stage: str) -> float | None:
    return None if row is None or row.shares is None else row.shares.get(stage)
