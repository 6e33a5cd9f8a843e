"""A program with a time limit, whose output is in a file however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.05
_GRACE = 3.0  # seconds from SIGTERM to SIGKILL, in which a program may write its report
_GIVEN_UP = 5.0  # and from SIGKILL on: a process may hang in the driver
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        seconds: how long it ran.
        killed: it was killed for time.
        problem: what happened, in words; empty: it ended by itself, with exit code 0.
    """

    seconds: float
    killed: bool
    problem: str


def run(
    command: Sequence[str],
    log: Path,
    limit: float,
    *,
    quiet: float | None = None,
    watched: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run a program to its end, and then kill what it has left running.

    It is killed by the kernel if this process ends.

    Args:
        command: the program and its arguments.
        log: its output is appended here, by the program itself.
        limit: seconds until it is killed.
        quiet: seconds without growth of ``log`` or ``watched`` until it is killed.
        watched: other files that it writes.
        environment: variables on top of this process's.
        folder: the current folder of the program.

    Raises:
        KeyboardInterrupt: of this process; the program is killed before.
    """
    start = last = time.monotonic()
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            return Ended(0.0, False, f"it does not start: {error.strerror}")
    size, problem = -1, ""
    try:
        while process.poll() is None and not problem:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
            now, grown = time.monotonic(), _size(log, *watched)
            last, size = (now, grown) if grown != size else (last, size)
            if now - start > limit:
                problem = f"killed after {limit:.0f} s, its limit"
            elif quiet is not None and now - last > quiet:
                problem = f"killed after {quiet:.0f} s without output"
    finally:
        _end(process)
    seconds = time.monotonic() - start
    if problem:
        return Ended(seconds, True, problem + ("" if process.returncode is not None else "; it does not end"))
    code = process.returncode
    if code < 0:
        return Ended(seconds, False, f"ended by {signal.Signals(-code).name}")
    return Ended(seconds, False, f"exit code {code}" if code else "")


def _die_with_parent() -> None:
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GIVEN_UP)):
        running = process.poll() is None
        if not running:
            number = signal.SIGKILL
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
