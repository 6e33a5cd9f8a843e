"""What libraries write to stderr is suppressed, and stderr is the same afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from stn_infer.quiet import no_stderr
from tests.support.paths import ROOT


def test_what_native_code_writes_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with no_stderr():
        os.write(2, b"lost")
        with no_stderr():
            os.write(2, b"lost")
    os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"


def test_threads_do_not_lose_stderr() -> None:
    """The second one would keep what the first one has put in its place, and put it back last."""
    before, entered, leave = os.fstat(2), threading.Event(), threading.Event()

    def second() -> None:
        with no_stderr():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=second)
    with no_stderr():
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    leave.set()
    thread.join()
    assert os.path.samestat(os.fstat(2), before)


def test_a_closed_stderr_stays_closed() -> None:
    code = """
import os
from stn_infer.quiet import no_stderr
assert os.open(os.devnull, os.O_WRONLY) == 2  # as any file that is opened next
before = os.fstat(2)
with no_stderr():
    print(os.path.samestat(os.fstat(2), before))
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout == "True\n"
