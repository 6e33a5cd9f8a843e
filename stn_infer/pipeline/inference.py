"""Batched inference over many inputs: loading, prediction and writing run concurrently in bounded memory.

On a CPU there is one worker per core, and each runs the model with one thread. On a GPU a few workers keep it busy,
each with a batch on its way there, in computation or on its way back, and the others decode. `schedule.py` assigns work
to workers; this module has the steps: load, predict, write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stn_infer.activation import ASSUMED_SCORES, Scores, resolve_scores
from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.backends.batching import row_axis
from stn_infer.backends.embedded import taking_pictures
from stn_infer.data.inputs import Inputs, Sample
from stn_infer.data.loader import Group, LoadedBatch, Loader, resolve_preprocess, tell_assumption
from stn_infer.errors import InputError, ModelError, UsageError, of_input
from stn_infer.files import appearing
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import Format, check_classes, make_format, printable, printable_names
from stn_infer.pipeline.groups import Answers, GroupPredictor, Seen, answered, merged, waiting_threads
from stn_infer.pipeline.job import Folder, Job, status_lines
from stn_infer.pipeline.pictures import Pictures
from stn_infer.pipeline.schedule import Schedule
from stn_infer.pipeline.warps import WatchedBackend
from stn_infer.predictions import Classifier
from stn_infer.preprocess.geometry import placements
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed
from stn_infer.repairs.dependence import dependence_note

SHARD_ROWS = 4096
SHARD_BYTES = 256 << 20  # a shard is held in memory, so a shard of large outputs has fewer rows
_BESIDE = 32 << 20  # a shard of this size is written while the next one is collected
_SHOWN_FAILURES = 5
_SUFFIXES = 4  # that are named in a note

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RunSummary(Printed):
    """The result of a job; as text, what the command prints.

    Attributes:
        output: the folder of the predictions and status files.
        total: the number of samples, ``ok`` + ``failed``.
        resumed: the number of samples that an earlier, interrupted run had completed.
        seconds: wall time of this run, without opening the model.
        failures: (input, error) of the first few failed samples.
        preprocess: how images became inputs; None if the model takes no images.
        batch_dependent: outputs that change with the batch size, by the metadata or the file's trial; empty with one
            sample per batch.
        left_out: by suffix, the number of files in the folders that are neither images nor arrays.
        format: of the predictions.
        scores: what the confidences were computed by; None if the model predicts no classes.
        assumed_scores: whether nothing says that this is right.
    """

    output: Path
    total: int
    ok: int
    failed: int
    resumed: int
    seconds: float
    failures: tuple[tuple[str, str], ...]
    preprocess: Preprocess | None
    batch_dependent: tuple[str, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    scores: Scores | None = None
    assumed_scores: bool = False
    format: str = "csv"

    @property
    def headline(self) -> str:
        """How many inputs were predicted, how fast, and where the predictions are."""
        resumed = f" ({self.resumed} of them before)" if self.resumed else ""
        rate = (self.total - self.resumed) / max(self.seconds, 1e-9)
        return (
            f"{self.total} inputs{resumed}: {self.ok} predicted, {self.failed} failed, in {self.seconds:.2f} s "
            f"({rate:.0f}/s); {self.output}/predictions-*.{self.format}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user."""
        notes = []
        if self.batch_dependent:
            notes.append(f"{dependence_note(self.batch_dependent)}; see --batch-size")
        if self.assumed_scores:
            notes.append(ASSUMED_SCORES)
        if self.left_out:
            notes.append(_left_out(self.left_out))
        return tuple(notes)

    def lines(self) -> list[str]:
        """The headline, notes, and the first inputs that failed."""
        failed = [f"failed: {of_input(name, error)}" for name, error in self.failures]
        if self.failed > len(failed):
            failed.append(f"failed: and {self.failed - len(failed)} more, see the status files")
        return [self.headline, *(f"note: {note}" for note in self.notes), *failed]


