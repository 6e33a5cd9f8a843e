"""What `run` is given on its command line, as one lazy, ordered, repeatable list of samples.

Nothing here opens an image or holds a long list of samples: a folder is walked, a list file is read line by line, and
the walk can be repeated, so that a first pass may count and fingerprint what a second one reads. What arrives on stdin
is kept in an unnamed temporary file.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, Self

from stn_infer.errors import InputError

#: What a folder is searched for; a file that is named outright may be called anything.
IMAGE_SUFFIXES = frozenset(
    {"bmp", "gif", "jpeg", "jpg", "jp2", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"}
)
ARRAY_SUFFIXES = frozenset({"npy", "npz"})
_SUFFIXES = IMAGE_SUFFIXES | ARRAY_SUFFIXES
_KEPT = 32768  # samples that a survey keeps (some 10 MB), so that a job of common size is walked once


class Sample(NamedTuple):
    """One row of a job (a named tuple of plain strings, because a job may have millions).

    Attributes:
        name: what the ledger calls it: the path as given, with ``[row]`` for a row of an array file.
        path: the file.
        row: the row in an array file; None for an image, or an array file that is one sample.
        error: why it cannot be read, where that is known before it is opened; else empty.
    """

    name: str
    path: str
    row: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """What a pass over all inputs finds.

    Attributes:
        samples: how many there are.
        images: whether any of them is an image file.
        fingerprint: SHA-256, hex, of all names in order; contents are not read.
    """

    samples: int
    images: bool
    fingerprint: str


class Inputs:
    """The samples that ``sources`` name, in their order; iterate as often as needed. Duplicates are kept.

    As a context manager, or by :meth:`close`, it lets go of what came from stdin.

    Args:
        sources: files, folders (searched recursively, sorted by name, hidden names and unknown suffixes passed
            over), glob patterns, ``@list.txt`` (one path a line) and ``-`` (the same on stdin).
        count_rows: how many samples an array file holds for the model at hand, None meaning that the whole file is
            one; raises InputError when it holds none that fit.
        stdin: where ``-`` reads from; None: the process's own.

    Raises:
        InputError: a source that is named outright is missing, or a folder or pattern holds nothing to read.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        count_rows: Callable[[str], int | None],
        stdin: IO[bytes] | None = None,
    ) -> None:
        self._sources = [os.fspath(source) for source in sources]
        self._count_rows = count_rows
        self._stdin: IO[bytes] | None = None
        self._kept: list[Sample] | None = None
        if not self._sources:
            raise InputError("no inputs given; name files, folders, patterns, @list.txt or - for stdin")
        if self._sources.count("-") > 1:
            raise InputError("'-' (stdin) was given twice; it can be read once")
        if "-" in self._sources:
            self._stdin = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
            source = stdin or sys.stdin.buffer
            while chunk := source.read(1 << 20):
                self._stdin.write(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what came from stdin; afterwards it cannot be iterated."""
        if self._stdin is not None:
            self._stdin.close()

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._kept) if self._kept is not None else self._walk_all()

    def _walk_all(self) -> Iterator[Sample]:
        for source in self._sources:
            if source == "-":
                assert self._stdin is not None
                self._stdin.seek(0)
                yield from self._listed(self._stdin, "stdin")
            elif source.startswith("@") and not os.path.lexists(source):
                try:
                    with open(source[1:], "rb") as file:
                        yield from self._listed(file, source[1:])
                except OSError as error:
                    raise InputError(f"cannot read the list {source[1:]}: {error.strerror}") from error
            else:
                yield from self._named(source)

    def survey(self) -> Survey:
        """Walk once over all samples, to count and to fingerprint them.

        Raises:
            InputError: as the class says, or there is no sample at all.
        """
        digest = hashlib.sha256()
        samples, images = 0, False
        kept: list[Sample] = []
        rest = self._walk_all()
        while some := list(islice(rest, 4096)):
            digest.update(os.fsencode("\0".join([sample.name for sample in some]) + "\0"))
            samples += len(some)
            images = images or not all(is_array(sample.path) for sample in some)
            if samples <= _KEPT:
                kept += some
        if samples == 0:
            raise InputError(f"no inputs in {', '.join(self._sources)}; expected images or .npy/.npz files")
        self._kept = kept if samples <= _KEPT else None
        return Survey(samples, images, digest.hexdigest())

    def _named(self, source: str) -> Iterator[Sample]:
        """A path or pattern that somebody typed: it must lead to something."""
        if os.path.isdir(source):
            found = False
            for path in _walk(source, ()):
                found = True
                if is_array(path):
                    yield from self._file(path)
                else:  # the common case, of which there may be millions
                    yield Sample(path, path)
            if not found:
                raise InputError(f"nothing to read in the folder {source}; expected images or .npy/.npz files")
        elif os.path.exists(source):
            yield from self._file(source)
        elif glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise InputError(f"no file matches {source!r}; expected images or .npy/.npz files")
            for match in matches:
                if os.path.isdir(match):
                    for path in _walk(match, ()):
                        yield from self._file(path)
                else:
                    yield from self._file(match)
        else:
            raise InputError(f"no such file or folder: {source}")

    def _listed(self, lines: IO[bytes], name: str) -> Iterator[Sample]:
        """The paths in a list; one that leads nowhere costs its own row, since lists are long and made by programs."""
        for line in lines:
            path = os.fsdecode(line.rstrip(b"\r\n"))
            if not path.strip():
                continue
            if "\0" in path:
                raise InputError(f"{name} is not a list of paths, one a line: it holds binary data")
            if os.path.isdir(path):
                for inside in _walk(path, ()):
                    yield from self._file(inside)
            else:
                yield from self._file(path)

    def _file(self, path: str) -> Iterator[Sample]:
        if not is_array(path):
            yield Sample(path, path)
            return
        try:
            rows = self._count_rows(path)
        except InputError as error:
            yield Sample(path, path, error=str(error))
            return
        if rows is None:
            yield Sample(path, path)
        elif rows == 0:
            yield Sample(path, path, error=f"{path}: expected at least one sample, it holds none")
        else:
            for row in range(rows):
                yield Sample(f"{path}[{row}]", path, row)


def is_array(path: str) -> bool:
    """Whether a path is called like an array file."""
    return path.rpartition(".")[2].lower() in ARRAY_SUFFIXES


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files under ``folder`` with a known suffix, sorted by name. Links are followed, but never in a circle."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = sorted(
                (entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        try:
            is_file, is_folder = entry.is_file(), entry.is_dir()
        except OSError:  # links in a circle
            is_file = is_folder = False
        known = entry.name.rpartition(".")[2].lower() in _SUFFIXES
        # a link to nothing that is called like an image costs its own row, and is not lost without a word
        if known and (is_file or (not is_folder and entry.is_symlink() and not os.path.exists(entry.path))):
            yield entry.path
        elif is_folder:
            yield from _walk(entry.path, (*above, identity))
