"""A program with limits: what it wrote stays, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check import process
from tests.support.paths import ROOT

#: -S -E: without site-packages, to start sooner.
PYTHON = (sys.executable, "-S", "-E", "-u", "-c")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def is_running(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(number: int) -> None:
    end = time.monotonic() + 20
    while is_running(number):
        assert time.monotonic() < end, "it is still running"
        time.sleep(0.02)


def test_output_and_exit_code(log: Path, tmp_path: Path) -> None:
    log.write_text("before\n")
    code = "import os, sys; print(os.environ['MINE'], os.getcwd()); print('error', file=sys.stderr); sys.exit(3)"
    ended = process.run([*PYTHON, code], log, 60, environment={"MINE": "set"}, folder=tmp_path)
    assert (ended.killed, ended.problem) == (False, "exit code 3")
    assert log.read_text().splitlines() == ["before", f"set {tmp_path}", "error"]


def test_a_program_that_ends_well(log: Path) -> None:
    ended = process.run(["true"], log, 60)
    assert (ended.killed, ended.problem) == (False, "") and 0 < ended.seconds < 30


def test_a_program_that_crashes(log: Path) -> None:
    ended = process.run([*PYTHON, "import os; os.abort()"], log, 60)
    assert (ended.killed, ended.problem) == (False, "ended by SIGABRT")


def test_a_program_that_does_not_start(log: Path) -> None:
    ended = process.run(["/nowhere/program"], log, 60)
    assert ended.problem == "it does not start: No such file or directory"


def test_the_limit(log: Path) -> None:
    ended = process.run([*PYTHON, "import time; print('begun'); time.sleep(60)"], log, 0.8)
    assert (ended.killed, ended.problem) == (True, "killed after 1 s, its limit")
    assert log.read_text() == "begun\n" and ended.seconds < 30


def test_a_program_that_ignores_sigterm_is_killed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun'); time.sleep(60)"
    ended = process.run([*PYTHON, code], log, 0.8)
    assert ended.killed and log.read_text() == "begun\n" and ended.seconds < 30


def test_silence_is_noticed_and_growth_is_not_silence(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "figures"
    code = "import sys, time\nfor i in range(5):\n open(sys.argv[1], 'a').write('x'); time.sleep(0.3)\ntime.sleep(60)\n"
    ended = process.run([*PYTHON, code, str(other)], log, 60, quiet=1.0, watched=[other])
    assert (ended.killed, ended.problem) == (True, "killed after 1 s without output")
    assert other.read_text() == "xxxxx"


def test_what_a_program_leaves_running_is_killed(log: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    assert process.run([*PYTHON, code], log, 60).problem == ""
    wait_until_gone(int(log.read_text()))


def test_a_program_ends_with_its_parent(log: Path) -> None:
    """Nothing may keep the GPU after kill -9 of the check."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_check import process\n"
        "process.run(['sh', '-c', 'echo $$; exec sleep 60'], Path(sys.argv[1]), 60)"
    )
    parent = subprocess.Popen([sys.executable, "-S", "-c", code, str(log)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 30
    while not (log.exists() and log.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.02)
    number = int(log.read_text())
    assert is_running(number)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until_gone(number)
