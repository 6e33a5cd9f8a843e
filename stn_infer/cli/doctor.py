"""``stn-infer doctor``: report what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, echo_text


@click.command(
    cls=Command,
    examples=(
        "stn-infer doctor",
        "stn-infer doctor --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Report what this machine can run, and what is missing for the rest.

    Exit code 1 when a required part does not work.
    """
    from stn_infer.api.doctor import diagnose

    checks = diagnose()
    if as_json:
        echo_text(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            advice = f" -> {check.advice}" if check.advice else ""
            echo(f"{check.status:<8} {check.name:<{width}}  {check.detail}{advice}")
    if any(check.status == "broken" for check in checks):
        ctx.exit(1)
