"""What a benchmark says in one or two sentences: the best of stn-infer against the best of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.names import is_ours, names
from stn_infer.benchmarking.report.speedup import baseline, bounds_text, digits, reported
from stn_infer.benchmarking.result import BenchResult, Model
from stn_infer.benchmarking.stats import Interval

_QUICK = "A quick look: not for publication."


@dataclass(frozen=True)
class _Duel:
    """The fastest rows of one model, at its largest batch size; None: none was timed."""

    ours: Measurement | None
    theirs: Measurement | None

    @property
    def ratio(self) -> Interval | None:
        """Of both; None where one is missing or the pair is unstable."""
        return reported(self.ours, self.theirs) if self.ours and self.theirs else None


def verdict(result: BenchResult) -> list[str]:
    """One or two sentences on all models, and one more where the benchmark was short."""
    found = verdict_of(result, result.models[0]) if len(result.models) == 1 else _over_models(result)
    return [*found, _QUICK] if result.request.method.quick else found


def verdict_of(result: BenchResult, model: Model) -> list[str]:
    """One or two sentences on one model."""
    batch = max(model.case.batch_sizes)
    rows = result.rows(model, batch)
    duel, known = _duel(rows), names(result, model)
    if duel.ours is None or duel.theirs is None:
        best = duel.ours or duel.theirs
        if best is None:
            return [f"Nothing was timed at batch {batch}."]
        whose = "" if duel.ours else " Nothing of stn-infer was timed."
        return [f"At batch {batch}, {known[best.variant]} is the fastest: {_ms(best)} per call.{whose}"]
    ours = f"stn-infer ({known[duel.ours.variant].removeprefix('stn-infer, ')}, {_ms(duel.ours)} per call)"
    theirs = f"the fastest of the others ({known[duel.theirs.variant]}, {_ms(duel.theirs)})"
    ratio, at = duel.ratio, f"At batch {batch}, {ours}"
    if ratio is None:
        return [f"{at} and {theirs} are unstable, and the rounds too few for an interval: no speedup is given."]
    speedup = f"{digits(ratio.value)}x speedup {_interval(ratio, duel.ours, duel.theirs)}"
    if ratio.low is not None and not ratio.excludes_one:
        return [f"{at} does not differ significantly from {theirs}: {speedup}."]
    if ratio.value <= 1:
        return [f"{at} is slower than {theirs}: {speedup}."]
    return [f"{at} has a {speedup} over {theirs}.", *_over_baseline(rows, duel, known)]


def _over_baseline(rows: Sequence[Measurement], duel: _Duel, known: dict[str, str]) -> list[str]:
    """The speedup over what the tables compare with, where that is another than the fastest of the others."""
    against = baseline(rows)
    if against is None or duel.ours is None or against in (duel.ours, duel.theirs):
        return []
    ratio = reported(duel.ours, against)
    if ratio is None:
        return []
    return [
        f"Over {known[against.variant]}, the speedup is {digits(ratio.value)}x {_interval(ratio, duel.ours, against)}."
    ]


def _over_models(result: BenchResult) -> list[str]:
    """How often stn-infer is significantly faster or slower than the fastest of the others, and by how much."""
    ratios = [
        ratio for model in result.models if (ratio := _duel(result.rows(model, max(model.case.batch_sizes))).ratio)
    ]
    if not ratios:
        return [f"No speedup is given for any of the {len(result.models)} models."]
    if all(ratio.low is None for ratio in ratios):
        faster = [ratio.value for ratio in ratios if ratio.value > 1]
        return [
            f"stn-infer is the fastest for {_of(faster, result)}{_range(faster)}, from too few rounds for intervals."
        ]
    sure = [ratio for ratio in ratios if ratio.excludes_one]
    faster = [ratio.value for ratio in sure if ratio.value > 1]
    slower = sum(ratio.value < 1 for ratio in sure)
    text = f"stn-infer is significantly faster than everything else for {_of(faster, result)}{_range(faster)}"
    return [f"{text}, at the largest batch size; it is significantly slower for {slower or 'none'}."]


def _of(faster: Sequence[float], result: BenchResult) -> str:
    return f"{len(faster)} of {len(result.models)} models"


def _range(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    low, high = f"{digits(min(ratios))}x", f"{digits(max(ratios))}x"
    speedups = f"a speedup of {low}" if low == high else f"speedups of {low} to {high}"
    return f", with {speedups} over the fastest of the others"


def _duel(rows: Sequence[Measurement]) -> _Duel:
    timed = [row for row in rows if row.median_ms is not None]
    ours, theirs = ([row for row in timed if is_ours(row) is mine] for mine in (True, False))
    return _Duel(*(min(side, key=lambda row: row.median_ms or 0.0, default=None) for side in (ours, theirs)))


def _ms(row: Measurement) -> str:
    return milliseconds(row.median_ms or 0.0)


def milliseconds(value: float) -> str:
    """Three significant digits with the unit."""
    return f"{f'{value:#.3g}'.rstrip('.')} ms" if value < 999.5 else f"{value:,.0f} ms"


def _interval(ratio: Interval, *rows: Measurement) -> str:
    """What stands in brackets behind a speedup."""
    doubt = ", low confidence" if any(row.flags for row in rows) else ""
    return f"({bounds_text(ratio) or 'too few rounds for an interval'}{doubt})"
