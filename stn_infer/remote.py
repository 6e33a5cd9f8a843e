"""Files under URLs, such as ``s3://bucket/key``, by fsspec. Other modules take them wherever they take a path.

Endpoints and credentials are those of the service's own library, from the environment or its configuration files:
``AWS_ENDPOINT_URL`` and ``AWS_ACCESS_KEY_ID`` for S3, ``GOOGLE_APPLICATION_CREDENTIALS`` for Google Cloud Storage.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from stn_infer.errors import InputError, MissingDependencyError, StnInferError, UsageError, one_line
from stn_infer.extras import is_installed, require

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.DOTALL)
#: Where one request stores an object whole, or not at all.
_ATOMIC = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
_PIECE = 1 << 20
_MODULES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def is_url(path: str) -> bool:
    """Whether a path is a URL. ``file://`` URLs are: see :func:`local`."""
    return "://" in path and _URL.fullmatch(path) is not None


def local(path: str) -> str:
    """The path of a ``file://`` URL; any other path unchanged."""
    return path.removeprefix("file://") if path.startswith("file://") else path


def check_atomic(url: str) -> None:
    """Check that objects appear whole under a URL.

    Raises:
        UsageError: it is of another service, or has no bucket.
    """
    match = _URL.fullmatch(url)
    if match is None or match[1] not in _ATOMIC:
        raise UsageError(f"cannot write to {url}: expected a folder, or a URL of {', '.join(_ATOMIC[:-1])}")
    if not match[2].strip("/"):
        raise UsageError(f"cannot write to {url}: expected a bucket, and a folder in it")


def filesystem(url: str) -> Any:
    """fsspec's file system for a URL.

    Raises:
        MissingDependencyError: the package for its service is not installed.
        InputError: there is no such service.
        Exception: the service's own, for example because it lacks credentials; see :func:`told`.
    """
    match = _URL.fullmatch(url)
    protocol = match[1] if match else ""
    if protocol in _MODULES:
        require(_MODULES[protocol], f"{url} needs")
    elif not is_installed("fsspec"):
        raise MissingDependencyError(f"{url} needs fsspec, which is not installed; pip install fsspec")
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:  # it names the package
        raise MissingDependencyError(f"{url}: {one_line(error)}") from None
    except ValueError:
        raise InputError(f"{url}: no service is known for {protocol}://") from None
    return kind()


@contextmanager
def told(url: str, kind: type[StnInferError], doing: str) -> Iterator[None]:
    """A block whose errors by the service become one line of our own: ``cannot read URL: ...``.

    Raises:
        StnInferError: of this ``kind``; and those of the block itself.
    """
    try:
        yield
    except (StnInferError, FileNotFoundError):
        raise
    except Exception as error:  # every service has its own
        raise kind(f"cannot {doing} {url}: {one_line(error)}") from error


def read(url: str, most: int) -> bytes:
    """The content of a file, or its first ``most + 1`` bytes if it has more.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    with _reading(url):
        files = filesystem(url)
        if url.startswith(("http://", "https://")):  # a server may answer a request for a part with the whole
            # Without a size, fsspec asks for it first, and takes each error of that for a missing file.
            with files.open(url, "rb", block_size=0, size=1) as file:
                return _first(file, most + 1)
        try:
            content: bytes = files.cat_file(url, start=0, end=most + 1)
        except FileNotFoundError:
            raise
        except Exception:  # S3 has no first bytes of an empty object
            if files.info(url).get("size") != 0:
                raise
            return b""
        return content


def _first(file: IO[bytes], count: int) -> bytes:
    """The first bytes of a file that may give fewer at a time than it is asked for."""
    pieces: list[bytes] = []
    while count > 0 and (piece := file.read(min(count, _PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def sha256(url: str) -> bytes:
    """The hash of a file's content, which is read in pieces; raises as :func:`read`."""
    with _reading(url), filesystem(url).open(url, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` of a file, fewer at its end; raises as :func:`read`."""
    if end <= start:
        return b""
    with _reading(url):
        content: bytes = filesystem(url).cat_file(url, start=start, end=end)
        return content


def opened(url: str) -> IO[bytes]:
    """A file that can be read and moved in; raises as :func:`read`, and so does reading it."""
    with _reading(url):
        file: IO[bytes] = filesystem(url).open(url, "rb")
        return file


def version(url: str) -> tuple[int, str] | None:
    """The size of a file and what changes when it is written again; None if there is no file.

    Raises:
        InputError: the service does not tell.
    """
    try:
        with told(url, InputError, "read"):
            found = filesystem(url).info(url)
    except FileNotFoundError:
        return None
    if found.get("type") == "directory":
        return None
    changed = next((found[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if found.get(key)), "")
    return int(found.get("size") or 0), str(changed)


def find(url: str) -> list[str]:
    """The URLs of all files under a folder, sorted as a walk through folders is; empty if there is none.

    Raises:
        InputError: it cannot be listed.
    """
    with _reading(url):
        files = filesystem(url)
        files.invalidate_cache(url)
        return _sorted(url, files.find)


def match(pattern: str) -> list[str]:
    """The URLs that match a pattern, sorted; raises as :func:`find`."""
    with _reading(pattern):
        return sorted(_sorted(pattern, filesystem(pattern).glob))


def _sorted(url: str, search: Callable[[str], list[str]]) -> list[str]:
    """Without the empty objects ``folder/`` by which consoles of stores show a folder."""
    protocol = url.partition("://")[0]
    paths = sorted((path for path in search(url) if not path.endswith("/")), key=lambda path: path.split("/"))
    return [f"{protocol}://{path.lstrip('/')}" for path in paths]


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        with told(url, InputError, "read"):
            yield
    except FileNotFoundError:
        raise InputError(f"no such file: {url}") from None
