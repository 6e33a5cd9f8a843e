"""The tables of a report, all text: latencies, under load, where the time goes, cold start, samplers, comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stn_infer.benchmarking import stats
from stn_infer.benchmarking.record import STAGES, Measurement
from stn_infer.benchmarking.report.compare import ResultComparison
from stn_infer.benchmarking.report.speedup import baseline, ratio_text, reported
from stn_infer.benchmarking.result import BenchResult, Model, case_name

#: Columns of words; all others are figures.
_WORDS = frozenset(
    {"variant", "load", "latency from the due time", "in the first round", "sampler", "operator", "execution provider"}
    | {"verdict", "remark"}
)


@dataclass(frozen=True)
class Table:
    """A caption, headings and rows of cells."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def is_figure(self, heading: str) -> bool:
        """Whether a column is aligned to the right."""
        return heading not in _WORDS


def latencies(result: BenchResult, model: Model) -> Table:
    """The main table: a row for each variant and batch size; a star marks an unstable measurement."""
    over = compared_with(result, model)
    headings = ("batch", "variant", "median ms", "p90 ms", "p99 ms", "samples/s", f"speedup over {over} (95 % CI)")
    rows = tuple(
        (
            str(row.batch_size),
            row.variant + (" *" if row.flags else ""),
            row.status if row.median_ms is None else number(row.median_ms, ".3f"),
            number(row.p90_ms, ".3f"),
            number(row.percentiles.get(99), ".3f"),
            number(row.throughput, ",.0f"),
            speedup_over(result, model, row),
            number(row.spread, ".0%"),
            number(row.error, ".0e"),
        )
        for row in result.rows(model)
        if row.status != "unavailable"
    )
    return Table(_title(result, model), (*headings, "spread", "error"), rows)


def compared_with(result: BenchResult, model: Model) -> str:
    """The name of what a model's rows are compared with."""
    other = baseline(result.rows(model))
    return other.variant if other else "nothing"


def speedup_over(result: BenchResult, model: Model, row: Measurement) -> str:
    """A row's speedup over what the model's rows are compared with; empty where one of them was not timed.

    There is no ratio where one is unstable and the rounds are too few for an interval.
    """
    name = compared_with(result, model)
    rows = result.rows(model, row.batch_size)
    other = next((each for each in rows if each.variant == name and each.status == "timed"), None)
    if other is None or row.status != "timed":
        return ""
    if other is row:
        return "1x"
    ratio = reported(row, other)
    return "unstable" if ratio is None else ratio_text(ratio)


def _title(result: BenchResult, model: Model) -> str:
    precision = "" if model.case.precision == "fp32" else f", {model.case.precision}"
    return f"{model.name}{precision} on {result.request.device}"


def beside(result: BenchResult, model: Model) -> list[Table]:
    """The tables beside a model's main one; those without rows are left out."""
    found = [under_load(result, model), stages(result, model), cold_start(result, model), samplers(result, model)]
    return [table for table in found if table.rows]


def under_load(result: BenchResult, model: Model) -> Table:
    """Throughput with several callers, and latencies of calls that arrive evenly."""
    rows = []
    for row in result.rows(model):
        head = (str(row.batch_size), row.variant)
        for callers, rate in throughputs(row).items():
            rows.append((*head, f"{callers} callers", f"{rate:,.0f} samples/s", ""))
        for rate, tail in paced_latencies(row).items():
            text = ", ".join(f"p{percent:g} {value:.2f} ms" for percent, value in tail.items())
            rows.append((*head, f"{rate:g} calls/s", "", text))
    return Table("Under load", ("batch", "variant", "load", "throughput", "latency from the due time"), tuple(rows))


def throughputs(row: Measurement) -> dict[int, float]:
    """Concurrent callers to samples per second, from wall time over all rounds."""
    found: dict[int, list[tuple[int, float]]] = {}
    for each in row.rounds:
        for it in each.throughput:
            found.setdefault(it.callers, []).append((it.calls, it.wall_s))
    return {
        callers: sum(calls for calls, _ in runs) * row.items / sum(wall for _, wall in runs)
        for callers, runs in found.items()
        if sum(wall for _, wall in runs) > 0
    }


def paced_latencies(row: Measurement) -> dict[float, Mapping[float, float]]:
    """Calls per second to the percentiles of their latencies, milliseconds, those that there are samples for."""
    found: dict[float, list[float]] = {}
    for each in row.rounds:
        for it in each.paced:
            found.setdefault(it.rate, []).extend(it.latencies_ms)
    return {rate: stats.percentiles(latencies) for rate, latencies in found.items() if latencies}


def stages(result: BenchResult, model: Model, batch_size: int | None = None) -> Table:
    """Shares of each row's time; where the grid's is not known, it is in the rest."""
    whose = "kernels' time" if result.stages_of_kernels else "time"
    at = f" at batch {batch_size}" if batch_size else ""
    rows = tuple(
        (
            str(row.batch_size),
            row.variant,
            *(f"{row.shares[stage]:.0%}" if stage in row.shares else "in the rest" for stage in STAGES),
        )
        for row in result.rows(model, batch_size)
        if row.shares is not None
    )
    return Table(f"Where the {whose} goes{at}", ("batch", "variant", *STAGES), rows)


def cold_start(result: BenchResult, model: Model) -> Table:
    """Loading and first inferences, round by round."""
    rows = tuple(
        (
            str(row.batch_size),
            row.variant,
            ", ".join(f"{each.load_s:.2f}" for each in row.rounds),
            ", ".join(f"{each.first_call_ms:.1f}" for each in row.rounds),
            row.runs_on.get("compiler", ""),
        )
        for row in result.rows(model)
        if row.rounds
    )
    headings = ("batch", "variant", "load s", "first inference ms", "in the first round")
    return Table("Cold start (load, first inference), by round", headings, rows)


def samplers(result: BenchResult, model: Model) -> Table:
    """Where each sampler ran."""
    rows = tuple(
        (str(row.batch_size), row.variant, sampler.node, sampler.op, sampler.place)
        for row in result.rows(model)
        for sampler in row.samplers
    )
    headings = ("batch", "variant", "sampler", "operator", "execution provider")
    return Table("Execution provider of each GridSample", headings, rows)


def changes(comparison: ResultComparison, caption: str = "") -> Table:
    """The rows of a comparison of two results."""
    ratio = f"B / A, relative to {comparison.relative_to}" if comparison.relative_to else "time B / A"
    cases = {it.case_key for it in comparison.changes}
    rows = []
    for it in comparison.changes:
        interval = it.ratio if it.ratio is not None and it.ratio.low is not None else None
        rows.append(
            (
                str(it.batch_size),
                ", ".join(filter(None, (case_name(cases, it.case_key), it.variant))),
                number(it.before_ms, ".3f"),
                number(it.after_ms, ".3f"),
                number(it.ratio.value if it.ratio else None, ".3f"),
                f"{interval.low:.3f} to {interval.high:.3f}" if interval else "",
                it.verdict,
                it.remark,
            )
        )
    headings = ("batch", "variant", "A ms", "B ms", ratio, "95 % CI", "verdict", "remark")
    return Table(caption, headings, tuple(rows))


def number(value: float | None, form: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)
