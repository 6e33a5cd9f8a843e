"""One job per folder, regardless of how the previous owner ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from stn_infer.errors import OutputError
from stn_infer.pipeline.lock import LOCK_NAME, JobLock
from tests.support.helpers import answers_of

_HOLD = """
import sys
from pathlib import Path
from stn_infer.pipeline.lock import JobLock
lock = JobLock.of_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the folder's lock until its stdin is closed, or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_locked_folder_is_rejected_with_its_owner(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(OutputError, match=rf"another job is working in .*\(process {process.pid} on ") as caught:
            JobLock.of_folder(tmp_path)
        assert "\n" not in str(caught.value)
    finally:
        end(process)
    assert (tmp_path / LOCK_NAME).exists(), "killed, it could not delete it"
    lock = JobLock.of_folder(tmp_path)
    assert json.loads((tmp_path / LOCK_NAME).read_text()) == {"host": platform.node(), "pid": os.getpid()}
    lock.release()
    lock.release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_an_owner_on_another_machine_keeps_the_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(OutputError, match=r"on another machine \(process 1 on elsewhere\); if it has ended, delete"):
        JobLock.of_folder(tmp_path)
    (tmp_path / LOCK_NAME).unlink()
    JobLock.of_folder(tmp_path).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"pid": "x"}'])
def test_a_damaged_lock_without_owner_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    JobLock.of_folder(tmp_path).release()


def test_a_folder_that_cannot_be_locked_is_reported(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(OutputError, match="cannot lock the output folder"):
        JobLock.of_folder(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LOCK_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="cannot lock the output folder"):
        JobLock.of_folder(tmp_path / "other")
    assert not (tmp_path / "victim").exists()


_RACE = """
import os, sys, time
from pathlib import Path
from stn_infer.errors import OutputError
from stn_infer.pipeline.lock import JobLock
folder, won = Path(sys.argv[1]), 0
sys.stdin.readline()
end = time.monotonic() + 60
while won < 50 and time.monotonic() < end:
    try:
        lock = JobLock.of_folder(folder)
    except OutputError:
        continue
    marker = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails if two processes hold the lock
    os.close(marker)
    os.unlink(folder / "inside")
    lock.release()
    won += 1
print(won)
"""


def test_only_one_process_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    outputs = answers_of(processes)
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert [int(out) for out, _ in outputs] == [50, 50, 50]
