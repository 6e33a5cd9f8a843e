"""Print the commands' output. Names from files are data: control characters in them are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stn_infer.printing import shown, shown_lines

if TYPE_CHECKING:
    from rich.console import Console


def echo(*lines: object, err: bool = False) -> None:
    """Print one line per argument; line breaks and control characters in an argument are printed as escapes."""
    click.echo("\n".join(shown(str(line)) for line in lines), err=err)


def echo_text(text: str, *, err: bool = False) -> None:
    """Print text of several lines, such as JSON, in which line breaks within names are already escaped."""
    click.echo(shown_lines(text), err=err)


def table_console(width: int = 160) -> Console:
    """A console for tables with plain-text cells; ``width`` is its width in columns if there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    return console