def _left_out(counts: Sequence[tuple[str, int]]) -> str:
    total = sum(count for _, count in counts)
    named = ", ".join(f"{count} {'.' + suffix if suffix else 'without suffix'}" for suffix, count in counts[:_SUFFIXES])
    more = ", ..." if len(counts) > _SUFFIXES else ""
    files = "1 file in the folders is" if total == 1 else f"{total} files in the folders are"
    return f"{files} neither images nor arrays by their suffixes ({named}{more}); name a file itself to read it"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a job, documented at :func:`stn_infer.run`.

    Raises:
        UsageError: ``batch_size``, ``workers`` or ``shard_rows`` is below 1.
    """

    batch_size: int = 64
    format: str = "csv"
    resume: bool = False
    check_inputs: bool = False
    preprocess: Preprocess | str | None = None
    labels: Sequence[str] | None = None
    activation: str | None = None
    top_k: int | None = None
    threshold: float | None = None
    outputs: Sequence[str] | None = None
    workers: int | None = None
    shard_rows: int | None = None
    strict: bool = False
    overwrite: bool = False
    save_images: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is at least 1, not {value}")
        if self.resume and self.overwrite:
            raise UsageError("--resume continues the job in the folder, --overwrite replaces it; give only one of them")


def run_job(
    runner: Backend,
    inputs: Sequence[str | Path],
    output: Path,
    options: RunOptions,
    *,
    model: str,
    model_sha256: str = "",
    progress: Progress | None = None,
) -> RunSummary:
    """Predict ``inputs`` with an open backend and write the results to the folder ``output``.

    Args:
        runner: on a CPU it should use one thread.
        inputs: files, folders, glob patterns, arrays, ``@list.txt``, ``-`` for stdin.
        output: a folder, new or empty unless the job is resumed.
        options: the job's options.
        model, model_sha256: the model's name and hash in ``run.json``; a resumed job must have the same.
        progress: called with (samples done, total samples) after each batch, by one worker at a time.

    Raises:
        UsageError, InputError, OutputError, ModelError: as for :func:`stn_infer.run`.
    """
    started = time.perf_counter()
    if not runner.inputs:
        raise ModelError("the model has no inputs: there is nothing to predict")
    watched, whole = runner, runner.metadata.preprocess
    runner = taking_pictures(runner)
    how = resolve_preprocess(runner.inputs, runner.metadata.preprocess, options.preprocess)
    decoder = Decoder(runner.metadata.decodings, runner.inputs, runner.outputs)
    classifier = classifier_of(
        runner.metadata, options.activation, options.labels, top_k=options.top_k, threshold=options.threshold
    )
    check_classes(runner.outputs, None, options.activation, decoder=decoder)
    encoder = make_format(options.format, runner.outputs, classifier, decoder, options.outputs)
    axis = row_axis(runner.inputs, runner.outputs)
    loader = Loader(runner.inputs, how, axis)
    pictures = None
    if options.save_images is not None:
        if not isinstance(watched, WatchedBackend):
            raise UsageError("save_images needs a model that is opened here: give its file or source")
        image = next((spec.name for spec in runner.inputs if len(spec.shape) == 4), "")
        scores = encoder.outputs[0].name if encoder.classifies else ""
        inner = whole if runner is not watched else how
        embedded = runner.metadata.embedded
        sized = None if embedded is None else embedded.size
        places = placements(whole, sized) if whole is not None and sized is not None else None
        pictures = Pictures(options.save_images, watched.warps, how, inner, places, image, scores, classifier, decoder)
    with Inputs(inputs, loader.arrays.count_rows, may_be_empty=axis is not None) as samples:
        survey = samples.survey(options.check_inputs)
        if survey.images and not loader.takes_images:
            raise InputError(
                "the model's input is not a single image [N, C, H, W] of 1 or 3 channels; give .npy or .npz files with "
                + ", ".join(spec.name for spec in runner.inputs)
            )
        if survey.images or loader.arrays.pixels:
            tell_assumption(how, runner.metadata.preprocess, options.preprocess, strict=options.strict)
        job = Job(
            model=model,
            model_sha256=model_sha256,
            samples=survey.samples,
            inputs_sha256=survey.fingerprint,
            inputs_stat_sha256=survey.stat_fingerprint,
            inputs_content_sha256=survey.content_fingerprint,
            backend=runner.name,
            device=runner.device,
            batch_size=options.batch_size,
            format=options.format,
            shard_rows=options.shard_rows or shard_rows(runner),
            preprocess=how,
            labels=classifier.labels,
            scores=classifier.scores if encoder.classifies else None,
            top_k=options.top_k,
            threshold=options.threshold,
            outputs=tuple(spec.name for spec in runner.outputs),
            stored=tuple(spec.name for spec in encoder.stored),
            runtime=_runtime(runner),
            libraries=_libraries(),
            pictures="" if pictures is None else os.path.abspath(pictures.folder),
        )
        if pictures is not None:
            pictures.check(options.resume, options.overwrite)
        with Folder.open(output, job, options.resume, options.overwrite) as folder:
            if pictures is not None:
                pictures.open(options.overwrite)
            writer = _Writer(folder, encoder, progress, pictures)
            writer.skip_done()
            _schedule(
                loader,
                runner,
                writer,
                _batches(samples, folder, options.batch_size),
                options.workers,
                options.batch_size,
            ).run()
            summary = writer.summary(time.perf_counter() - started, how)
            dependent = runner.metadata.batch_dependent if options.batch_size > 1 else ()
            return replace(
                summary,
                batch_dependent=dependent,
                left_out=survey.left_out,
                format=options.format,
                scores=job.scores,
                assumed_scores=encoder.classifies and options.activation is None and runner.metadata.scores is None,
            )


def classifier_of(
    metadata: ModelMetadata,
    activation: str | None = None,
    labels: Sequence[str] | None = None,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
) -> Classifier:
    """How a model's scores become predictions: as its file says, with the user's changes.

    Args:
        metadata: of the model, from a file, or from :func:`stn_infer.open_backend`, which also looks at the graph.
        activation: ``softmax``, ``sigmoid`` or ``none``; None: as the file says, else a softmax.
        labels: the name of each class; None: as the file says.
        top_k, threshold: as for :class:`~stn_infer.predictions.Classifier`.

    Raises:
        UsageError: they do not fit each other or the model.
    """
    names = metadata.labels if labels is None else tuple(labels)
    return Classifier(resolve_scores(metadata.scores, activation), names, top_k, threshold)


@dataclass(frozen=True)
class _Batch:
    """Consecutive samples of one shard; ``first`` is the first one's position in the job."""

    shard: int
    first: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class _Loaded:
    """A batch and its arrays."""

    batch: _Batch
    arrays: LoadedBatch

    @property
    def holds_the_lock(self) -> bool:
        """As for the schedule."""
        return self.arrays.holds_the_lock


