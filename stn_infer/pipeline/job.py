"""The output folder of a job: the job's description, its predictions and its status files.

    run.json                    the job's description; a resumed job must have the same
    predictions-00000.<format>  the predicted samples of a fixed range of samples
    ledger-00000.csv            the status file of that range: one row per input, ok or failed
    run.lock                    the process that is working in the folder

A status file is written after its predictions, so its presence marks the shard as done. The folder may be a URL of an
object store, see ``storage.py``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

from stn_infer.activation import Scores
from stn_infer.errors import OutputError
from stn_infer.files import is_leftover
from stn_infer.pipeline.formats import quoted, quoted_all
from stn_infer.pipeline.lock import LOCK_NAME
from stn_infer.pipeline.storage import Lock, Storage, storage_of
from stn_infer.preprocess.rule import Preprocess
from stn_infer.version import __version__

SCHEMA_VERSION = 5
MANIFEST_NAME = "run.json"
LEDGER_COLUMNS = ("input", "status", "error", "shard", "row")

# The fields that a resumed job must not change; it may use another device and batch size.
_MEANING = (
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
    "scores",
    "top_k",
    "threshold",
    "outputs",
    "stored",
    "pictures",
    "stn_infer_version",
    "runtime",
    "libraries",
    "plugin",
    "cpu",
)


_OWN = re.compile(rf"{re.escape(MANIFEST_NAME)}|{re.escape(LOCK_NAME)}|predictions-\d{{5,}}\.\w+|ledger-\d{{5,}}\.csv")
_WORDS = {
    "model_sha256": "the model's graph, weights or code differ",
    "inputs_sha256": "the inputs' names differ",
    "inputs_stat_sha256": "the inputs' sizes or modification times differ",
    "inputs_content_sha256": "the inputs' contents differ, or were compared in only one of the two runs",
    "plugin": "the plugin library differs",
    "cpu": "this CPU has other features, so that its results may differ in the last bits",
}


@dataclass(frozen=True)
class Job:
    """A job's description, as stored in ``run.json``.

    Attributes:
        model: the source or the file's name, without its folder.
        model_sha256: of everything that determines the model's outputs; empty if an open backend was passed.
        samples, inputs_sha256: the number of samples, and the fingerprint of their names.
        inputs_stat_sha256: of the sizes and modification times of their files.
        inputs_content_sha256: of the content of their files if ``check_inputs`` is set, else empty; if both runs
            have it, modification times are not compared.
        backend, device, batch_size: what runs the model.
        runtime, libraries, plugin, cpu: see :class:`~stn_infer.pipeline.environment.Environment`; the CPU is compared
            if both runs are on one.
        format, shard_rows: the output format, and the samples per shard, including failed ones.
        preprocess, labels: the values in use, from the model's file, the user or the defaults.
        scores: what the scores of the classes are; None if there are none.
        top_k, threshold: which classes are shown.
        outputs: the names of the model's outputs.
        stored: the names of those that are stored.
        pictures: the folder of the pictures; empty if none are saved.
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
    scores: Scores | None
    top_k: int | None
    threshold: float | None
    outputs: tuple[str, ...]
    stored: tuple[str, ...]
    runtime: str
    libraries: str
    plugin: str
    cpu: str
    pictures: str = ""
    schema_version: int = SCHEMA_VERSION
    stn_infer_version: str = __version__


class LedgerRow(NamedTuple):
    """A row of a status file: ``status`` is "ok" or "failed"; ``row`` is the index in the shard's predictions."""

    input: str
    status: str
    error: str
    shard: int
    row: int | None


