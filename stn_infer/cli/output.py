"""Print the commands' output. Names from files are data: control characters in them are escaped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import click

from stn_infer.cli.terminal.status import current_status
from stn_infer.cli.terminal.verbosity import asked, stdout
from stn_infer.errors import of_input
from stn_infer.json_text import json_text
from stn_infer.printing import shown, shown_lines
from stn_infer.text_tables import Table

if TYPE_CHECKING:
    from rich.console import Console


_REMARKS = ("note: ", "warning: ")  # what begins so is neither a result nor an error

#: The colors of a line's first word, on a terminal; of a status also where it stands in a table.
COLORS = {
    **dict.fromkeys(("error:", "failed:", "failed", "broken"), "red"),
    **dict.fromkeys(("warning:", "missing", "unavailable"), "yellow"),
    **dict.fromkeys(("passed", "passed,", "verified:", "ok"), "green"),
    "note:": "cyan",
}


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
    if is_colored(err=err):
        kept = [_painted(line) for line in kept]
    if kept or not lines:
        click.echo("\n".join(kept), file=_stream(err))


def tell(*lines: object) -> None:
    """Print lines on stderr that are neither results nor errors; nothing with ``--quiet``."""
    if lines and not asked().quiet:
        echo(*lines, err=True)


def _painted(line: str) -> str:
    word, space, rest = line.partition(" ")
    return click.style(word, fg=COLORS[word], bold=True) + space + rest if word in COLORS else line


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
    """The stream to print to; the status line makes way."""
    status = current_status()
    if status is not None:
        status.clear()
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
    """A console for tables with plain-text cells.

    Args:
        width: its width in columns where neither a terminal nor the environment variable COLUMNS says it.
    """
    from rich.console import Console

    console = Console(file=_stream(False), highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = width
    return console


def progress_bar(what: str) -> Callable[[int, int], None] | None:
    """A progress bar in place of the status line, to be called with (done, total); None where there is no line."""
    status = current_status()
    return None if status is None else lambda done, total: status.count(what, done, total)


def show_tables(*tables: Table) -> None:
    """Print tables in the width of the terminal, with an empty line between two."""
    console = table_console()
    for index, table in enumerate(tables):
        if index:
            console.print()
        console.print(replace(table, colors=COLORS))
