"""Signals end a command within two seconds: Ctrl-C, ``kill`` (SIGTERM) and a closed terminal (SIGHUP).

The main thread gets KeyboardInterrupt, removes temporary files and ends child processes. It only does so between two
Python instructions, and native libraries take longer (opening a large model in onnxruntime, TensorRT's builder).
Therefore a thread waits for the signal as well, does the same after a grace period, and ends the process.

This module is imported before the command line, to handle signals meanwhile, and imports nothing large.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Never

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_MESSAGE = b"error: interrupted\n"
_GRACE = 1.2  # seconds that the main thread has to end
_WAIT, _LONGEST_WAIT = 0.05, 1.0  # seconds that an interrupted import has
_TERMINAL = b"\x1b[?25h\n"  # progress bars hide the cursor, and the terminal has echoed ^C


def end_at_once_when_interrupted() -> None:
    """Let signals end this process with one line, until :class:`Interrupts` handles them: nothing is open yet."""
    for number in SIGNALS:
        if signal.getsignal(number) is _default(number):  # what is ignored stays so
            signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, _MESSAGE)
    os._exit(128 + number)


def _default(number: int) -> Any:
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL


class Interrupts:
    """A context manager that records signals and raises KeyboardInterrupt for them, for SIGTERM and SIGHUP too.

    Args:
        owns_process: whether the process may be ended: nobody else's code runs in it.
    """

    def __init__(self, owns_process: bool) -> None:
        self.seen = 0
        self._raises = False
        self._owns_process = owns_process
        self._before: dict[int, Any] = {}
        self._waits = 0
        self._pipe: tuple[int, int] | None = None
        self._watch: threading.Thread | None = None
        self._over = threading.Event()
        self._said = threading.Lock()

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for the signal."""
        return 128 + (self.seen or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        # a handler that the caller installed stays, and only the main thread may set one
        if threading.current_thread() is threading.main_thread():
            ours = [number for number in SIGNALS if signal.getsignal(number) in (_default(number), _end_at_once)]
            if self._owns_process and ours:
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                self._watch = threading.Thread(target=self._end_late, name="stn-interrupts", daemon=True)
                self._watch.start()
                signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in ours:
                self._before[number] = signal.signal(number, self._note)
        return self

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """The block in which signals raise KeyboardInterrupt; outside, they end the process at once if it is owned."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def __exit__(self, *exception: object) -> None:
        if self._waits:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._pipe is not None and self._watch is not None:
            self._over.set()
            signal.set_wakeup_fd(-1)
            os.write(self._pipe[1], b"\0")
            self._watch.join()
            for end in self._pipe:
                os.close(end)

    def say_it(self) -> bool:
        """Whether the caller is the one who prints that the command was interrupted; the first who asks is."""
        return self._said.acquire(blocking=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen and self._watch is not None and number != signal.SIGALRM:
            return  # a second Ctrl-C does not break off what the first one began
        if self._owns_process and not self._raises:
            _end_at_once(number, frame)
        self.seen = self.seen or number
        if _is_to_be_waited_for(frame):
            if signal.SIGALRM not in self._before:
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._note)
            self._waits += 1
            if self._waits > _LONGEST_WAIT / _WAIT:
                self._end()
            signal.setitimer(signal.ITIMER_REAL, _WAIT)
            return
        raise KeyboardInterrupt

    def _end_late(self) -> None:
        """The thread: wait for a signal, then for the main thread, and end the process if that takes too long."""
        assert self._pipe is not None
        while True:
            numbers = os.read(self._pipe[0], 64)
            if self._over.is_set():
                return
            found = [number for number in numbers if number in SIGNALS]
            if found and not self._over.wait(_GRACE):
                self.seen = self.seen or found[0]
                self._end()

    def _end(self) -> Never:
        """End the process from any thread, at any point, without temporary files."""
        from stn_infer.files import remove_temporary

        remove_temporary()
        if self.say_it():
            os.write(2, (_TERMINAL if os.isatty(2) else b"") + _MESSAGE)
        os._exit(self.exit_code)


def leave(code: int) -> Never:
    """End at once: all that was open is closed by now, and libraries take seconds to put themselves away."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # also where it is being written to
            stream.flush()
    os._exit(code)


def _is_to_be_waited_for(frame: FrameType | None) -> bool:
    """Whether the innermost frames are an import or a call by a library, which cannot be broken off.

    A module whose import is broken off may abort the process, or count as broken. TensorRT prints what is raised in a
    logger, and goes on.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" or code.co_qualname.endswith("Logger.log"):
            return True
        frame = frame.f_back
    return False
