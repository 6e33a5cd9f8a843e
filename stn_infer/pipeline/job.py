"""The output folder of a job: what the job is, which of its shards are done, and its ledgers.

    run.json                    what was asked for; a resumed job must ask for the same
    predictions-00000.<format>  a fixed range of samples, those that could be predicted
    ledger-00000.csv            every sample of that range, and what became of it
    run.lock                    who works in the folder just now

A ledger appears after its predictions: where it is there, the shard is done.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

from stn_infer.errors import OutputError
from stn_infer.files import write_atomically
from stn_infer.metadata import Preprocess
from stn_infer.pipeline.formats import quoted
from stn_infer.pipeline.lock import LOCK_NAME, FolderLock
from stn_infer.version import __version__

SCHEMA_VERSION = 2
MANIFEST_NAME = "run.json"
LEDGER_COLUMNS = ("input", "status", "error", "shard", "row")

# A resumed job may run elsewhere and in other batches, but must mean the same.
_MEANING = (
    "schema_version",
    "model",
    "model_sha256",
    "samples",
    "inputs_sha256",
    "inputs_stat_sha256",
    "inputs_content_sha256",
    "backend",
    "format",
    "shard_rows",
    "preprocess",
    "labels",
    "outputs",
)


_WORDS = {
    "model_sha256": "the model's graph, weights or code differ",
    "inputs_sha256": "the inputs' names differ",
    "inputs_stat_sha256": "the inputs' sizes or times of modification differ",
    "inputs_content_sha256": "the inputs' contents differ, or were compared in one of the two runs only",
}


@dataclass(frozen=True)
class Job:
    """What was asked for, as ``run.json`` keeps it.

    Attributes:
        model: the source or the file's name, without its folder.
        model_sha256: of everything that decides the model's answers; empty where a backend was given that was open.
        samples, inputs_sha256: how many, and the fingerprint of their names.
        inputs_stat_sha256: of their files' sizes and times of modification.
        inputs_content_sha256: of their files' bytes, where these were asked for; then times don't matter.
        backend, device, batch_size: what runs it, and how.
        format, shard_rows: how it is written; a shard holds ``shard_rows`` samples, failed ones included.
        preprocess, labels: as used, whether they came from the model's file, from the user or from nobody.
        outputs: the names of the model's outputs.
    """

    model: str
    model_sha256: str
    samples: int
    inputs_sha256: str
    inputs_stat_sha256: str
    inputs_content_sha256: str
    backend: str
    device: str
    batch_size: int
    format: str
    shard_rows: int
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    outputs: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION
    stn_infer_version: str = __version__


class LedgerRow(NamedTuple):
    """What became of a sample: ``status`` is "ok" or "failed"; ``row`` counts within the shard's predictions."""

    input: str
    status: str
    error: str
    shard: int
    row: int | None


@dataclass(frozen=True)
class Folder:
    """The output folder of a job; :meth:`open` makes or checks it, and :meth:`close` leaves it to others."""

    path: Path
    job: Job
    _lock: FolderLock

    @classmethod
    def open(cls, path: Path, job: Job, resume: bool) -> Folder:
        """Take ``path`` for ``job``.

        Raises:
            OutputError: it cannot be written, another job works in it, it holds something and ``resume`` was not asked
                for, or what it holds is another job.
        """
        _check_occupied(path, resume)
        lock = FolderLock.take(path)
        try:
            if _check_occupied(path, resume):  # again: another job may have come first
                _check_same(path / MANIFEST_NAME, job)
                for leftover in path.glob(".*.part"):
                    with suppress(OSError):
                        leftover.unlink()
            write_atomically(path / MANIFEST_NAME, _to_json(job).encode())
        except BaseException:
            lock.release()
            raise
        return cls(path, job, lock)

    def close(self) -> None:
        """Leave the folder to other jobs."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def predictions(self, shard: int) -> Path:
        """The file of a shard's predictions."""
        return self.path / f"predictions-{shard:05d}.{self.job.format}"

    def ledger(self, shard: int) -> Path:
        """The file of a shard's ledger."""
        return self.path / f"ledger-{shard:05d}.csv"

    def is_done(self, shard: int) -> bool:
        """Whether a shard was written whole."""
        return self.ledger(shard).exists() and self.predictions(shard).exists()

    def write_ledger(self, shard: int, lines: Sequence[str]) -> None:
        """Write the ledger of a shard, which marks it as done; its lines are those of :func:`ledger_line`.

        Raises:
            OutputError: it cannot be written.
        """
        header = ",".join(LEDGER_COLUMNS) + "\n"
        write_atomically(self.ledger(shard), (header + "".join(lines)).encode())


def ledger_line(name: str, error: str, shard: int, row: int) -> str:
    """A line of a ledger; ``row`` counts when there is no ``error``."""
    if error:
        return f"{quoted(name)},failed,{quoted(error)},{shard},\n"
    return f"{quoted(name)},ok,,{shard},{row}\n"


def read_ledger(path: Path) -> Iterator[LedgerRow]:
    """The rows of a ledger file.

    Raises:
        OutputError: it is not a ledger, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != LEDGER_COLUMNS:
                raise OutputError(f"{path} is no ledger; expected the columns {','.join(LEDGER_COLUMNS)}")
            for name, status, error, shard, row in reader:
                yield LedgerRow(name, status, error, int(shard), int(row) if row else None)
    except (OSError, ValueError, csv.Error) as error:
        raise OutputError(f"cannot read the ledger {path}: {error}") from error


def _check_occupied(path: Path, resume: bool) -> bool:
    """Make the folder; whether it holds something, which must be a job, and ``resume`` asked for."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(entry.name != LOCK_NAME for entry in path.iterdir())
    except OSError as error:
        raise OutputError(f"cannot make the output folder {path}: {error.strerror}") from error
    if occupied and not resume:
        raise OutputError(f"{path} is not empty; name a new folder, or --resume to continue the job in it")
    if occupied and not (path / MANIFEST_NAME).exists():
        raise OutputError(f"{path} holds no job to resume (no {MANIFEST_NAME}); name the folder of one, or a new one")
    return occupied


def _to_json(job: Job) -> str:
    return json.dumps(asdict(job), indent=2, ensure_ascii=False) + "\n"


def _check_same(manifest: Path, job: Job) -> None:
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))
        now = json.loads(_to_json(job))
        different = [key for key in _MEANING if before[key] != now[key]]
        if now["inputs_content_sha256"] and before["inputs_content_sha256"]:  # then times don't matter
            different = [key for key in different if key != "inputs_stat_sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"cannot resume: {manifest} is damaged ({error}); name a new folder") from error
    if different:
        key = different[0]
        what = _WORDS.get(key) or f"{key} was {_short(before[key])}, now {_short(now[key])}"
        others = [_WORDS.get(key, key).removesuffix(" differ") for key in different[1:]]
        raise OutputError(
            f"cannot resume another job: {what}"
            + (f" ({', '.join(others)} differ too)" if others else "")
            + "; ask for the same, or name a new folder"
        )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
