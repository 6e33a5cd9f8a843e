"""The inputs of `run` as a lazy, ordered, repeatable sequence of samples.

No image is opened here, and no long list of samples is held in memory: folders are walked and list files are read
line by line. A survey walks all inputs once, counts and fingerprints them, and stores the result, a long one in an
unnamed temporary file. Files that appear or disappear after the survey do not change the job.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import marshal
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import IO, NamedTuple, Self

from stn_infer import remote
from stn_infer.errors import InputError, UsageError
from stn_infer.files import open_regular

#: The suffixes that a folder is searched for; an image file that is given explicitly may have any suffix.
IMAGE_SUFFIXES = frozenset(
    {
        *("apng", "avif", "bmp", "dds", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("mpo", "pbm", "pcx", "pgm", "png", "pnm", "ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
    }
)
ARRAY_SUFFIXES = frozenset({"npy", "npz"})
_SUFFIXES = IMAGE_SUFFIXES | ARRAY_SUFFIXES
_KEPT = 32768  # entries that a survey keeps in memory (about 10 MB); more are written to a temporary file
_CHUNK = 4096
_LONGEST_SUFFIX = 8  # longer ones count as none


class Sample(NamedTuple):
    """One sample of a job (a named tuple, because a job may have millions).

    Attributes:
        name: the sample's name in the status file: the path as given, with ``[row]`` for a row of an array file.
        path: the file.
        row: the row in an array file; None for an image, or an array file that is one sample.
        error: why the sample cannot be read, if known before the file is opened; else empty.
    """

    name: str
    path: str
    row: int | None = None
    error: str = ""


class Entry(NamedTuple):
    """A file that was found: ``rows`` samples of an array file; None: the file is one sample."""

    path: str
    rows: int | None = None
    error: str = ""

    def samples(self) -> Iterator[Sample]:
        """The samples in this file."""
        if self.rows is None:
            return iter((Sample(self.path, self.path, None, self.error),))
        # An array may have millions of rows: this makes a sample in half the time of calling Sample.
        pattern = self.path.replace("{", "{{").replace("}", "}}") + "[{}]"
        rows = range(self.rows)
        return map(tuple.__new__, repeat(Sample), zip(map(pattern.format, rows), repeat(self.path), rows, repeat("")))


@dataclass(frozen=True)
class Survey:
    """The result of a pass over all inputs.

    Attributes:
        samples: the number of samples.
        images: whether any of them is an image file.
        fingerprint: SHA-256, hex, of all names and row counts in order.
        stat_fingerprint: of the size and modification time of every file.
        content_fingerprint: of the content of every file; "" if not requested.
        left_out: by suffix, the number of files in folders that are not inputs.
    """

    samples: int
    images: bool
    fingerprint: str
    stat_fingerprint: str
    content_fingerprint: str = ""
    left_out: tuple[tuple[str, int], ...] = ()


class Inputs:
    """The samples in ``sources``, in order; can be iterated repeatedly. Duplicates are kept.

    After a :meth:`survey`, iterating yields the surveyed samples. Leaving the context, or :meth:`close`, deletes the
    temporary files.

    Args:
        sources: files, folders (searched recursively, sorted by name; hidden names and unknown suffixes are
            ignored), glob patterns, URLs of these, ``@list.txt`` (one path or URL of a file per line) and ``-`` (a list
            on stdin).
        count_rows: returns the number of samples in an array file for the model, or None if the whole file is one
            sample; raises InputError if the file does not match the model.
        stdin: what ``-`` reads; None: the standard input of the process.
        may_be_empty: whether an array file may have no samples, such as a picture without boxes.

    Raises:
        InputError: no sources, or ``-`` given twice. Iterating raises it if an explicit source is missing, or a
            folder or pattern contains no inputs.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        count_rows: Callable[[str], int | None],
        stdin: IO[bytes] | None = None,
        *,
        may_be_empty: bool = False,
    ) -> None:
        self._may_be_empty = may_be_empty
        self._sources = [remote.local(os.fspath(source)) for source in sources]
        self._count_rows = count_rows
        self._stdin: IO[bytes] | None = None
        self._kept: list[Entry] = []
        self._spool: IO[bytes] | None = None
        self._surveyed = False
        self._left_out: Counter[str] = Counter()
        if not self._sources:
            raise InputError("no inputs given; give files, folders, patterns, @list.txt or - for stdin")
        if self._sources.count("-") > 1:
            raise InputError("'-' (stdin) was given twice; stdin can be read only once")
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
        """Delete the temporary files; the inputs cannot be iterated afterwards."""
        for file in (self._stdin, self._spool):
            if file is not None:
                file.close()

    def __iter__(self) -> Iterator[Sample]:
        return chain.from_iterable(map(Entry.samples, self._found() if self._surveyed else self._walk_all()))

    def _found(self) -> Iterator[Entry]:
        """The entries that the survey found."""
        yield from self._kept
        if self._spool is not None:
            self._spool.seek(0)
            while True:
                try:
                    chunk = marshal.load(self._spool)
                except EOFError:
                    return
                for entry in chunk:
                    yield Entry(*entry)

    def _walk_all(self) -> Iterator[Entry]:
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

    def survey(self, contents: bool = False) -> Survey:
        """Walk all inputs once, and count and fingerprint them.

        Args:
            contents: also read every file, for a fingerprint of its content.

        Raises:
            InputError: an explicit source is missing, a folder or pattern contains no inputs, or there are no samples.
        """
        names, stats, bytes_ = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        samples, images, last = 0, False, ""
        self._left_out.clear()
        walk = self._walk_all()
        while some := list(islice(walk, _CHUNK)):
            names.update(os.fsencode("".join([f"{entry.path}\0{entry.rows}\0" for entry in some])))
            for entry in some:
                samples += 1 if entry.rows is None else entry.rows
                images = images or not is_array(entry.path)
                if entry.path != last:
                    stats.update(_stat(entry.path))
                    if contents:
                        bytes_.update(_hash(entry.path))
                    last = entry.path
            self._keep(some)
        if samples == 0:
            raise InputError(f"no inputs in {', '.join(self._sources)}; expected images or .npy/.npz files")
        self._surveyed = True
        content = bytes_.hexdigest() if contents else ""
        left_out = tuple(self._left_out.most_common())
        return Survey(samples, images, names.hexdigest(), stats.hexdigest(), content, left_out)

    def _keep(self, some: list[Entry]) -> None:
        if self._spool is None and len(self._kept) + len(some) <= _KEPT:
            self._kept += some
            return
        if self._spool is None:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        marshal.dump([tuple(entry) for entry in some], self._spool)

    def _named(self, source: str) -> Iterator[Entry]:
        """The entries of an explicit path or pattern, which must exist."""
        if remote.is_url(source):
            yield from self._under_url(source)
        elif os.path.isdir(source):
            found = False
            for path in walk(source, self._left_out):
                found = True
                yield self._file(path)
            if not found:
                raise InputError(f"no inputs in the folder {source}; expected images or .npy/.npz files")
        elif os.path.exists(source):
            yield self._file(source)
        elif glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise InputError(f"no file matches {source!r}; expected images or .npy/.npz files")
            for match in matches:
                if os.path.isdir(match):
                    for path in walk(match, self._left_out):
                        yield self._file(path)
                else:
                    yield self._file(match)
        else:
            raise InputError(f"no such file or folder: {source}")

    def _under_url(self, url: str) -> Iterator[Entry]:
        """The entries of a URL of a file, a folder or a pattern."""
        pattern = glob.has_magic(url) and remote.version(url) is None and not remote.find(url)
        matches = remote.match(url) if pattern else [url]
        if not matches:
            raise InputError(f"no file matches {url!r}; expected images or .npy/.npz files")
        for found in matches:
            if not pattern and remote.version(found) is not None:
                yield self._file(found)
                continue
            inside = remote.find(found)
            if not pattern and not inside:
                raise InputError(f"no such file or folder: {url}")
            names = [path for path in inside if not _is_hidden(path[len(found) :])]
            known = [path for path in names if path == found or _suffix(path.rpartition("/")[2]) in _SUFFIXES]
            self._left_out.update(_counted(path) for path in set(names) - set(known))
            if not pattern and not known:
                raise InputError(f"no inputs in the folder {url}; expected images or .npy/.npz files")
            yield from map(self._file, known)

    def _listed(self, lines: IO[bytes], name: str) -> Iterator[Entry]:
        """The entries of a list of paths; a missing path fails only its own sample, because lists are long."""
        for number, line in enumerate(lines):
            if number == 0:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InputError(f"{name} is encoded in UTF-16; save it in UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            path = os.fsdecode(line.rstrip(b"\r\n"))
            if not path.strip():
                continue
            if "\0" in path:
                raise InputError(f"{name} is not a list of paths, one per line: it contains binary data")
            path = remote.local(path)
            if os.path.isdir(path):
                for inside in walk(path, self._left_out):
                    yield self._file(inside)
            else:
                yield self._file(path)

    def _file(self, path: str) -> Entry:
        if not is_array(path):
            return Entry(path)
        try:
            rows = self._count_rows(path)
        except InputError as error:
            return Entry(path, error=str(error))
        if rows == 0 and not self._may_be_empty:
            return Entry(path, error=f"{path}: expected at least one sample, found none")
        return Entry(path, rows)


def as_sources(given: object) -> list[str | Path]:
    """What a user gives as inputs: one path or several.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(given, (str, Path)):
        return [given]
    found: list[str | Path] = []
    for each in given if isinstance(given, Iterable) else [given]:
        if not isinstance(each, (str, Path)):
            raise UsageError(
                f"inputs are paths, patterns or lists of these, got {type(each).__name__}; Predictor takes pictures, "
                "arrays and tensors"
            )
        found.append(each)
    return found


def local_files(sources: Sequence[str | Path]) -> Iterator[str]:
    """The files on this machine in ``sources``; none are read. It ends where a source is wrong, without an error."""
    named = [source for source in sources if str(source) != "-" and not remote.is_url(str(source))]
    with suppress(InputError), Inputs(named, lambda path: None) as inputs:
        yield from (sample.path for sample in inputs)


def _stat(path: str) -> bytes:
    """A file's size and modification time; ``-`` for a missing file."""
    if remote.is_url(path):
        found = remote.version(path)
        return b"-" if found is None else f"{found[0]} {found[1]};".encode()
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b"-"
    return f"{status.st_size} {status.st_mtime_ns};".encode()


def _hash(path: str) -> bytes:
    """SHA-256 of a file's content; zeros for a file that cannot be read, which fails later when it is loaded."""
    try:
        if remote.is_url(path):
            return remote.sha256(path)
        with os.fdopen(open_regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (InputError, OSError):
        return bytes(32)


def is_array(path: str) -> bool:
    """Whether a path has the suffix of an array file."""
    return path.rpartition(".")[2].lower() in ARRAY_SUFFIXES


def is_input(path: str) -> bool:
    """Whether a folder is searched for a path's suffix: that of an image or an array file."""
    return _suffix(path) in _SUFFIXES


def walk(folder: str, left_out: Counter[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Files under ``folder`` with a known suffix, sorted by name. Links are followed, except for cycles.

    Args:
        folder: its path.
        left_out: by suffix, the number of the other files is added.
        above: device and inode of the folders that it lies in.

    Raises:
        InputError: a folder cannot be read.
    """
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
            is_folder = entry.is_dir()
        except OSError:  # a cycle of links
            is_folder = False
        if is_folder:
            yield from walk(entry.path, left_out, (*above, identity))
        # a dangling link or a pipe with an image suffix is a failed sample; it is not ignored silently
        elif _suffix(entry.name) in _SUFFIXES:
            yield entry.path
        else:
            left_out[_counted(entry.name)] += 1


def _counted(name: str) -> str:
    """The suffix by which a file is counted that is not an input."""
    suffix = _suffix(name.rpartition("/")[2])
    return suffix if len(suffix) <= _LONGEST_SUFFIX else ""


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""
