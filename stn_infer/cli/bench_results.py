"""``stn-infer bench compare`` and ``bench report``, which read the results of ``bench -o``."""

from __future__ import annotations

from pathlib import Path

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, table_console

RESULT = click.Path(path_type=Path, dir_okay=False)


@click.command(
    cls=Command,
    examples=(
        "stn-infer bench compare before.json after.json",
        "stn-infer bench compare before.json after.json --relative-to eager --threshold 10",
    ),
)
@click.argument("before", metavar="A.json", type=RESULT)
@click.argument("after", metavar="B.json", type=RESULT)
@click.option(
    "--threshold", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Smallest change to flag, in %."
)
@click.option(
    "--relative-to",
    metavar="VARIANT",
    help="Compare ratios to this variant instead of times, for results from two machines or from a busy one.",
)
@click.pass_context
def compare(ctx: click.Context, before: Path, after: Path, threshold: float, relative_to: str | None) -> None:
    """Compare two results row by row; exit code 1 when B is slower.

    A row is slower when the 95 % confidence interval of time B / time A lies above 1 and the change is above the
    threshold, or when it was timed in A and not in B.
    """
    from stn_infer.benchmarking.report.compare import compare as compare_results
    from stn_infer.benchmarking.report.tables import changes
    from stn_infer.benchmarking.report.terminal import as_rich
    from stn_infer.benchmarking.result import read_result

    found = compare_results(read_result(before), read_result(after), threshold=threshold / 100, relative_to=relative_to)
    table_console(180).print(as_rich(changes(found, f"{before.name} (A) and {after.name} (B)")))
    for warning in found.warnings:
        echo(f"warning: {warning}", err=True)
    if found.regressions:
        names = ", ".join(f"{change.variant} at batch {change.batch_size}" for change in found.regressions)
        echo(f"slower: {names}")
        ctx.exit(1)


@click.command(
    cls=Command,
    examples=(
        "stn-infer bench report result.json -o report",
        "stn-infer bench report benchmarks/results/peers-xeon-2.5ghz-2-cores.json -o peers",
    ),
)
@click.argument("result", metavar="RESULT.json", type=RESULT)
@options.output_option("The folder for report.md, report.csv and report.html.", folder=True)
def report(result: Path, output: Path) -> None:
    """Write RESULT as Markdown, CSV and a self-contained HTML page with plots."""
    from stn_infer.benchmarking.report.files import write_report
    from stn_infer.benchmarking.result import read_result

    for path in write_report(read_result(result), output):
        echo(f"wrote {path}")
