"""What the commands print: names from files are data, so nothing in them reaches a terminal that could act there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stn_infer.printing import shown, shown_lines

if TYPE_CHECKING:
    from rich.console import Console


def echo(*lines: object, err: bool = False) -> None:
    """Print one line for each argument, whatever it holds: a line break within one is shown as an escape."""
    click.echo("\n".join(shown(str(line)) for line in lines), err=err)


def echo_text(text: str, *, err: bool = False) -> None:
    """Print text of several lines, such as JSON; what composed it has escaped the line breaks within names."""
    click.echo(shown_lines(text), err=err)


def table_console(width: int = 160) -> Console:
    """A console for tables whose cells are plain text; it is ``width`` columns wide where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    return console
