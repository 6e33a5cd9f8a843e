"""A benchmark's result for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stn_infer.benchmarking.report import tables
from stn_infer.benchmarking.report.notes import lines_below
from stn_infer.printing import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stn_infer.benchmarking.result import BenchResult


def render(result: BenchResult) -> RenderableType:
    """For each model a table with one row per variant and batch size, what else was asked for; below, what to know."""
    from rich.console import Group
    from rich.text import Text

    found: list[RenderableType] = []
    for model in result.models:
        found.append(as_rich(tables.latencies(result, model), sections=True))
        beside = (tables.under_load(result, model), tables.stages(result, model, max(model.case.batch_sizes)))
        found += [as_rich(table) for table in beside if table.rows]
    return Group(*found, *(Text(shown(line)) for line in lines_below(result)))


def as_rich(table: tables.Table, *, sections: bool = False) -> RenderableType:
    """A table for rich's console; with ``sections``, a line between batch sizes."""
    from rich.table import Table
    from rich.text import Text

    rendered = Table(title=Text(shown(table.caption), "table.title"), title_justify="left")
    for heading in table.headings:
        rendered.add_column(Text(shown(heading)), justify="right" if table.is_figure(heading) else "left")
    for row, after in zip(table.rows, (*table.rows[1:], None), strict=False):
        rendered.add_row(
            *(Text(shown(cell)) for cell in row), end_section=sections and (after is None or after[0] != row[0])
        )
    return rendered
