"""``stn-infer lint``: report what in an ONNX file is wrong, unsupported or slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, echo_escaped, echo_text, emit, is_colored
from stn_infer.cli.terminal.completion import complete_files, complete_rule
from stn_infer.cli.terminal.verbosity import asked
from stn_infer.errors import UsageError

if TYPE_CHECKING:
    from stn_infer.api.lint import Format
    from stn_infer.budget import Budget
    from stn_infer.lint_rules.report import FailOn


@click.command(
    cls=Command,
    examples=(
        "stn-infer lint model.onnx",
        "stn-infer lint model.onnx --target tensorrt==10.3 --target openvino",
        "stn-infer lint model.onnx --fail-on warning --json > findings.json",
        "stn-infer lint model.onnx --format html -o report.html",
        "stn-infer lint --explain E009",
    ),
)
@click.argument("model", metavar="IN.onnx", required=False, shell_complete=complete_files(".onnx"))
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="RUNTIME",
    help="Also judge the whole file for a runtime: tensorrt==VERSION, tensorrt-rtx, onnxruntime or openvino; "
    "repeatable. Installed ones are asked.",
)
@click.option(
    "--fail-on",
    type=click.Choice(("error", "warning", "not-judged", "never")),
    multiple=True,
    default=("error",),
    show_default=True,
    help="What makes the exit code 1; repeatable.",
)
@click.option("--all", "show_all", is_flag=True, help="Print every finding, also those that are repeated many times.")
@click.option(
    "--format",
    "format",
    type=click.Choice(("text", "json", "html", "sarif")),
    help="Of the report: html is one page that needs no other file, sarif is for code scanning.  [default: text]",
)
@options.output_option("The file to write the report to, with all findings; the summary is printed.", required=False)
@click.option(
    "--explain",
    metavar="RULE",
    shell_complete=complete_rule,
    help="Print what a rule such as E009 means, for whom, and what to do; no file is needed.",
)
@options.trial_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str | None,
    targets: tuple[str, ...],
    fail_on: tuple[FailOn, ...],
    show_all: bool,
    format: Format | None,
    output: Path | None,
    explain: str | None,
    budget: Budget | None,
) -> None:
    """Report what in an ONNX file is wrong, unsupported or slow in some runtime.

    Findings marked [*] are fixed by optimize. Exit code 0: the file passes. 1: it fails by --fail-on (by default, where
    a finding is an error: a runtime computes wrong values or cannot run the file, or a target refuses it), or it cannot
    be read. 2: usage.
    """
    from stn_infer.api.lint import explain as explained
    from stn_infer.api.lint import lint, render
    from stn_infer.files import check_writable, write_atomically
    from stn_infer.lint_rules.report import MOST_REPEATED

    if explain is not None:
        text = explained(explain)
        emit({"rule": explain, "text": text}, lambda: echo_text(text))
        return
    if model is None:
        raise UsageError("lint takes an ONNX file: stn-infer lint model.onnx (or --explain RULE)")
    if asked().json and output is None and format not in (None, "json"):
        raise UsageError(f"--json and --format {format} exclude each other without --output; give one of them")
    chosen: Format = format or ("json" if asked().json else "text")
    if output is not None:
        check_writable(output, inputs=(model,))
    report = lint(model, targets=targets, budget=budget)
    if output is not None:
        write_atomically(output, f"{render(report, chosen)}\n".encode())
        emit(report, lambda: echo(report.summary(), f"wrote {output} ({chosen})"))
    elif chosen == "text":
        echo_escaped(report.to_text(color=is_colored(), most=None if show_all else MOST_REPEATED))
    else:
        echo_text(render(report, chosen))
    if report.fails(fail_on):
        ctx.exit(1)
