"""Files are written completely or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stn_infer import files
from stn_infer.errors import OutputError
from stn_infer.files import appearing, check_writable, remove_temporary, temporary_folder, write_atomically
from tests.support.paths import ROOT


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_appears_completely_or_not_at_all(tmp_path: Path) -> None:
    with appearing(tmp_path / "x") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_text() == "new"
    with pytest.raises(OutputError, match="No space left"), appearing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize(
    ("name", "reason"), [(".", "a folder"), ("none/x", "no such folder"), ("/dev/null", "not a regular file")]
)
def test_unwritable(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(OutputError, match=reason):
        check_writable(tmp_path / name)


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    read = tmp_path / "read"
    read.write_bytes(b"x")
    (tmp_path / "link").symlink_to(read)
    (tmp_path / "hard").hardlink_to(read)
    for name in ("read", "link", "hard", "./read"):
        with pytest.raises(OutputError, match="it is what this command reads; name another file"):
            check_writable(tmp_path / name, inputs=(None, 3, tmp_path, "no such file", "a\0b", str(read)))
    check_writable(tmp_path / "other", inputs=(read, tmp_path))


def test_a_temporary_folder_is_removed_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path, "mine-") as folder:
        assert folder.parent == tmp_path and folder.name.startswith("mine-") and folder.stat().st_mode & 0o777 == 0o700
        (folder / "inner").mkdir()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


HOLDS = """
import sys
from stn_infer.files import temporary_folder
with temporary_folder() as folder:
    (folder / "x").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folders_of_killed_processes_are_removed_by_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed, one works, and what is not ours stays: another's name, no lock, a link, a file, a new folder."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", HOLDS], env=environment, **streams) for _ in range(2)]
    killed, works = (Path(process.stdout.readline().strip()) for process in processes)
    processes[0].kill()
    processes[0].wait()
    others = [tmp_path / name for name in ("stn-infer-mine", "stn-infer-0123456789ab", "stn-infer-other-0123456789ab")]
    for folder in others:
        folder.mkdir()
    (others[0] / ".in-use").touch()
    (tmp_path / "stn-infer-00000000000a").symlink_to(others[0])
    (tmp_path / "stn-infer-00000000000b").touch()
    before = set(tmp_path.iterdir())
    assert {killed, works} <= before
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def later() -> set[Path]:
        files._cleaned.clear()
        with temporary_folder():
            pass
        return set(tmp_path.iterdir())

    assert later() == before, "new ones stay"
    for path in before:
        os.utime(path, (0, 0), follow_symlinks=False)
    assert later() == before - {killed}
    processes[0].communicate()
    processes[1].communicate()
    assert processes[1].returncode == 0 and not works.exists()


def test_a_process_that_is_ended_removes_what_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with temporary_folder(tmp_path) as folder, appearing(tmp_path / "result") as file:
        assert folder.exists() and file.exists()
        remove_temporary()
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
        file.touch()  # the process did not end after all
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "result"}


def test_the_mask_of_new_files_is_read_by_several_threads_at_once() -> None:
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: files._umask(), range(4000)))
        assert found == {0o027}
    finally:
        os.umask(before)
