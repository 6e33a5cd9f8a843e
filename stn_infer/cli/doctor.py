"""``stn-infer doctor``: what this machine can run, and why not the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of a table.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine can run, and why not the rest. Exit code 1 when a part that must work does not."""
    from stn_infer.api.doctor import diagnose

    checks = diagnose()
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            advice = f" -> {check.advice}" if check.advice else ""
            click.echo(f"{check.status:<8} {check.name:<{width}}  {check.detail}{advice}")
    if any(check.status == "broken" for check in checks):
        ctx.exit(1)
