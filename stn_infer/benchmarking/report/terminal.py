"""A benchmark's result for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stn_infer.benchmarking.report import tables
from stn_infer.benchmarking.report.notes import lines_below
from stn_infer.printing import shown
from stn_infer.text_tables import Table

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
    """A table for rich's console; with ``sections``, an empty line between batch sizes."""
    return Table(
        title=table.caption,
        headings=table.headings,
        rows=table.rows,
        numbers=frozenset(index for index, heading in enumerate(table.headings) if table.is_figure(heading)),
        text=table.headings[-1] == "remark",
        optional=("p99 ms", "error", "spread", "p90 ms", "samples/s", "95 % CI"),
        sections=sections,
    )
