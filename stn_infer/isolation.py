"""Python in a process of its own, so that what a native library or a user's code does there ends there.

A child imports nothing from the current folder before a user's own code asks for it: a file there that bears the name
of a module would run instead of the module. It is killed by the kernel once this process has ended, however that ended;
its temporary files are removed by this one. This file is also the first that the child runs, by its path, and so
imports nothing of ours at its top.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_F_SETSIG = 10  # of Linux's fcntl.h; Python's module has it from 3.13 on
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def python_child(
    module: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None, **streams: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Run ``python -m module arguments`` during the block, and wait for it at the end; an exception kills it.

    It finds modules where this process does, the current folder last.

    Args:
        module: its name.
        arguments: of its command line.
        environment: variables on top of this process's; ``TMPDIR`` is a folder of the child's own.
        streams: ``stdin``, ``stdout``, ``stderr`` and ``text``, as for :class:`subprocess.Popen`.

    Raises:
        KeyboardInterrupt: somebody ended it by Ctrl-C or ``kill``, which is nothing that it did.
    """
    from stn_infer.files import temporary_folder

    watched, held = os.pipe()  # the child is killed once nobody holds the writing end
    try:
        with temporary_folder() as scratch:
            begin = json.dumps({"watched": watched, "path": _child_path(), "module": module})
            with subprocess.Popen(
                [sys.executable, "-P", __file__, begin, *arguments],
                env={**_child_environment(), **(environment or {}), "TMPDIR": str(scratch)},
                pass_fds=(watched,),
                **streams,
            ) as process:
                try:
                    yield process
                except BaseException:
                    process.kill()
                    process.wait()  # Popen does not, after KeyboardInterrupt
                    raise
    finally:
        os.close(watched)
        os.close(held)
    if -process.returncode in _INTERRUPTS:
        raise KeyboardInterrupt


def run_tool(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program such as a compiler and wait for it; an exception kills it, with the programs that it runs."""
    from stn_infer.files import temporary_folder

    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with temporary_folder() as scratch:
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with subprocess.Popen(command, text=True, env=environment, start_new_session=True, **streams) as process:
            try:
                output, errors = process.communicate()
            except BaseException:
                _kill_session(process.pid)
                process.wait()  # Popen does not, after KeyboardInterrupt
                raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextmanager
def program_child(
    command: Sequence[str], environment: Mapping[str, str], *, grace: float = 10, **streams: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Run a program such as a server during the block, in a session of its own, and end it with all that it started.

    It gets SIGTERM and ``grace`` seconds, then SIGKILL; SIGKILL at once when this process ends without that.

    Args:
        command: the program and its arguments.
        environment: all of its variables.
        grace: seconds to end in.
        streams: as for :func:`python_child`.
    """
    watched, held = os.pipe()
    try:
        begin = json.dumps({"watched": watched, "program": [*command]})
        arguments = [sys.executable, "-P", "-S", __file__, begin]
        with subprocess.Popen(
            arguments, env=dict(environment), pass_fds=(watched,), start_new_session=True, **streams
        ) as process:
            try:
                yield process
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
            finally:
                _kill_session(process.pid)
                process.wait()
    finally:
        os.close(watched)
        os.close(held)


def _kill_session(session: int) -> None:
    """Kill the processes of a session, whatever groups they have made, until none is left."""
    while members := [
        number for number in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_in(number, session)
    ]:
        for number in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def _is_in(process: int, session: int) -> bool:
    """Whether a process runs, and belongs to a session."""
    try:
        # a program's name, in brackets, has any bytes
        state, _, _, found = Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2].split()[:4]
    except OSError:  # it has ended
        return False
    return int(found) == session and state not in b"ZX"


def _child_path() -> list[str]:
    """This process's ``sys.path``, the current folder last, and the folder of this package after that."""
    others = [os.path.abspath(entry) for entry in sys.path if not _is_current(entry)]
    current = [""] if len(others) < len(sys.path) else []
    return [*others, *current, str(Path(__file__).resolve().parent.parent)]


def _child_environment() -> dict[str, str]:
    """This process's variables, ``PYTHONPATH`` without the current folder."""
    found = dict(os.environ)
    entries = [entry for entry in found.pop("PYTHONPATH", "").split(os.pathsep) if not _is_current(entry)]
    return {**found, "PYTHONPATH": os.pathsep.join(entries)} if entries else found


def _is_current(entry: str) -> bool:
    """Whether an entry of a module search path is the current folder; an empty one is."""
    try:
        return os.path.samefile(entry or os.curdir, os.curdir)
    except OSError:  # it does not exist
        return False


def _end_with(watched: int) -> None:
    """Let the kernel kill this process once nobody holds the writing end of a pipe any more."""
    # by a signal that needs no thread of ours: a native library may hold Python's lock for ever
    fcntl.fcntl(watched, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(watched, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC)
    waiting = select.poll()
    waiting.register(watched)
    if waiting.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before this one was ready


def _begin(watched: int, path: Sequence[str] = (), module: str = "", program: Sequence[str] = ()) -> None:
    """The child's side: take care of how this process ends, and be the module or the program."""
    _end_with(watched)
    if program:
        os.execv(program[0], [*program])  # the pipe stays open
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
    sys.path[:] = path
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _begin(**json.loads(sys.argv[1]))
