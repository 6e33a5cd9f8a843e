"""``stn-infer bench compare`` and ``bench report``: what is done with results that ``bench -o`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stn_infer.cli import options

RESULT = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("before", metavar="A.json", type=RESULT)
@click.argument("after", metavar="B.json", type=RESULT)
@click.option(
    "--threshold", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Smallest change flagged, in %."
)
@click.option(
    "--relative-to",
    metavar="VARIANT",
    help="Compare ratios to this variant, which another machine or hour leaves alone.",
)
@click.pass_context
def compare(ctx: click.Context, before: Path, after: Path, threshold: float, relative_to: str | None) -> None:
    """Compare two results row by row; exit code 1 when B is slower.

    A row is slower when the 95 % interval of time B / time A lies above 1 and the change is above the threshold, or
    when it was timed in A and could not be in B.
    """
    from rich.table import Table

    from stn_infer.benchmarking.report.codec import read_result
    from stn_infer.benchmarking.report.compare import compare as compare_results
    from stn_infer.benchmarking.report.result import case_name

    found = compare_results(read_result(before), read_result(after), threshold=threshold / 100, relative_to=relative_to)
    table = Table(title=f"{before.name} (A) and {after.name} (B)", title_justify="left")
    cases = {(change.model, change.precision) for change in found.changes}
    for heading in ("batch", "variant", "A ms", "B ms", "B / A", "95 % interval", "", "remark"):
        table.add_column(heading, justify="left" if heading in ("variant", "", "remark") else "right")
    for it in found.changes:
        times = ["" if value is None else f"{value:.3f}" for value in (it.before_ms, it.after_ms)]
        ratio = "" if it.ratio is None else f"{it.ratio.value:.3f}"
        bounds = "" if it.ratio is None or it.ratio.low is None else f"{it.ratio.low:.3f} to {it.ratio.high:.3f}"
        case = case_name(cases, it.model, it.precision)
        name = f"{case}, {it.variant}" if case else it.variant
        table.add_row(str(it.batch_size), name, *times, ratio, bounds, it.verdict, it.remark)
    wide_console().print(table)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if found.regressions:
        names = ", ".join(f"{change.variant} at batch {change.batch_size}" for change in found.regressions)
        click.echo(f"slower: {names}")
        ctx.exit(1)


@click.command()
@click.argument("result", metavar="RESULT.json", type=RESULT)
@options.output_option("The folder for report.md, report.csv and report.html.", folder=True)
def report(result: Path, output: Path) -> None:
    """Write RESULT as Markdown, CSV and a self-contained HTML page with plots."""
    from stn_infer.benchmarking.report.codec import read_result
    from stn_infer.benchmarking.report.files import write_report

    for path in write_report(read_result(result), output):
        click.echo(f"wrote {path}")


def wide_console() -> Any:
    """A console for tables, which are not wrapped where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180
    return console
