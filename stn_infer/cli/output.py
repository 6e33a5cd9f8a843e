"""Print the commands' output. Names from files are data: control characters in them are escaped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from stn_infer.errors import of_input
from stn_infer.printing import shown, shown_lines

if TYPE_CHECKING:
    from rich.console import Console


def echo(*lines: object, err: bool = False) -> None:
    """Print one line per argument; line breaks and control characters in an argument are printed as escapes."""
    click.echo("\n".join(shown(str(line)) for line in lines), err=err)


def echo_text(text: str, *, err: bool = False) -> None:
    """Print text of several lines, such as JSON, in which line breaks within names are already escaped."""
    click.echo(shown_lines(text), err=err)


def echo_escaped(text: str) -> None:
    """Print text of several lines, in which names are escaped already, so that it may contain colors."""
    click.echo(text)


def is_colored(*, err: bool = False) -> bool:
    """Whether standard output (or error) is a terminal that takes colors, and ``NO_COLOR`` is not set."""
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


#: The exit code of a command that did its work, but not for all inputs.
SOME_FAILED = 4


def echo_failures(failures: Sequence[tuple[str, str]], total: int) -> None:
    """Print (input, error) of the first inputs that failed, and how many of the ``total`` are not among them."""
    for name, error in failures:
        echo(f"failed: {of_input(name, error)}", err=True)
    if total > len(failures):
        echo(f"failed: and {total - len(failures)} more", err=True)


def table_console(width: int = 160) -> Console:
    """A console for tables with plain-text cells; ``width`` is its width in columns if there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    return console


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, to be called with (done, total); None in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
