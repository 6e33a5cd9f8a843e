"""A result as Markdown with its chart, as CSV and as an HTML page, all derived from the JSON."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from stn_infer.benchmarking.record import STAGES
from stn_infer.benchmarking.report import tables
from stn_infer.benchmarking.report.chart import as_file
from stn_infer.benchmarking.report.compare import ResultComparison
from stn_infer.benchmarking.report.notes import lines_below
from stn_infer.benchmarking.report.page import built, chart_label, charted, environment, page, title
from stn_infer.benchmarking.report.tables import Table
from stn_infer.benchmarking.report.verdict import verdict
from stn_infer.benchmarking.result import BenchResult
from stn_infer.benchmarking.stats import FLOORS
from stn_infer.errors import OutputError
from stn_infer.files import write_atomically
from stn_infer.printing import markdown_cell, shown, spreadsheet_cell

CHART = "speedup.svg"

_CSV = (
    *("model", "precision", "device", "boundary", "batch_size", "variant", "status", "reason", "error", "samples"),
    *("samples_per_second", "spread", "outliers", "flags", "load_s", "first_call_ms"),
    *("share_grid", "share_sampling", "share_rest", "left_out"),
)


def write_report(result: BenchResult, folder: Path) -> tuple[Path, ...]:
    """Write ``report.html``, ``report.csv``, ``report.md`` and its chart ``speedup.svg`` into ``folder``; their paths.

    Raises:
        MissingDependencyError: matplotlib is missing, which draws the page's plots.
        OutputError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    contents = {"report.md": markdown(result), "report.csv": as_csv(result), "report.html": page(result)}
    if charted(result):
        contents[CHART] = as_file(charted(result), chart_label(result))
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return tuple(folder / name for name in contents)


def markdown(result: BenchResult) -> str:
    """The verdict and the chart, the tables of each model, where and how it was measured; the notes are folded away."""
    parts = [f"# {markdown_cell(title(result))}\n", *map(markdown_cell, verdict(result)), ""]
    if charted(result):
        parts += [f"![{markdown_cell(chart_label(result))}]({CHART})", ""]
    for model in result.models:
        main = tables.latencies(result, model)
        parts += [f"## {markdown_cell(main.caption)}\n", *_markdown_table(main), ""]
        for table in tables.beside(result, model):
            parts += [f"{markdown_cell(table.caption)}:\n", *_markdown_table(table), ""]
        parts += [*map(markdown_cell, built(model)), ""]
    parts += ["## Environment\n", *(f"- {name}: {markdown_cell(value)}" for name, value in environment(result)), ""]
    if result.command:
        parts += ["## Command\n", *(f"    {line}" for line in shown(result.command).splitlines()), ""]
    parts += ["<details><summary>Notes</summary>\n", *(f"- {markdown_cell(line)}" for line in lines_below(result))]
    return "\n".join([*parts, "\n</details>"]) + "\n"


def comparison_markdown(comparison: ResultComparison) -> str:
    """The rows of a comparison as a Markdown table, with its warnings."""
    lines = _markdown_table(tables.changes(comparison))
    return "\n".join([*lines, "", *(f"- warning: {markdown_cell(text)}" for text in comparison.warnings)]) + "\n"


def _markdown_table(table: Table) -> list[str]:
    return [
        "| " + " | ".join(map(markdown_cell, table.headings)) + " |",
        "|" + "|".join("---:" if table.is_figure(name) else "---" for name in table.headings) + "|",
        *("| " + " | ".join(map(markdown_cell, row)) + " |" for row in table.rows),
    ]


def as_csv(result: BenchResult) -> str:
    """One line per row, figures in full: milliseconds, samples per second; a column for each figure under load."""
    percentiles = [f"p{percent:g}_ms" for percent in FLOORS]
    method = result.request.method
    load = [f"samples_per_second_{callers}_callers" for callers in method.concurrency]
    load += [f"p{percent:g}_ms_at_{rate:g}_per_s" for rate in method.rates for percent in FLOORS]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_CSV[:10], *percentiles, *_CSV[10:], *load])
    for row in result.measurements:
        first = row.rounds[0] if row.rounds else None
        shares, throughputs, paced = row.shares or {}, tables.throughputs(row), tables.paced_latencies(row)
        cells: list[object] = (
            [row.model, row.precision, result.request.device, result.request.method.boundary, row.batch_size]
            + [row.variant, row.status, row.reason, row.error, len(row.samples_ms)]
            + [row.percentiles.get(percent) for percent in FLOORS]
            + [row.throughput, row.spread, row.outliers if row.rounds else None, "; ".join(row.flags)]
            + [first.load_s if first else None, first.first_call_ms if first else None]
            + [shares.get(stage) for stage in STAGES]
            + ["; ".join(f"{what}: {reason}" for what, reason in row.left_out.items())]
            + [throughputs.get(callers) for callers in method.concurrency]
            + [paced.get(rate, {}).get(percent) for rate in method.rates for percent in FLOORS]
        )
        writer.writerow([spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()
