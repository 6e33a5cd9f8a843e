"""A result as Markdown, CSV and a self-contained HTML page: all three are derived from the JSON, nothing is typed."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from stn_infer.benchmarking.report import details, table
from stn_infer.benchmarking.report.compare import Comparison
from stn_infer.benchmarking.report.explain import rows_of
from stn_infer.benchmarking.report.result import BenchResult, Model, case_name, flags
from stn_infer.benchmarking.report.stats import FLOORS
from stn_infer.errors import OutputError
from stn_infer.files import write_atomically

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
        headings, rows = _cells(result, model)
        parts.append(f"## {table.title(result, model)}\n")
        parts += [*_markdown_table(headings, rows), ""]
        for caption, found in _beside(result, model):
            parts += [f"{caption}:\n", *_markdown_table(*found), ""]
        parts += [*_built(model), ""]
    parts += [f"- {line}" for line in table.lines_below(result)]
    parts += ["", *_origin(result)]
    return "\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join("---" if name == "variant" else "---:" for name in headings) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]


def _beside(result: BenchResult, model: Model) -> list[tuple[str, details.Table]]:
    """Captions and tables beside a model's main one; those without rows are left out."""
    whose = "kernels' time" if result.stages_of_kernels else "time"
    found = [
        ("Under load", details.under_load(result, model)),
        (
            f"Where the {whose} goes",
            details.stages(result, model),
        ),
        ("Cold: before anything is warm, by round", details.cold(result, model)),
        ("Who ran the samplers", details.samplers(result, model)),
    ]
    return [(caption, it) for caption, it in found if it[1]]


def _built(model: Model) -> list[str]:
    made = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in model.build_s.items())
    return [f"Files made beforehand: {made}."] if made else []


def as_csv(result: BenchResult) -> str:
    """One line a row, figures in full; milliseconds, samples a second; figures under load in columns of their own."""
    percentiles = [f"p{percent:g}_ms" for percent in FLOORS]
    method = result.request.method
    load = [f"samples_per_second_{callers}_callers" for callers in method.concurrency]
    load += [f"p{percent:g}_ms_at_{rate:g}_per_s" for rate in method.rates for percent in FLOORS]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_CSV[:10], *percentiles, *_CSV[10:], *load])
    for row in result.measurements:
        first = row.rounds[0] if row.rounds else None
        shares, throughputs, paced = row.shares or {}, details.throughputs(row), details.paced_latencies(row)
        writer.writerow(
            [row.model, row.precision, result.request.device, result.request.method.boundary, row.batch_size]
            + [row.variant, row.status, row.reason, row.error, len(row.samples_ms)]
            + [row.percentiles.get(percent) for percent in FLOORS]
            + [row.throughput, row.spread, row.outliers if row.rounds else None, "; ".join(flags(row))]
            + [first.load_s if first else None, first.first_call_ms if first else None]
            + [shares.get(stage) for stage in details.STAGES]
            + ["; ".join(f"{what}: {reason}" for what, reason in row.left_out.items())]
            + [throughputs.get(callers) for callers in method.concurrency]
            + [paced.get(rate, {}).get(percent) for rate in method.rates for percent in FLOORS]
        )
    return out.getvalue()


def page(result: BenchResult) -> str:
    """One HTML page that needs no other file: plots as SVG, tables, cold figures, samplers.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    from stn_infer.benchmarking.report.plots import plots

    parts = [f"<h1>Benchmark: {html.escape(', '.join(model.name for model in result.models))}</h1>"]
    parts += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in table.lines_below(result)), "</ul>"]
    for model in result.models:
        parts.append(f"<h2>{html.escape(table.title(result, model))}</h2>")
        parts.append(_html_table(*_cells(result, model)))
        parts += [f"<figure>{svg}</figure>" for svg in plots(result, model)]
        parts += [_html_table(*found, caption=caption) for caption, found in _beside(result, model)]
        parts += [f"<p>{html.escape(line)}</p>" for line in _built(model)]
    parts += [f"<p>{html.escape(line)}</p>" for line in _origin(result)]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Benchmark</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def comparison_markdown(comparison: Comparison) -> str:
    """The rows of a comparison as a Markdown table, with its warnings."""
    what = f"B / A, relative to {comparison.relative_to}" if comparison.relative_to else "time B / A"
    lines = [f"| batch | variant | A ms | B ms | {what} | verdict | |", "|---:|---|---:|---:|---:|---|---|"]
    cases = {(it.model, it.precision) for it in comparison.changes}
    for it in comparison.changes:
        ratio = "" if it.ratio is None else f"{it.ratio.value:.3f}"
        if it.ratio is not None and it.ratio.low is not None:
            ratio += f" ({it.ratio.low:.3f} to {it.ratio.high:.3f})"
        case = case_name(cases, it.model, it.precision)
        name = f"{case}, {it.variant}" if case else it.variant
        times = [table.number(value, ".3f") for value in (it.before_ms, it.after_ms)]
        lines.append(f"| {it.batch_size} | {name} | {' | '.join(times)} | {ratio} | {it.verdict} | {it.remark} |")
    return "\n".join([*lines, "", *(f"- warning: {text}" for text in comparison.warnings)]) + "\n"


def _cells(result: BenchResult, model: Model) -> tuple[list[str], list[list[str]]]:
    against = f"against {table.compared_with(result, model)}"
    headings = ["batch", "variant", *table.HEADINGS[:4], against, *table.HEADINGS[4:]]
    rows = []
    for row in rows_of(result, model):
        if row.status == "unavailable":
            continue
        cells = table.figures(row)
        name = row.variant + (" \\*" if flags(row) else "")
        rows.append([str(row.batch_size), name, *cells[:4], table.against(result, model, row), *cells[4:]])
    return headings, rows


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell.replace(chr(92), ''))}</td>" for cell in row) + "</tr>" for row in rows
    ]
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<tr>{head}</tr>\n" + "\n".join(lines) + "</table>"


def _origin(result: BenchResult) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    command = f"Made {result.created} by `{result.command}`." if result.command else f"Made {result.created}."
    settings = ", ".join(f"{name}: {value}" for name, value in result.settings.items())
    return [command, f"Versions: {versions}. Settings: {settings}. System: {result.machine.system}."]
