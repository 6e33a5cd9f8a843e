"""Commands in forks of a process that has imported all that they need: a life takes a tenth of a second.

A fork ends as it is told to: by a signal after some time, or at its n-th step, an event of Python's audit hooks that
touches files. Only for processes without threads; tests start the campaigns in a process of their own.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Events of a command's life that are its steps: it opens, renames, removes, locks.
_STEPS = ("open", "os.", "fcntl.", "tempfile.", "shutil.")


def preload() -> None:
    """Import what `run` and `bench` import, so that the forks don't."""
    import onnx
    import onnxruntime
    import orjson
    import pyarrow.parquet  # noqa: F401

    import stn_infer.api.bench
    import stn_infer.api.fingerprint
    import stn_infer.api.run
    import stn_infer.backends.ort
    import stn_infer.cli.run
    import stn_infer.proto.load  # noqa: F401

    assert onnx and onnxruntime and orjson


@dataclass(frozen=True)
class Ending:
    """How a fork ends before its time.

    Attributes:
        number: the signal.
        seconds: after the start; None: not by time.
        step: its count; None: not by steps.
    """

    number: signal.Signals
    seconds: float | None = None
    step: int | None = None


@dataclass
class Fork:
    """A command that runs in a fork; :meth:`wait` fills in ``code``, as a shell has it for signals: -9 for SIGKILL."""

    pid: int
    said: Path
    started: float = field(default_factory=time.monotonic)
    code: int | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, timeout: float = 900) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it hangs; it is killed.
        """
        end = time.monotonic() + timeout
        while not self.poll():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"process {self.pid} hung: {self.lines}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    @property
    def lines(self) -> list[str]:
        """What it has written to its standard error."""
        return self.said.read_text(errors="replace").splitlines()


def start(
    body: Callable[[], int],
    said: Path,
    *,
    environment: Mapping[str, str] | None = None,
    ending: Ending | None = None,
    largest_file: int | None = None,
    go: int | None = None,
) -> Fork:
    """Call ``body`` in a fork, its exit code the result.

    Args:
        body: what it does.
        said: a file for its standard error; its standard output is dropped.
        environment: variables on top of this process's.
        ending: how it is ended.
        largest_file: the kernel refuses to let a file grow beyond as many bytes, as a full disk does.
        go: a pipe whose end it waits for, so that several start at once.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Fork(pid, said)
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ.update(environment or {})
        import tempfile

        tempfile.tempdir = None
        if largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        if go is not None:
            os.read(go, 1)
        if ending is not None and ending.step is not None:
            _end_at_step(ending.number, ending.step)
        code = body()
    except BaseException:  # a fork must not go on as the campaign
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 99
    finally:
        os._exit(code)


def command(arguments: Sequence[str | Path]) -> Callable[[], int]:
    """The body that calls the command line."""

    def body() -> int:
        from stn_infer.cli.main import main

        try:
            main(list(map(str, arguments)))
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        finally:
            sys.stderr.flush()
        return 0

    return body


def counted(body: Callable[[], int], into: Path) -> Callable[[], int]:
    """``body``, which writes the number of its steps to a file at its end."""

    def whole() -> int:
        steps = [0]

        def note(event: str, arguments: tuple[object, ...]) -> None:
            steps[0] += event.startswith(_STEPS)

        sys.addaudithook(note)
        code = body()
        count = steps[0]
        into.write_text(str(count))
        return code

    return whole


def _end_at_step(number: signal.Signals, step: int) -> None:
    steps = [0]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_STEPS):
            steps[0] += 1
            if steps[0] == step:
                os.kill(os.getpid(), number)

    sys.addaudithook(note)
