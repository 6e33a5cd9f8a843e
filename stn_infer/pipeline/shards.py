"""The steps of a job: batches of samples are loaded, predicted, and written as shards, each with its status file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.data.inputs import Sample
from stn_infer.data.loader import Group, LoadedBatch, Loader
from stn_infer.pipeline.formats import Format, printable, printable_names
from stn_infer.pipeline.groups import Answers, GroupPredictor, Seen, answered, joined, merged, sizes, waiting_threads
from stn_infer.pipeline.job import Folder, status_lines
from stn_infer.pipeline.pictures import Pictures
from stn_infer.pipeline.schedule import Schedule

Progress = Callable[[int, int], None]

_BESIDE = 32 << 20  # a shard of this size is written while the next one is collected
# Rows of small batches are encoded together until they are so many or so large: a call of NumPy costs more than a row.
_MANY, _LARGE = 512, 1 << 20
_SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Batch:
    """Consecutive samples of one shard; ``first`` is the first one's position in the job."""

    shard: int
    first: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Loaded:
    """A batch and its arrays."""

    batch: Batch
    arrays: LoadedBatch

    @property
    def holds_the_lock(self) -> bool:
        """As for the schedule."""
        return self.arrays.holds_the_lock


@dataclass
class _Encoding:
    """Encodes the rows of one shard.

    Attributes:
        encoder: of the format.
        size: bytes of all outputs.
    """

    encoder: Format
    size: int = 0
    _parts: list[Any] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)  # of the rows that are not encoded yet
    _outputs: list[dict[str, Array]] = field(default_factory=list)
    _waiting: int = 0  # bytes of these outputs

    def add(self, names: Sequence[str], outputs: dict[str, Array]) -> None:
        """Add the rows of a batch, at least one."""
        if self._outputs and sizes(outputs) != sizes(self._outputs[0]):
            self._encode()  # only a format that keeps sizes joins them in one file
        self._names += names
        self._outputs.append(outputs)
        size = sum(values.nbytes for values in outputs.values())
        self.size += size
        self._waiting += size
        if len(self._names) >= _MANY or self._waiting >= _LARGE:
            self._encode()

    def parts(self) -> list[Any]:
        """All rows, as :meth:`~stn_infer.pipeline.formats.Format.write` takes them."""
        if self._names:
            self._encode()
        return self._parts

    def _encode(self) -> None:
        self._parts.append(self.encoder.encode(self.encoder.rows(tuple(self._names), joined(self._outputs))))
        self._names, self._outputs, self._waiting = [], [], 0