@dataclass(frozen=True)
class Folder:
    """The output folder of a job; :meth:`open` creates or checks and locks it, :meth:`close` unlocks it."""

    storage: Storage
    job: Job
    _lock: Lock | None = None

    @classmethod
    def open(cls, path: Path | str, job: Job, resume: bool, overwrite: bool = False) -> Folder:
        """Open ``path`` for ``job`` and lock it.

        Args:
            path: the folder, or its URL.
            job: the job.
            resume: continue the job in it.
            overwrite: delete the job in it.

        Raises:
            OutputError: the folder cannot be written, another job is working in it, it is not empty and neither
                ``resume`` nor ``overwrite`` is set, it contains another job, or something else than a job.
        """
        storage = storage_of(path)
        _check_contents(storage, job, resume, overwrite)  # a job that is refused must not lock out one that is not
        lock = storage.lock()
        try:
            # again: another job may have started before the lock was taken
            names = _check_contents(storage, job, resume, overwrite)
            storage.remove_leftovers()
            if overwrite:  # the description first, so that what is left cannot be resumed
                for name in sorted(filter(_OWN.fullmatch, names), key=MANIFEST_NAME.__ne__):
                    if name != LOCK_NAME:
                        storage.remove(name)
            storage.write(MANIFEST_NAME, _to_json(job).encode())
        except BaseException:
            lock.release()
            raise
        return cls(storage, job, lock)

    def close(self) -> None:
        """Release the folder's lock."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def path(self) -> Path | str:
        """The folder, or its URL."""
        return self.storage.path

    def has_job(self) -> bool:
        """Whether this job's description is there: on another machine the same path may be another folder."""
        return self.storage.exists(MANIFEST_NAME) and self.storage.read(MANIFEST_NAME) == _to_json(self.job).encode()

    def predictions(self, shard: int) -> str:
        """The name of the file of a shard's predictions."""
        return f"predictions-{shard:05d}.{self.job.format}"

    def ledger(self, shard: int) -> str:
        """The name of the status file of a shard."""
        return f"ledger-{shard:05d}.csv"

    def done(self) -> set[int]:
        """The numbers of the shards that were written completely."""
        names, shards = set(self.storage.create()), range(-(-self.job.samples // self.job.shard_rows))
        return {shard for shard in shards if self.ledger(shard) in names and self.predictions(shard) in names}

    def is_done(self, shard: int) -> bool:
        """Whether a shard was written completely."""
        return self.storage.exists(self.ledger(shard)) and self.storage.exists(self.predictions(shard))

    def read_done(self, shard: int) -> list[LedgerRow]:
        """The rows of the status file of a shard that is done.

        Raises:
            OutputError: it does not have one row for each of the shard's inputs.
        """
        path = f"{self.path}/{self.ledger(shard)}"
        rows = list(ledger_rows(self.storage.read(self.ledger(shard)), path))
        wanted = self.samples_in(shard)
        good = [row for row in rows if row.status == "ok"]
        if (
            len(rows) != wanted
            or any(row.shard != shard or row.status != ("failed" if row.error else "ok") for row in rows)
            or [row.row for row in good] != list(range(len(good)))
        ):
            raise OutputError(
                f"cannot resume: {path} is damaged; expected one row for each of {wanted} inputs; "
                "delete it to predict them again"
            )
        return rows

    def samples_in(self, shard: int) -> int:
        """The number of samples of a shard: the last one may have fewer than the others."""
        return min(self.job.shard_rows, self.job.samples - shard * self.job.shard_rows)

    def write_predictions(self, shard: int) -> AbstractContextManager[Path]:
        """A temporary path to write a shard's predictions to, which appear when the block ends.

        Raises:
            OutputError: they cannot be written.
        """
        return self.storage.appearing(self.predictions(shard))

    def write_ledger(self, shard: int, lines: Sequence[str]) -> None:
        """Write the status file of a shard, which marks it as done; ``lines`` are from :func:`status_lines`.

        Raises:
            OutputError: it cannot be written.
        """
        header = ",".join(LEDGER_COLUMNS) + "\n"
        self.storage.write(self.ledger(shard), (header + "".join(lines)).encode())


def status_lines(names: Sequence[str], errors: Mapping[int, str], shard: int, row: int) -> str:
    """Lines of a status file for consecutive inputs.

    Args:
        names: of the inputs.
        errors: by position in ``names``, why an input failed.
        shard: the number of the shard.
        row: the row of the first prediction in the shard's file.
    """
    fields = quoted_all(names)
    if not errors:
        end = f",ok,,{shard},"
        return "".join([f"{name}{end}{number}\n" for number, name in enumerate(fields, row)])
    lines = []
    for position, name in enumerate(fields):
        error = errors.get(position)
        lines.append(f"{name},failed,{quoted(error)},{shard},\n" if error else f"{name},ok,,{shard},{row}\n")
        row += not error
    return "".join(lines)


def read_ledger(path: Path) -> Iterator[LedgerRow]:
    """The rows of a status file.

    Raises:
        OutputError: the file is not a status file, or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot read the status file {path}: {error.strerror or error}") from error
    return ledger_rows(content, str(path))


def ledger_rows(content: bytes, path: str) -> Iterator[LedgerRow]:
    """The rows of a status file with this content; raises as :func:`read_ledger`."""
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
        if tuple(next(reader, ())) != LEDGER_COLUMNS:
            raise OutputError(f"{path} is not a status file; expected the columns {','.join(LEDGER_COLUMNS)}")
        for name, status, error, shard, row in reader:
            yield LedgerRow(name, status, error, int(shard), int(row) if row else None)
    except (ValueError, csv.Error) as error:
        raise OutputError(f"cannot read the status file {path}: {error}") from error


def shard_rows_of(output: Path | str) -> int | None:
    """The samples per shard of the job in a folder; None if there is no job."""
    storage = storage_of(output)
    try:
        found = json.loads(storage.read(MANIFEST_NAME))["shard_rows"]
    except (OutputError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def _check_contents(storage: Storage, job: Job, resume: bool, overwrite: bool) -> list[str]:
    """Create the folder; raise unless it is empty, or contains the same job, or with ``overwrite`` any job.

    A run that was killed before its first file was complete leaves the lock and a temporary file: no job yet.
    Returns the names in it.
    """
    path, names = storage.path, storage.create()
    occupied = any(name != LOCK_NAME and not is_leftover(name, MANIFEST_NAME) for name in names)
    if overwrite:
        # the pictures may be in a folder of their own inside
        beside = os.path.relpath(job.pictures, path).partition(os.sep)[0] if job.pictures else ""
        others = [name for name in names if not (_OWN.fullmatch(name) or is_leftover(name) or name == beside)]
        if others:
            raise OutputError(f"{path} contains other files than a job's ({others[0]}); give another folder")
        return names
    if occupied and not resume:
        raise OutputError(
            f"{path} is not empty; give a new folder, --resume to continue the job in it, or --overwrite to replace it"
        )
    if occupied and MANIFEST_NAME not in names:
        raise OutputError(
            f"{path} contains no job to resume (no {MANIFEST_NAME}); give the folder of a job, or a new folder"
        )
    if occupied:
        _check_same(storage, job)
    return names


def _to_json(job: Job) -> str:
    return json.dumps(asdict(job), indent=2, ensure_ascii=False) + "\n"


def _check_same(storage: Storage, job: Job) -> None:
    manifest = f"{storage.path}/{MANIFEST_NAME}"
    try:
        before = json.loads(storage.read(MANIFEST_NAME))
        now = json.loads(_to_json(job))
        if before["schema_version"] != SCHEMA_VERSION:
            raise OutputError(
                f"cannot resume: {manifest} was written by another version of stn-infer "
                f"({before['stn_infer_version']}, this is {__version__}); give a new folder"
            )
        different = [key for key in _MEANING if before[key] != now[key]]
        if now["inputs_content_sha256"] and before["inputs_content_sha256"]:  # then modification times are not compared
            different = [key for key in different if key != "inputs_stat_sha256"]
        if not before["device"] == now["device"] == "cpu":
            different = [key for key in different if key != "cpu"]
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(f"cannot resume: {manifest} is damaged ({error}); give a new folder") from error
    if different:
        key = different[0]
        what = _WORDS.get(key) or f"{key} was {_short(before[key])}, now {_short(now[key])}"
        others = [_WORDS.get(key, key).removesuffix(" differ") for key in different[1:]]
        raise OutputError(
            f"cannot resume another job: {what}"
            + (f" ({', '.join(others)} differ too)" if others else "")
            + "; use the same options and inputs, or give a new folder"
        )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
