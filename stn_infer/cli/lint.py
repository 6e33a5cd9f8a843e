"""``stn-infer lint``: report what in an ONNX file is wrong, unsupported or slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo_text

if TYPE_CHECKING:
    from stn_infer.budget import Budget


@click.command(
    cls=Command,
    examples=(
        "stn-infer lint model.onnx",
        "stn-infer lint model.onnx --json > findings.json",
    ),
)
@click.argument("model", metavar="IN.onnx")
@options.trial_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; its layout is stable.")
@click.pass_context
def command(ctx: click.Context, model: str, as_json: bool, budget: Budget | None) -> None:
    """Report what in an ONNX file is wrong, unsupported or slow in some runtime.

    Findings marked [*] are fixed by optimize. Exit code 1 where a finding is an error: a runtime computes wrong values
    or cannot run the file.
    """
    from stn_infer.api.lint import lint

    report = lint(model, budget=budget)
    echo_text(report.to_json() if as_json else report.to_text())
    if report.counts["error"]:
        ctx.exit(1)
