"""``stn-infer doctor``: report what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from stn_infer.cli.help import Command
from stn_infer.cli.output import echo_text


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
    from stn_infer.api.doctor import doctor

    found = doctor()
    echo_text(json.dumps([asdict(check) for check in found.checks], indent=1) if as_json else str(found))
    if not found.works:
        ctx.exit(1)
