"""Where a job's files are: a folder, or a URL of an object store. Whoever reads a name finds a whole file or none.

In a folder a file is written under another name, flushed to disk and renamed. An object is written to a temporary file
first and stored by one request, since an exception within an open stream would publish what was written so far.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from stn_infer import remote
from stn_infer.errors import OutputError
from stn_infer.files import appearing, remove_leftovers, temporary_folder, write_atomically
from stn_infer.pipeline.lock import LOCK_NAME, JobLock, owner_of, refusal, runs


class Lock(Protocol):
    """What keeps a folder for one job."""

    def release(self) -> None:
        """Let another job have the folder."""
        ...


class Storage(Protocol):
    """The files of one job by their names; ``path`` is the folder as the user gave it, or its URL."""

    @property
    def path(self) -> Path | str: ...

    def create(self) -> list[str]:
        """Make the folder where it is missing, and list the names in it.

        Raises:
            OutputError: it cannot be made or read.
        """
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OutputError: it is missing, or cannot be read.
        """
        ...

    def appearing(self, name: str) -> AbstractContextManager[Path]:
        """A temporary path to write; when the block ends without an exception, the file is there.

        Raises:
            OutputError: it cannot be written.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file; raises as :meth:`appearing`."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, which may be missing.

        Raises:
            OutputError: it cannot be removed.
        """
        ...

    def remove_leftovers(self) -> None:
        """Remove what killed processes have not renamed; nobody may be writing."""
        ...

    def lock(self) -> Lock:
        """Keep the folder for one job.

        Raises:
            OutputError: another job works in it.
        """
        ...


def storage_of(output: Path | str) -> LocalFolder | ObjectFolder:
    """The files under a path or a URL.

    Raises:
        UsageError: a URL where files do not appear whole.
        MissingDependencyError: the package for its service is not installed.
        OutputError: the service cannot be used.
    """
    text = remote.local(os.fspath(output))
    if not remote.is_url(text):
        return LocalFolder(Path(text))
    remote.check_atomic(text)
    with remote.told(text, OutputError, "write to"):
        remote.filesystem(text)
    return ObjectFolder(text.rstrip("/"))


class LocalFolder:
    """A folder of a file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> list[str]:
        """As for :class:`Storage`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return os.listdir(self.path)
        except OSError as error:
            raise OutputError(f"cannot create the output folder {self.path}: {error.strerror}") from error

    def exists(self, name: str) -> bool:
        """As for :class:`Storage`."""
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        """As for :class:`Storage`."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise OutputError(f"cannot read {self.path / name}: {error.strerror}") from error

    def appearing(self, name: str) -> AbstractContextManager[Path]:
        """As for :class:`Storage`."""
        return appearing(self.path / name)

    def write(self, name: str, content: bytes) -> None:
        """As for :class:`Storage`."""
        write_atomically(self.path / name, content)

    def remove(self, name: str) -> None:
        """As for :class:`Storage`."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot overwrite the job in {self.path}: {error.strerror}") from error

    def remove_leftovers(self) -> None:
        """As for :class:`Storage`."""
        remove_leftovers(self.path)

    def lock(self) -> Lock:
        """As for :class:`Storage`."""
        return JobLock.of_folder(self.path)


class ObjectFolder:
    """The objects of a store whose keys begin with a URL and a slash."""

    def __init__(self, url: str) -> None:
        self.path = url

    def create(self) -> list[str]:
        """As for :class:`Storage`; a store has no folders to make."""
        with remote.told(self.path, OutputError, "list"):
            try:
                found = self._files().ls(self.path, detail=False)
                # less the empty object by which a store's console shows this folder
                paths = [path.rstrip("/") for path in found if not f"/{path}".endswith(f"/{self._key}/")]
                return [path.rpartition("/")[2] for path in paths]
            except FileNotFoundError:
                return []

    def exists(self, name: str) -> bool:
        """As for :class:`Storage`."""
        try:
            with remote.told(self._url(name), OutputError, "read"):
                self._files().info(self._url(name))  # isfile takes any failure for a missing file
                return True
        except FileNotFoundError:
            return False

    def read(self, name: str) -> bytes:
        """As for :class:`Storage`."""
        try:
            with remote.told(self._url(name), OutputError, "read"):
                content: bytes = self._files().cat_file(self._url(name))
                return content
        except FileNotFoundError:
            raise OutputError(f"cannot read {self._url(name)}: no such object") from None

    @contextmanager
    def appearing(self, name: str) -> Iterator[Path]:
        """As for :class:`Storage`."""
        with temporary_folder() as folder:
            yield folder / name
            self.write(name, (folder / name).read_bytes())

    def write(self, name: str, content: bytes) -> None:
        """As for :class:`Storage`."""
        try:
            with remote.told(self._url(name), OutputError, "write"):
                remote.filesystem(self.path).pipe_file(self._url(name), content)
        except FileNotFoundError as error:  # no such bucket
            raise OutputError(f"cannot write {self._url(name)}: no such bucket") from error

    def remove(self, name: str) -> None:
        """As for :class:`Storage`."""
        with suppress(FileNotFoundError), remote.told(self._url(name), OutputError, "remove"):
            remote.filesystem(self.path).rm_file(self._url(name))

    def remove_leftovers(self) -> None:
        """As for :class:`Storage`: there are none."""

    def lock(self) -> Lock:
        """As for :class:`Storage`. A store has no locks; the object says who works, until it is removed."""
        me = {"host": platform.node(), "pid": os.getpid()}
        if self.exists(LOCK_NAME):
            owner = owner_of(self.read(LOCK_NAME))
            gone = owner.get("host") == me["host"] and not runs(owner.get("pid"))
            if not gone:
                same = owner.get("host") == me["host"]
                raise OutputError(refusal(self._url(LOCK_NAME), "working in", self.path, owner, held=not same))
        self.write(LOCK_NAME, json.dumps(me).encode())
        return _ObjectLock(self)

    @property
    def _key(self) -> str:
        """The URL without its service."""
        return self.path.partition("://")[2].strip("/")

    def _files(self) -> Any:
        """The store, which has forgotten what it listed: other machines write here."""
        files = remote.filesystem(self.path)
        files.invalidate_cache(self.path)
        return files

    def _url(self, name: str) -> str:
        return f"{self.path}/{name}"


class _ObjectLock:
    def __init__(self, folder: ObjectFolder) -> None:
        self._folder = folder

    def release(self) -> None:
        with suppress(OutputError):
            self._folder.remove(LOCK_NAME)
