"""The status line: what a command is doing, on stderr, while it does it.

On a terminal one line is updated, with a spinner and the time that the step takes. It goes before anything else is
printed; inputs that are counted have a progress bar. With ``--verbose`` each step is a line of its own, after the
seconds since the command began. In a pipe there is nothing without ``--verbose``, and with ``--quiet`` nothing at all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

from stn_infer.cli.terminal.verbosity import Asked, asked
from stn_infer.printing import shown
from stn_infer.progress import told_to

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_CURRENT: ContextVar[Status | None] = ContextVar("_CURRENT", default=None)


@contextmanager
def status_line() -> Iterator[None]:
    """A block whose steps are shown as the command line asks; the line is gone at its end."""
    status = Status(sys.stderr, asked())
    token = _CURRENT.set(status)
    try:
        with told_to(status):
            yield
    finally:
        _CURRENT.reset(token)
        status.clear()


def current_status() -> Status | None:
    """What shows the steps of the command that is being run; None outside of a command."""
    return _CURRENT.get()


class Status:
    """Shows steps, details and counts on a stream.

    Args:
        stream: stderr, as it is now: a library may replace it for a while.
        how: what the command line asks for.
    """

    def __init__(self, stream: TextIO, how: Asked) -> None:
        self._stream = stream
        self._verbose = how.verbose
        self._live = not how.quiet and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()
        self._shown: Progress | None = None
        self._counted = ""  # what the bar counts; empty while the spinner is shown
        self._task: TaskID | None = None

    def step(self, text: str) -> None:
        """Name the step on the line; with ``--verbose`` on a new one."""
        if self._verbose:
            self.detail(text)
        elif self._live and self._shown is None:
            self._start(text, total=None)
        elif self._shown is not None and self._task is not None and not self._counted:
            self._shown.reset(self._task, description=shown(text))

    def detail(self, text: str) -> None:
        """A line of its own, only with ``--verbose``."""
        if self._verbose:
            self.clear()
            self._stream.write(f"{time.monotonic() - self._began:6.1f} s  {shown(text)}\n")
            self._stream.flush()

    def count(self, what: str, done: int, total: int) -> None:
        """Show how many of ``total`` are done, instead of a step; only on a terminal."""
        if not self._live:
            return
        if self._shown is None or self._counted != what:
            self.clear()
            self._start(what, total)
            self._counted = what
        if self._shown is not None and self._task is not None:
            self._shown.update(self._task, completed=done, total=total)

    def clear(self) -> None:
        """Take the line away, so that something can be printed; the next step shows it again."""
        if self._shown is not None:
            self._shown.stop()
        self._shown, self._counted = None, ""

    def _start(self, text: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        text_column = TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
        )
        columns: tuple[ProgressColumn, ...] = (SpinnerColumn(), text_column, TimeElapsedColumn())
        if total is not None:
            columns = (text_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # redirected streams would send what is printed meanwhile, a model's own lines too, to stderr
        self._shown = Progress(
            *columns,
            console=Console(file=self._stream),
            transient=True,
            refresh_per_second=5,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._shown.add_task(shown(text), total=total)
        self._shown.start()
