"""Atomic file writes, and checks before reading or writing a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from stn_infer.errors import InputError, OutputError

_PART = ".part"
_IN_USE = ".in-use"
_MADE_S = 600.0  # within which a new folder is locked for certain
_cleaned: set[tuple[Path, str]] = set()  # where this process has looked
_temporary: set[Path] = set()  # of this process: known before they exist, until they are removed


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, flush it to disk and rename it to ``path``.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    with open_atomically(path) as file:
        file.write(content)


def write_unflushed(path: Path, content: bytes) -> None:
    """:func:`write_atomically` without waiting for the disk: for many small files, which a power failure may damage.

    Raises:
        OutputError: as there.
    """
    with appearing(path, flush=False) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; it replaces ``path`` when the block ends without an exception.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    with appearing(path) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def appearing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write; on success the file is flushed to disk and replaces ``path``.

    Raises:
        OutputError: as for :func:`open_atomically`; no temporary file remains.
    """
    with _removed(path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")) as temporary:
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            yield temporary
            if flush:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None, prefix: str = "stn-infer-") -> Iterator[Path]:
    """Make a folder for the time of the block.

    In the system's folder for temporary files, those that processes left when they were killed are removed first.

    Args:
        parent: where; None: the system's folder for temporary files (``TMPDIR``).
        prefix: of its name.

    Raises:
        OSError: it cannot be made.
    """
    shared = parent is None
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    if shared:
        _remove_abandoned(parent, prefix)
    with _removed(parent / f"{prefix}{secrets.token_hex(6)}") as folder:
        folder.mkdir(mode=0o700)
        with _in_use(folder) if shared else contextlib.nullcontext():
            yield folder


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold the kernel's lock of a file in the folder, which it releases however this process ends."""
    with (folder / _IN_USE).open("wb") as file:
        with contextlib.suppress(OSError):  # a file system without locks: then nobody removes the folder either
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove this user's folders of :func:`temporary_folder` that no process uses, once per process."""
    if (parent, prefix) in _cleaned:
        return
    _cleaned.add((parent, prefix))
    name = re.compile(re.escape(prefix) + "[0-9a-f]{12}")
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        folders = [entry.path for entry in entries if name.fullmatch(entry.name)]
        for folder in folders:
            with contextlib.suppress(OSError):  # it has gone, or has no lock, or somebody holds it
                _remove_unused(folder)


def _remove_unused(folder: str) -> None:
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or time.time() < status.st_mtime + _MADE_S:
        return
    descriptor = os.open(os.path.join(folder, _IN_USE), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def remove_temporary() -> None:
    """Remove what the functions of this module have not removed yet, before this process is ended."""
    for path in tuple(_temporary):
        _remove(path)


def note_temporary(path: Path) -> None:
    """Let :func:`remove_temporary` remove a file or a folder, until :func:`forget_temporary`."""
    _temporary.add(path)


def forget_temporary(path: Path) -> None:
    """Undo :func:`note_temporary`."""
    _temporary.discard(path)


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[Path]:
    note_temporary(path)
    try:
        yield path
    finally:
        _remove(path)
        forget_temporary(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_folder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the kernel's lock of a folder, for the short time that several files are written or read as one.

    Processes that only read share it. Does nothing on a file system without locks.
    """
    descriptor = -1
    try:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def is_leftover(name: str, of: str = "") -> bool:
    """Whether a file's name is that of a temporary file for the file ``of`` in its folder, or for any file."""
    return name.startswith(f".{of}." if of else ".") and name.endswith(_PART)


def remove_leftovers(folder: Path, of: str = "") -> None:
    """Delete the temporary files of processes that were killed while they wrote files of a folder.

    Args:
        folder: where; nobody may be writing there.
        of: only those of the file with this name.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if is_leftover(name, of):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()


def open_regular(path: str) -> int:
    """Open a regular file for reading and return its descriptor; the caller closes it.

    Does not block: a pipe or a device at ``path`` is rejected.

    Raises:
        InputError: ``path`` is missing, unreadable, or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise InputError(f"{path} is {kind_of(mode)}, expected a file")
    return descriptor


def kind_of(mode: int) -> str:
    """The kind of a path that is not a regular file, from its ``st_mode``: ``a folder``, ``a named pipe``, ..."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for matches, name in kinds if matches(mode)), "a device")


def check_writable(path: Path, *, inputs: Iterable[object] = ()) -> None:
    """Raise before a long computation if ``path`` cannot be written, or if something that is read would be lost.

    Args:
        path: the file to write.
        inputs: what is read; texts and paths that are files are compared, by whatever name or link.

    Raises:
        OutputError: ``path`` is a folder or a device, its folder is missing or not writable, or it is an input.
    """
    check_not_read(path, inputs)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise OutputError(f"cannot write {path}: it is {what}; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable")


def check_not_read(path: Path, inputs: Iterable[object]) -> None:
    """Raise OutputError if ``path`` is one of the inputs; arguments as for :func:`check_writable`."""
    for given in inputs if path.exists() else ():
        with contextlib.suppress(OSError, ValueError):  # one of them is not a file
            if isinstance(given, (str, Path)) and path.samefile(given):
                raise OutputError(f"cannot write {path}: it is what this command reads; name another file")


_reading_umask = threading.Lock()  # it is read by setting it


def _umask() -> int:
    with _reading_umask:
        current = os.umask(0)
        os.umask(current)
    return current


def make_own_folder(path: Path) -> None:
    """Make a folder of a cache, with its parents, that only this user may enter.

    Raises:
        OutputError: it cannot be made, or belongs to another user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if not is_own(path):
        raise OutputError(f"{path} belongs to another user; expected a folder of your own")


def is_own(path: Path) -> bool:
    """Whether a file or folder belongs to this user or does not exist; False for links, whose target may change."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    return status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode)
