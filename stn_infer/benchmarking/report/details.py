"""The tables beside the main one: under load, where the time goes, cold, samplers; and what was left out.

A table is its headings and its rows, all text.
"""

from __future__ import annotations

from collections.abc import Mapping

from stn_infer.benchmarking.report import stats
from stn_infer.benchmarking.report.explain import rows_of
from stn_infer.benchmarking.report.result import BenchResult, Measurement, Model, row_name

Table = tuple[list[str], list[list[str]]]

STAGES = ("grid", "sampling", "rest")


def under_load(result: BenchResult, model: Model) -> Table:
    """Throughput with several callers, and latencies of calls that arrive evenly."""
    rows = []
    for row in rows_of(result, model):
        head = [str(row.batch_size), row.variant]
        for callers, rate in throughputs(row).items():
            rows.append([*head, f"{callers} callers", f"{rate:,.0f} samples/s", ""])
        for rate, tail in paced_latencies(row).items():
            text = ", ".join(f"p{percent:g} {value:.2f} ms" for percent, value in tail.items())
            rows.append([*head, f"{rate:g} calls/s", "", text])
    return ["batch", "variant", "load", "throughput", "latency from the due time"], rows


def throughputs(row: Measurement) -> dict[int, float]:
    """Callers at once to samples a second, from wall time over all rounds."""
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
    """Calls a second to the percentiles of their latencies, milliseconds, those that there are samples for."""
    found: dict[float, list[float]] = {}
    for each in row.rounds:
        for it in each.paced:
            found.setdefault(it.rate, []).extend(it.latencies_ms)
    return {rate: stats.percentiles(latencies) for rate, latencies in found.items() if latencies}


def stages(result: BenchResult, model: Model) -> Table:
    """Shares of each row's time; of a row that cannot tell the grid's, that is in the rest."""
    rows = []
    for row in rows_of(result, model):
        shares = row.shares
        if shares is not None:
            cells = [f"{shares[stage]:.0%}" if stage in shares else "in the rest" for stage in STAGES]
            rows.append([str(row.batch_size), row.variant, *cells])
    return ["batch", "variant", *STAGES], rows


def cold(result: BenchResult, model: Model) -> Table:
    """Opening and first calls, round by round."""
    rows = [
        [
            str(row.batch_size),
            row.variant,
            ", ".join(f"{each.load_s:.2f}" for each in row.rounds),
            ", ".join(f"{each.first_call_ms:.1f}" for each in row.rounds),
            row.runs_on.get("compiler", ""),
        ]
        for row in rows_of(result, model)
        if row.rounds
    ]
    return ["batch", "variant", "load s", "first call ms", "in the first round"], rows


def samplers(result: BenchResult, model: Model) -> Table:
    """Who ran each sampler."""
    rows = [
        [str(row.batch_size), row.variant, sampler.node, sampler.op, sampler.place]
        for row in rows_of(result, model)
        for sampler in row.samplers
    ]
    return ["batch", "variant", "sampler", "operator", "ran on"], rows


def left_out(result: BenchResult) -> list[str]:
    """What was not timed or not measured, a line a reason: never without a word."""
    lines = [f"not timed: {', '.join(names)}: {reason}" for reason, names in _untimed(result).items()]
    missing: dict[tuple[str, str], list[Measurement]] = {}
    for row in result.measurements:
        if row.status == "timed":
            for what, reason in row.left_out.items():
                missing.setdefault((what, reason), []).append(row)
    for (what, reason), rows in missing.items():
        named = "; ".join(dict.fromkeys(_called(result, row) for row in rows))
        lines.append(f"without {what}: {named}: {reason}")
    return lines


def _untimed(result: BenchResult) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for row in result.measurements:
        if row.status != "timed":
            names = reasons.setdefault(row.reason, [])
            name = _called(result, row)
            if name not in names:
                names.append(name)
    return reasons


def _called(result: BenchResult, row: Measurement) -> str:
    """A row's variant; with its model and batch size where other rows of the variant fared otherwise."""
    all_of_it = [other for other in result.measurements if other.variant == row.variant]
    fates = {other.key: (other.status, other.reason, other.left_out) for other in all_of_it}
    mine = [other for other in all_of_it if (other.model, other.precision) == (row.model, row.precision)]
    if all(fate == fates[row.key] for fate in fates.values()):
        return row.variant
    if all(fates[other.key] == fates[row.key] for other in mine):
        return row_name(result, row)
    return f"{row_name(result, row)} at batch {row.batch_size}"