@dataclass
class Writer:
    """Collects predicted batches in order and writes them as shards."""

    folder: Folder
    encoder: Format
    progress: Progress | None
    pictures: Pictures | None = None
    resumed: int = 0
    ok: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    _encoding: _Encoding = field(init=False)
    _status: list[str] = field(default_factory=list)
    _saved: list[tuple[int, str]] = field(default_factory=list)
    _taken: int = 0
    _rows: int = 0

    def __post_init__(self) -> None:
        self._encoding = _Encoding(self.encoder)

    def skip_done(self) -> set[int]:
        """Count the samples that an earlier run has completed, and return the numbers of their shards."""
        done = self.folder.done()
        for shard in sorted(done):
            self.resumed += self.count(shard)
        self._report()
        return done

    def take_shard(self, shard: int) -> None:
        """Add a shard that was written elsewhere to the counts, as its status file says.

        Raises:
            OutputError: the file is not there, or damaged.
        """
        self.count(shard)
        self._report()

    def fail_shard(self, shard: int, samples: Sequence[Sample], reason: str) -> None:
        """Write a shard all of whose samples failed for one reason, and count them.

        Raises:
            OutputError: it cannot be written.
        """
        names = printable_names([sample.name for sample in samples])
        errors = dict.fromkeys(range(len(names)), printable(" ".join(reason.split())))
        self._write(shard, [], [status_lines(names, errors, shard, 0)], [])
        self.take_shard(shard)

    def count(self, shard: int) -> int:
        """Count the samples of a written shard, and return their number; raises as :meth:`take_shard`."""
        rows = self.folder.read_done(shard)
        for row in rows:
            self._count(row.input, row.error)
        return len(rows)

    def take(self, batch: Batch, loaded: Loaded, answers: Answers) -> Callable[[], None] | None:
        """Encode and add a batch; after the last batch of a shard, returns what writes the shard."""
        errors = dict(loaded.arrays.errors)
        names = printable_names([sample.name for sample in batch.samples])
        for rows, outputs in merged(loaded.arrays, answers, errors):
            self._encoding.add(names if len(rows) == len(names) else [names[i] for i in rows], outputs)
            if self.pictures is not None:
                self._saved += [(batch.first + i, names[i]) for i in rows]
        reasons = {i: printable(" ".join(reason.split())) for i, reason in errors.items()}
        self._status.append(status_lines(names, reasons, batch.shard, self._rows))
        self._taken += len(names)
        self._rows += len(names) - len(reasons)
        self.ok += len(names) - len(reasons)
        for i in sorted(reasons):
            self._count(names[i], reasons[i])
        write: Callable[[], None] | None = None
        if self._taken == self.folder.samples_in(batch.shard):
            write = partial(self._write, batch.shard, self._encoding.parts(), self._status, self._saved)
            if self._encoding.size > _BESIDE:
                write()
                write = None
            self._encoding, self._status, self._saved = _Encoding(self.encoder), [], []
            self._taken, self._rows = 0, 0
        self._report()
        return write

    def _write(self, shard: int, parts: list[Any], status: list[str], saved: list[tuple[int, str]]) -> None:
        if self.pictures is not None:
            self.pictures.write_index(shard, saved)
        with self.folder.write_predictions(shard) as temporary:
            self.encoder.write(temporary, parts)
        self.folder.write_ledger(shard, status)

    def _count(self, name: str, error: str) -> None:
        if not error:
            self.ok += 1
        else:
            self.failed += 1
            if len(self.failures) < _SHOWN_FAILURES:
                self.failures.append((name, error))

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.ok + self.failed, self.folder.job.samples)


def shards_of(samples: Iterator[Sample], rows: int, done: set[int]) -> Iterator[tuple[int, tuple[Sample, ...]]]:
    """The shards of ``rows`` samples that are not ``done``: the number and the samples of each."""
    shard = 0
    while members := tuple(islice(samples, rows)):
        if shard not in done:
            yield shard, members
        shard += 1


def batches_of(shard: int, rows: int, members: Sequence[Sample], batch_size: int) -> Iterator[Batch]:
    """The batches of a shard of a job with ``rows`` samples per shard. A batch never spans two shards."""
    for start in range(0, len(members), batch_size):
        yield Batch(shard, shard * rows + start, tuple(members[start : start + batch_size]))


def schedule(
    loader: Loader,
    backend: Backend,
    writer: Writer,
    batches: Iterator[Batch],
    workers: int | None,
    batch_size: int,
    callers: int | None = None,
) -> Schedule[Batch, Loaded, Answers]:
    """The three steps, and the number of threads for each."""
    predictor = GroupPredictor(backend, loader, batch_size)

    def infer(loaded: Loaded) -> Answers:
        saved = None if writer.pictures is None else partial(_watch, writer.pictures, loaded.batch)
        return predictor.answers(loaded.arrays, saved)

    threads = workers or len(os.sched_getaffinity(0))
    waiting = waiting_threads(backend)
    return Schedule(
        batches,
        lambda batch: Loaded(batch, loader.read(batch.samples)),
        infer,
        writer.take,
        workers=threads + waiting,
        inferring=waiting or min(callers or threads, threads),
        ahead=threads + max(1, waiting),
    )


def _watch(pictures: Pictures, batch: Batch, group: Group) -> Seen:
    """Takes the pictures of a group, and returns what saves them with the outputs."""
    shown = pictures.pictures(group.inputs)

    def seen(outputs: Mapping[str, Array], every: Mapping[str, Array]) -> None:
        good = answered(group.rows, dict(outputs), {})
        pictures.save(batch.first, batch.samples, group.rows, good, shown, every)

    return seen
