"""The sentences that say which variant is fastest, and what a difference is due to."""

from __future__ import annotations

from collections.abc import Sequence

from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.speedup import baseline, reported, speedup_text
from stn_infer.benchmarking.result import BenchResult

_NAMES = {"grid": "in the sampling grid", "sampling": "in the sampling", "rest": "in the rest of the network"}
_LEAST_PART = 0.05  # of what is saved, for a stage to be named


def explanation(result: BenchResult) -> list[str]:
    """Up to five sentences for each model: which variant is fastest, and what the difference is due to."""
    found = []
    for model in result.models:
        batch = max(model.case.batch_sizes)
        rows = result.rows(model, batch)
        kernels = result.stages_of_kernels
        sentences = [_fastest(rows, batch, kernels), _grid(rows, kernels)]
        pairs = (("ort", "ort-fused"), ("eager", "fused"), ("trt", "trt-fused"))
        sentences += [_pair(rows, before, after, kernels) for before, after in pairs]
        name = result.case_name(model.key)
        found += [f"{name}: {text}" if name else text for text in sentences if text]
    return found


def _fastest(rows: Sequence[Measurement], batch: int, kernels: bool) -> str:
    timed = [row for row in rows if row.median_ms is not None]
    against = baseline(rows)
    if against is None or len(timed) < 2:
        return ""
    fastest = min(timed, key=lambda row: row.median_ms or 0.0)
    if fastest is against:
        return f"at batch {batch} nothing is faster than {against.variant}"
    ratio = reported(fastest, against)
    if ratio is None:
        return f"at batch {batch} {fastest.variant} has the lowest median{_doubt(fastest, against)}"
    if ratio.value <= 1 or (ratio.low is not None and not ratio.excludes_one):
        return f"at batch {batch} no variant is significantly faster than {against.variant}"
    text = f"at batch {batch} {fastest.variant} is the fastest: {speedup_text(ratio, against.variant)}"
    return text + ("" if kernels else _due_to(fastest, against)) + _doubt(fastest, against)


def _grid(rows: Sequence[Measurement], kernels: bool) -> str:
    plain, ours = _timed(rows, "ort-plain"), _timed(rows, "ort")
    shares = [_share(row, "grid") for row in (plain, ours)]
    if plain is None or ours is None or shares[0] is None or shares[1] is None:
        return ""
    ratio = reported(ours, plain)
    if ratio is None:
        return ""
    time = "kernels' time" if kernels else "time"
    if ratio.value < 1.02 or (ratio.low is not None and not ratio.excludes_one):
        return (
            f"ort and ort-plain differ little: computing the sampling grid is {shares[0]:.0%} of ort-plain's {time} "
            f"and {shares[1]:.0%} of ort's"
        )
    return (
        f"ort has a {speedup_text(ratio, 'ort-plain')}, because computing the sampling grid takes {shares[0]:.0%} of "
        f"ort-plain's {time} and {shares[1]:.0%} of ort's{_doubt(ours, plain)}"
    )


def _pair(rows: Sequence[Measurement], before: str, after: str, kernels: bool) -> str:
    """What the plugin library's op changes in a runtime, where the shares of both are known, including the grid's."""
    ours, fused = _timed(rows, before), _timed(rows, after)
    if ours is None or fused is None or _share(ours, "grid") is None or _share(fused, "grid") is None:
        return ""
    ratio = reported(fused, ours)
    if ratio is None:
        return ""
    certain = ratio.low is None or ratio.excludes_one
    outcome = f"has a {speedup_text(ratio, before)}" if certain else f"is not significantly faster than {before}"
    values = [(row.shares or {}) if kernels else _stages_ms(row) for row in (ours, fused)]
    was, now = (sum(each.get(stage, 0.0) for stage in ("grid", "sampling")) for each in values)
    if kernels:
        text = (
            f"{after} {outcome}: grid and sampler are {was:.0%} of the kernels' time in {before}, "
            f"the plugin's op {now:.0%} in {after}"
        )
    else:
        text = f"{after} {outcome}: the plugin's op takes {now:.2g} ms where grid and sampler take {was:.2g} ms"
    return text + _doubt(fused, ours)


def _due_to(fast: Measurement, slow: Measurement) -> str:
    """Which stages a difference comes from, where a profile of both has their shares."""
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
    """What is added to a comparison with an unstable measurement."""
    unstable = [row.variant for row in rows if row.flags]
    return f" (low confidence: unstable measurement of {' and '.join(unstable)})" if unstable else ""


def _timed(rows: Sequence[Measurement], variant: str) -> Measurement | None:
    return next((row for row in rows if row.variant == variant and row.status == "timed"), None)


def _share(row: Measurement | None, stage: str) -> float | None:
    return None if row is None or row.shares is None else row.shares.get(stage)
