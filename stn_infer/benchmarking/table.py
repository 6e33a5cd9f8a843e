"""A benchmark's result for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stn_infer.benchmarking.explain import baseline, explanation, ratio_text, rows_of, speed_up
from stn_infer.benchmarking.judge import flags, notes
from stn_infer.benchmarking.method import BOUNDARIES
from stn_infer.benchmarking.variants import VARIANTS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from stn_infer.benchmarking.result import BenchResult, Measurement, Model

HEADINGS = ("median ms", "p90 ms", "p99 ms", "samples/s", "spread", "error")


def render(result: BenchResult) -> RenderableType:
    """A table a model with one row a variant and batch size, and below it why some were not timed."""
    from rich.console import Group
    from rich.text import Text

    tables = [_table(result, model) for model in result.models]
    return Group(*tables, *(Text(line) for line in lines_below(result)))


def lines_below(result: BenchResult) -> list[str]:
    """What a reader of the figures must know: machine, inputs, boundary, what was not timed, what is not steady."""
    request = result.request
    gpus = "".join(f", {gpu}" for gpu in result.machine.gpus if request.device != "cpu")
    first = result.models[0]
    lines = [
        f"{result.machine.cpu}, {result.machine.cores} cores, {request.threads} threads{gpus}",
        f"{request.method.boundary}: {BOUNDARIES[request.method.boundary]}",
        f"inputs: {first.inputs}; outputs verified against {first.reference} to {first.tolerance:.0e} before timing",
        "spread: how far the rounds' medians lie apart; in brackets the 95 % interval of a ratio",
    ]
    reasons: dict[str, list[str]] = {}
    for row in result.measurements:
        if row.status != "timed" and row.variant not in (names := reasons.setdefault(row.reason, [])):
            names.append(row.variant)
    lines += [f"not timed: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    several = len(result.models) > 1
    for row in result.measurements:
        found = flags(row)
        if found:
            name = f"{row.model}, {row.variant}" if several else row.variant
            lines.append(f"not steady: {name} at batch {row.batch_size}: {'; '.join(found)}")
    lines += [f"note: {note}" for note in notes(result)]
    timed = dict.fromkeys(row.variant for row in result.measurements if row.status == "timed")
    lines += [f"{name}: {VARIANTS.get(name, name)}" for name in timed]
    return lines + explanation(result)


def figures(row: Measurement) -> tuple[str, ...]:
    """A row's figures under :data:`HEADINGS`; its status instead of a median where it has none."""
    if row.median_ms is None:
        return (row.status, "", "", "", "", number(row.error, ".0e"))
    return (
        number(row.median_ms, ".3f"),
        number(row.p90_ms, ".3f"),
        number(row.percentiles.get(99), ".3f"),
        number(row.throughput, ",.0f"),
        number(row.spread, ".0%"),
        number(row.error, ".0e"),
    )


def against(result: BenchResult, model: Model, row: Measurement) -> str:
    """How many times faster a row is than what the model's rows are compared with; empty where that was not timed."""
    name = compared_with(result, model)
    rivals = rows_of(result, model, row.batch_size)
    other = next((each for each in rivals if each.variant == name and each.status == "timed"), None)
    if other is None or row.status != "timed":
        return ""
    return "1x" if other is row else ratio_text(speed_up(row, other))


def compared_with(result: BenchResult, model: Model) -> str:
    """The name of what a model's rows are compared with."""
    other = baseline(rows_of(result, model))
    return other.variant if other else "nothing"


def title(result: BenchResult, model: Model) -> str:
    """A model's name, its precision and the device."""
    precision = "" if model.case.precision == "fp32" else f", {model.case.precision}"
    return f"{model.name}{precision} on {result.request.device}"


def number(value: float | None, form: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _table(result: BenchResult, model: Model) -> Table:
    from rich.table import Table

    table = Table(title=title(result, model), title_justify="left")
    table.add_column("batch", justify="right")
    table.add_column("variant")
    for heading in (*HEADINGS[:4], f"against {compared_with(result, model)}", *HEADINGS[4:]):
        table.add_column(heading, justify="right")
    for batch in model.case.batch_sizes:
        for row in rows_of(result, model, batch):
            if row.status == "unavailable":
                continue
            cells = figures(row)
            mark = " *" if flags(row) else ""
            table.add_row(str(batch), row.variant + mark, *cells[:4], against(result, model, row), *cells[4:])
        table.add_section()
    return table
