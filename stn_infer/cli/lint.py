"""``stn-infer lint``: what in an ONNX file will be slow or wrong, and where."""

from __future__ import annotations

import click


@click.command()
@click.argument("model", metavar="IN.onnx")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines; its layout is stable.")
@click.pass_context
def command(ctx: click.Context, model: str, as_json: bool) -> None:
    """Examine IN.onnx for what some runtime will get wrong, refuse, or run slowly; [*] marks what optimize mends.

    Exit code 1 where a finding is an error (a runtime gives wrong values or cannot run the file), else 0.
    """
    from stn_infer.api.lint import lint

    report = lint(model)
    click.echo(report.to_json() if as_json else report.to_text())
    if report.counts["error"]:
        ctx.exit(1)
