"""A benchmark's result for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stn_infer.benchmarking.report.details import left_out, stages, under_load
from stn_infer.benchmarking.report.explain import baseline, explanation, ratio_text, rows_of, speed_up
from stn_infer.benchmarking.report.notes import notes
from stn_infer.benchmarking.report.result import flags, row_name
from stn_infer.benchmarking.report.stats import FLOORS
from stn_infer.benchmarking.request import BOUNDARIES
from stn_infer.benchmarking.variants.names import VARIANTS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from stn_infer.benchmarking.report.result import BenchResult, Measurement, Model

HEADINGS = ("median ms", "p90 ms", "p99 ms", "samples/s", "spread", "error")


def render(result: BenchResult) -> RenderableType:
    """A table a model with one row a variant and batch size, what was asked for besides, and below what to know."""
    from rich.console import Group
    from rich.text import Text

    tables = []
    time = "kernels' time" if result.stages_of_kernels else "time"
    for model in result.models:
        tables.append(_table(result, model))
        largest = str(max(model.case.batch_sizes))
        headings, rows = stages(result, model)
        found = [
            ("under load", under_load(result, model)),
            (f"where the {time} goes at batch {largest}", (headings, [row for row in rows if row[0] == largest])),
        ]
        tables += [_small_table(caption, *it) for caption, it in found if it[1]]
    return Group(*tables, *(Text(line) for line in lines_below(result)))


def _small_table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=caption, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def lines_below(result: BenchResult) -> list[str]:
    """What a reader of the figures must know: machine, inputs, boundary, what was not timed, what is not steady."""
    request = result.request
    gpus = "".join(f", {gpu}" for gpu in result.machine.gpus if request.device != "cpu")
    lines = [
        f"{result.machine.cpu}, {result.machine.cores} cores, {request.threads} threads{gpus}",
        f"{request.method.boundary}: {BOUNDARIES[request.method.boundary]}",
        *_verified(result),
        "spread: how far the rounds' medians lie apart; in brackets the 95 % interval of a ratio",
    ]
    if any(row.samples_ms and 99 not in row.percentiles for row in result.measurements):
        floors = " and ".join(f"p{percent:g} {FLOORS[percent]}" for percent in (90, 99))
        lines.append(f"a percentile is given from so many samples on: {floors}")
    lines += left_out(result)
    for row in result.measurements:
        found = flags(row)
        if found:
            lines.append(f"not steady: {row_name(result, row)} at batch {row.batch_size}: {'; '.join(found)}")
    lines += [f"note: {note}" for note in notes(result)]
    timed = dict.fromkeys(row.variant for row in result.measurements if row.status == "timed")
    lines += [f"{name}: {VARIANTS.get(name, name)}" for name in timed]
    return lines + explanation(result)


def _verified(result: BenchResult) -> list[str]:
    """What was fed, and what outputs were compared with: a line for all models that are alike in that."""
    found: dict[str, list[str]] = {}
    for model in result.models:
        text = (
            f"inputs: {model.inputs}; outputs verified against {model.reference} to {model.tolerance:.0e} before timing"
        )
        precision = "" if model.case.precision == "fp32" else f" in {model.case.precision}"
        found.setdefault(text, []).append(f"{model.name}{precision}")
    return [text if len(found) == 1 else f"{', '.join(names)}: {text}" for text, names in found.items()]


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
