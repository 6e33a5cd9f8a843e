"""``stn-infer doctor``: report what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import click

from stn_infer.cli.help import Command
from stn_infer.cli.output import emit


@click.command(
    cls=Command,
    examples=(
        "stn-infer doctor",
        "stn-infer doctor --json",
    ),
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Report what this machine can run, and what is missing for the rest.

    Exit code 1 when a required part does not work.
    """
    from stn_infer.api.doctor import doctor

    found = doctor()
    emit(found)
    if not found.works:
        ctx.exit(1)