@dataclass
class _Writer:
    """Collects predicted batches in order and writes them as shards."""

    folder: Folder
    encoder: Format
    progress: Progress | None
    pictures: Pictures | None = None
    resumed: int = 0
    ok: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    _parts: list[Any] = field(default_factory=list)
    _status: list[str] = field(default_factory=list)
    _saved: list[tuple[int, str]] = field(default_factory=list)
    _taken: int = 0
    _rows: int = 0
    _bytes: int = 0

    def skip_done(self) -> None:
        """Count the samples that an earlier run has completed."""
        job = self.folder.job
        for shard in range(-(-job.samples // job.shard_rows)):
            if self.folder.is_done(shard):
                for row in self.folder.read_done(shard):
                    self._count(row.input, row.error)
                    self.resumed += 1
        self._report()

    def take(self, batch: _Batch, loaded: _Loaded, answers: Answers) -> Callable[[], None] | None:
        """Encode and add a batch; after the last batch of a shard, returns what writes the shard."""
        errors = dict(loaded.arrays.errors)
        names = printable_names([sample.name for sample in batch.samples])
        rows, outputs = merged(loaded.arrays, answers, errors)
        if rows:
            good = names if len(rows) == len(names) else [names[i] for i in rows]
            self._parts.append(self.encoder.encode(self.encoder.rows(tuple(good), outputs)))
            self._bytes += sum(values.nbytes for values in outputs.values())
        if self.pictures is not None:
            self._saved += [(batch.first + i, names[i]) for i in rows]
        reasons = {i: printable(" ".join(reason.split())) for i, reason in errors.items()}
        self._status.append(status_lines(names, reasons, batch.shard, self._rows))
        self._taken += len(names)
        self._rows += len(names) - len(reasons)
        self.ok += len(names) - len(reasons)
        for i in sorted(reasons):
            self._count(names[i], reasons[i])
        job = self.folder.job
        write: Callable[[], None] | None = None
        if self._taken == min(job.shard_rows, job.samples - batch.shard * job.shard_rows):
            write = partial(self._write, batch.shard, self._parts, self._status, self._saved)
            if self._bytes > _BESIDE:
                write()
                write = None
            self._parts, self._status, self._saved, self._taken, self._rows, self._bytes = [], [], [], 0, 0, 0
        self._report()
        return write

    def _write(self, shard: int, parts: list[Any], status: list[str], saved: list[tuple[int, str]]) -> None:
        if self.pictures is not None:
            self.pictures.write_index(shard, saved)
        with appearing(self.folder.predictions(shard)) as temporary:
            self.encoder.write(temporary, parts)
        self.folder.write_ledger(shard, status)

    def summary(self, seconds: float, preprocess: Preprocess | None) -> RunSummary:
        total = self.ok + self.failed
        assert total == self.folder.job.samples, "a sample is missing"
        path, failures = self.folder.path, tuple(self.failures)
        return RunSummary(path, total, self.ok, self.failed, self.resumed, seconds, failures, preprocess)

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


def _batches(samples: Inputs, folder: Folder, batch_size: int) -> Iterator[_Batch]:
    """The remaining batches. A batch never spans two shards."""
    rest = iter(samples)
    shard = 0
    while members := tuple(islice(rest, folder.job.shard_rows)):
        if not folder.is_done(shard):
            for start in range(0, len(members), batch_size):
                yield _Batch(shard, shard * folder.job.shard_rows + start, members[start : start + batch_size])
        shard += 1


def _schedule(
    loader: Loader,
    backend: Backend,
    writer: _Writer,
    batches: Iterator[_Batch],
    workers: int | None,
    batch_size: int,
) -> Schedule[_Batch, _Loaded, Answers]:
    """The three steps, and the number of threads for each."""
    predictor = GroupPredictor(backend, loader, batch_size)

    def infer(loaded: _Loaded) -> Answers:
        saved = None if writer.pictures is None else partial(_watch, writer.pictures, loaded.batch)
        return predictor.answers(loaded.arrays, saved)

    threads = workers or len(os.sched_getaffinity(0))
    waiting = waiting_threads(backend)
    return Schedule(
        batches,
        lambda batch: _Loaded(batch, loader.read(batch.samples)),
        infer,
        writer.take,
        workers=threads + waiting,
        inferring=waiting or threads,
        ahead=threads + max(1, waiting),
    )


def _watch(pictures: Pictures, batch: _Batch, group: Group) -> Seen:
    """Takes the pictures of a group, and returns what saves them with the outputs."""
    shown = pictures.pictures(group.inputs)

    def seen(outputs: Mapping[str, Array], every: Mapping[str, Array]) -> None:
        good = answered(group.rows, dict(outputs), {})
        pictures.save(batch.first, batch.samples, group.rows, good, shown, every)

    return seen


def _runtime(backend: Backend) -> str:
    about = backend.describe()
    return " ".join(about[name] for name in ("runtime", "version") if name in about)


def _libraries() -> str:
    import PIL

    return f"NumPy {np.__version__}, Pillow {PIL.__version__}"


def shard_rows(backend: Backend) -> int:
    """Rows per shard, from the known output sizes; the same for the same model."""
    size = sum(
        int(np.prod([axis or 256 for axis in spec.shape[1:]], dtype=np.int64)) * spec.dtype.itemsize
        for spec in backend.outputs
    )
    return max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, size)))
