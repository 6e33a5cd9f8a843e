"""One job per folder: a lock that names its owner, and that is taken over only when the owner is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Self

from stn_infer.errors import OutputError

LOCK_NAME = "run.lock"


class FolderLock:
    """Holds ``folder``/run.lock until :meth:`release`, or until this process ends.

    The kernel's lock on the file says whether the owner lives, also after ``kill -9``. The file says who it is, so that
    an owner on another machine, whose kernel's lock may not be seen here, is not taken for gone.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Take the lock of a folder that exists.

        Raises:
            OutputError: another job works in it (or may, on another machine), or the lock cannot be written.
        """
        path = folder / LOCK_NAME
        try:
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
                held = _lock(descriptor)
                owner = _owner(descriptor)
                if not held or owner.get("host", platform.node()) != platform.node():
                    os.close(descriptor)
                    raise OutputError(_refusal(folder, owner, held))
                if _still_there(path, descriptor):
                    break
                os.close(descriptor)  # the job before has just ended, and deleted it
            os.ftruncate(descriptor, 0)
            content = json.dumps({"host": platform.node(), "pid": os.getpid()})
            os.pwrite(descriptor, content.encode(), 0)
        except OSError as error:
            raise OutputError(f"cannot lock the output folder {folder}: {error.strerror}") from error
        return cls(path, descriptor)

    def release(self) -> None:
        """Let others take the folder."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the kernel's lock; a file system without locks is asked for its owner alone."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return not _runs(_owner(descriptor).get("pid"))
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _runs(pid: object) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _owner(descriptor: int) -> dict[str, object]:
    """Who wrote the file; empty where nobody did, or it was cut off."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        now, opened = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino)


def _refusal(folder: Path, owner: dict[str, object], held: bool) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', 'this machine')}"
    if not held:
        return f"another job is working in {folder} ({who}); wait for it, or name another folder"
    return f"{folder} belongs to a job on another machine ({who}); if that has ended, delete {folder / LOCK_NAME}"
