"""One job per folder or result: a lock file that records its owner and is taken over only if the owner has ended."""

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
from stn_infer.files import forget_temporary, note_temporary

LOCK_NAME = "run.lock"


class JobLock:
    """Holds a lock file until :meth:`release`, or until this process ends.

    The kernel lock on the file shows whether the owner is running, also after ``kill -9``. The file records the owner's
    host and process id: the kernel lock of an owner on another machine may not be visible here.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Lock an existing folder for a job, with the file ``run.lock`` in it.

        Raises:
            OutputError: another job is working in it (or may be, on another machine), or the lock cannot be written.
        """
        return cls._take(folder / LOCK_NAME, f"the output folder {folder}", "working in", folder)

    @classmethod
    def of_file(cls, file: Path) -> Self:
        """Lock a file that a job writes again and again, with a hidden file beside it; raises as :meth:`of_folder`."""
        return cls._take(file.with_name(f".{file.name}.lock"), str(file), "writing", file)

    @classmethod
    def _take(cls, path: Path, what: str, doing: str, target: Path) -> Self:
        try:
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
                held = _lock(descriptor)
                owner = _owner(descriptor)
                if not held or owner.get("host", platform.node()) != platform.node():
                    os.close(descriptor)
                    raise OutputError(refusal(path, doing, target, owner, held))
                if _still_there(path, descriptor):
                    break
                os.close(descriptor)  # the previous owner has just ended and deleted the file
            os.ftruncate(descriptor, 0)
            content = json.dumps({"host": platform.node(), "pid": os.getpid()})
            os.pwrite(descriptor, content.encode(), 0)
        except OSError as error:
            raise OutputError(f"cannot lock {what}: {error.strerror}") from error
        note_temporary(path)
        return cls(path, descriptor)

    def release(self) -> None:
        """Delete and release the lock."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            forget_temporary(self._path)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _lock(descriptor: int) -> bool:
    """Take the kernel lock; False if another process holds it.

    On a file system without locks, False if the recorded owner is running.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return not runs(_owner(descriptor).get("pid"))
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def runs(pid: object) -> bool:
    """Whether another process with this id runs on this machine."""
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def owner_of(content: bytes) -> dict[str, object]:
    """The owner that a lock's content records; empty if it is empty or damaged."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _owner(descriptor: int) -> dict[str, object]:
    return owner_of(os.pread(descriptor, 4096, 0))


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        now, opened = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino)


def refusal(path: Path | str, doing: str, target: Path | str, owner: dict[str, object], held: bool) -> str:
    """Why a job may not have a folder or a file: ``held`` by a job on another machine, else by one on this one.

    Args:
        path: of the lock.
        doing, target: what the owner does, and with what.
        owner: the content of the lock.
        held: whether the lock itself could be taken.
    """
    where = owner.get("host", "an unknown one" if held else "this machine")
    who = f"process {owner.get('pid', '?')} on {where}"
    if not held:
        return f"another job is {doing} {target} ({who}); wait until it ends, or give another output"
    return f"{target} belongs to a job on another machine ({who}); if it has ended, delete {path}"
