"""Print the commands' output. Names from files are data: control characters in them are escaped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from stn_infer.cli.terminal.verbosity import asked, stdout
from stn_infer.errors import of_input
from stn_infer.json_text import json_text
from stn_infer.printing import shown, shown_lines

if TYPE_CHECKING:
    from rich.console import Console


_REMARKS = ("note: ", "warning: ")  # what begins so is neither a result nor an error


def emit(result: object, text: Callable[[], None] | None = None) -> None:
    """Print a command's result on stdout: with ``--json`` as one JSON document, else by ``text``.

    Args:
        result: what the public function returned; its ``to_json`` makes the document if it has one.
        text: None prints the result as text, line by line.
    """
    if asked().json:
        echo_text(result.to_json().rstrip() if hasattr(result, "to_json") else json_text(result))
    elif text is None:
        echo(*str(result).split("\n"))
    else:
        text()


def echo(*lines: object, err: bool = False) -> None:
    """Print one line per argument; line breaks and control characters in an argument are printed as escapes.

    With ``--quiet``, notes and warnings are left out.
    """
    kept = [shown(str(line)) for line in lines]
    if asked().quiet:
        kept = [line for line in kept if not line.startswith(_REMARKS)]
    if kept or not lines:
        click.echo("\n".join(kept), file=_stream(err))


def tell(*lines: object) -> None:
    """Print lines on stderr that are neither results nor errors; nothing with ``--quiet``."""
    if not asked().quiet:
        echo(*lines, err=True)


def echo_text(text: str, *, err: bool = False) -> None:
    """Print text of several lines, such as JSON, in which line breaks within names are already escaped."""
    click.echo(shown_lines(text), file=_stream(err))


def echo_escaped(text: str) -> None:
    """Print text of several lines, in which names are escaped already, so that it may contain colors."""
    click.echo(text, file=_stream(False))


def is_colored(*, err: bool = False) -> bool:
    """Whether standard output (or error) is a terminal that takes colors, and ``NO_COLOR`` is not set."""
    return _stream(err).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _stream(err: bool) -> TextIO:
    return sys.stderr if err else stdout()


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

    console = Console(file=stdout(), highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    return console


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, to be called with (done, total); None in a pipe, and with ``--quiet``."""
    if asked().quiet or not sys.stderr.isatty():
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
