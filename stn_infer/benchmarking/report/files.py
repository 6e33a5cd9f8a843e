"""A result as Markdown, CSV and a self-contained HTML page, all derived from the JSON."""

from __future__ import annotations

import csv
import html
import io
from dataclasses import replace
from pathlib import Path

from stn_infer.benchmarking.record import STAGES
from stn_infer.benchmarking.report import tables
from stn_infer.benchmarking.report.compare import ResultComparison
from stn_infer.benchmarking.report.notes import lines_below
from stn_infer.benchmarking.report.tables import Table
from stn_infer.benchmarking.result import BenchResult, Model
from stn_infer.benchmarking.stats import FLOORS
from stn_infer.errors import OutputError
from stn_infer.files import write_atomically
from stn_infer.printing import markdown_cell, shown, spreadsheet_cell

_CSV = (
    *("model", "precision", "device", "boundary", "batch_size", "variant", "status", "reason", "error", "samples"),
    *("samples_per_second", "spread", "outliers", "flags", "load_s", "first_call_ms"),
    *("share_grid", "share_sampling", "share_rest", "left_out"),
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px } caption { text-align: left; font-weight: bold }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:nth-child(2), td:nth-child(2) { text-align: left } svg { max-width: 100%; height: auto }
"""


def write_report(result: BenchResult, folder: Path) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.csv`` and ``report.html`` into ``folder``; their paths.

    Raises:
        MissingDependencyError: matplotlib is missing, which draws the page's plots.
        OutputError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    contents = {"report.md": markdown(result), "report.csv": as_csv(result), "report.html": page(result)}
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return tuple(folder / name for name in contents)


def markdown(result: BenchResult) -> str:
    """The tables of each model, and what a reader must know below."""
    parts = ["# Benchmark\n"]
    for model in result.models:
        main = tables.latencies(result, model)
        parts += [f"## {markdown_cell(main.caption)}\n", *_markdown_table(main), ""]
        for table in tables.beside(result, model):
            parts += [f"{markdown_cell(table.caption)}:\n", *_markdown_table(table), ""]
        parts += [*map(markdown_cell, _built(model)), ""]
    parts += [f"- {markdown_cell(line)}" for line in lines_below(result)]
    parts += ["", *map(markdown_cell, _origin(result))]
    return "\n".join(parts) + "\n"


def comparison_markdown(comparison: ResultComparison) -> str:
    """The rows of a comparison as a Markdown table, with its warnings."""
    lines = _markdown_table(tables.changes(comparison))
    return "\n".join([*lines, "", *(f"- warning: {markdown_cell(text)}" for text in comparison.warnings)]) + "\n"


def _markdown_table(table: Table) -> list[str]:
    return [
        "| " + " | ".join(table.headings) + " |",
        "|" + "|".join("---:" if table.is_figure(name) else "---" for name in table.headings) + "|",
        *("| " + " | ".join(map(markdown_cell, row)) + " |" for row in table.rows),
    ]


def _built(model: Model) -> list[str]:
    made = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in model.build_s.items())
    return [f"Files written before timing: {made}."] if made else []


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


def page(result: BenchResult) -> str:
    """One HTML page that needs no other file: plots as SVG, tables, cold start, samplers.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    from stn_infer.benchmarking.report.plots import plots

    parts = [f"<h1>Benchmark: {html.escape(shown(', '.join(model.name for model in result.models)))}</h1>"]
    parts += ["<ul>", *(f"<li>{html.escape(shown(line))}</li>" for line in lines_below(result)), "</ul>"]
    for model in result.models:
        main = tables.latencies(result, model)
        parts += [f"<h2>{html.escape(shown(main.caption))}</h2>", _html_table(replace(main, caption=""))]
        parts += [f"<figure>{svg}</figure>" for svg in plots(result, model)]
        parts += [_html_table(table) for table in tables.beside(result, model)]
        parts += [f"<p>{html.escape(shown(line))}</p>" for line in _built(model)]
    parts += [f"<p>{html.escape(shown(line))}</p>" for line in _origin(result)]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Benchmark</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.headings)
    lines = ["<tr>" + "".join(f"<td>{html.escape(shown(cell))}</td>" for cell in row) + "</tr>" for row in table.rows]
    title = f"<caption>{html.escape(shown(table.caption))}</caption>" if table.caption else ""
    return f"<table>{title}<tr>{head}</tr>\n" + "\n".join(lines) + "</table>"


def _origin(result: BenchResult) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    command = f"Made {result.created} by `{result.command}`." if result.command else f"Made {result.created}."
    settings = ", ".join(f"{name}: {value}" for name, value in result.settings.items())
    return [command, f"Versions: {versions}. Settings: {settings}. System: {result.machine.system}."]
