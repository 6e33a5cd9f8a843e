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
from stn_infer.backends.base import Backend, OverlappingBackend, PixelBackend
from stn_infer.backends.batching import row_axis
from stn_infer.data.inputs import Inputs, Sample
from stn_infer.data.loader import Group, LoadedBatch, Loader, resolve_preprocess, tell_assumption
from stn_infer.errors import InputError, ModelError, UsageError
from stn_infer.files import appearing
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import Format, check_classes, make_format, printable, printable_names
from stn_infer.pipeline.job import Folder, Job, status_lines
from stn_infer.pipeline.pictures import Pictures
from stn_infer.pipeline.schedule import Schedule
from stn_infer.pipeline.warps import WatchedBackend
from stn_infer.predictions import Classifier
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
        failed = [f"failed: {error if name in error else f'{name}: {error}'}" for name, error in self.failures]
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
        if not isinstance(runner, WatchedBackend):
            raise UsageError("save_images needs a model that is opened here: give its file or source")
        image = next((spec.name for spec in runner.inputs if len(spec.shape) == 4), "")
        scores = encoder.outputs[0].name if encoder.classifies else ""
        pictures = Pictures(options.save_images, runner.warps, how, image, scores, classifier, decoder)
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
            _schedule(loader, runner, writer, _batches(samples, folder, options.batch_size), options.workers).run()
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


# For each group of a batch: the outputs by name, or an error message.
Answers = list[dict[str, Array] | str]
# Takes a group's outputs of the model, and all that the backend returned.
Seen = Callable[[Mapping[str, Array], Mapping[str, Array]], None]


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
    loader: Loader, backend: Backend, writer: _Writer, batches: Iterator[_Batch], workers: int | None
) -> Schedule[_Batch, _Loaded, Answers]:
    """The three steps, and the number of threads for each."""
    predictor = GroupPredictor(backend, loader)

    def infer(loaded: _Loaded) -> Answers:
        saved = None if writer.pictures is None else partial(_watch, writer.pictures, loaded.batch)
        return predictor.answers(loaded.arrays, saved)

    threads = workers or len(os.sched_getaffinity(0))
    # On a GPU, threads that run the model wait for it most of the time.
    waiting = 0 if backend.device == "cpu" else backend.in_flight if isinstance(backend, OverlappingBackend) else 1
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


class GroupPredictor:
    """Runs a backend on groups of :meth:`~stn_infer.data.loader.Loader.read`; their memory is then used again."""

    def __init__(self, backend: Backend, loader: Loader) -> None:
        self._run, self._loader = backend.run, loader
        self._outputs = [spec.name for spec in backend.outputs]
        self._any_size = any(None in spec.shape[1:] for spec in backend.inputs)
        self._run_pixels = backend.run_pixels if isinstance(backend, PixelBackend) and backend.takes_pixels else None

    def predict(self, group: Group) -> dict[str, Array]:
        """The model's outputs.

        Raises:
            ModelError, InputError: as for :meth:`stn_infer.backends.base.Backend.run`.
        """
        pixels = None if self._run_pixels is None else self._loader.pixels_of(group)
        if pixels is not None and self._run_pixels is not None:
            assert self._loader.preprocess is not None
            used, outputs = group, self._run_pixels(pixels, self._loader.preprocess)
        else:
            used = self._loader.prepare(group)
            outputs = self._run(used.inputs)
        outputs = {name: _apart(output, used) for name, output in outputs.items()}
        self._loader.release(used)
        return outputs

    def answers(self, loaded: LoadedBatch, watch: Callable[[Group], Seen] | None = None) -> Answers:
        """For each group the outputs, or why there are none: the model does not take images of their size.

        Args:
            loaded: the groups.
            watch: called with each group before it runs; what it returns is called with its outputs.

        Raises:
            ModelError: the runtime failed, and would on all other batches.
        """
        return [self._answer(group, None if watch is None else watch(group)) for group in loaded.groups]

    def _answer(self, group: Group, seen: Seen | None) -> dict[str, Array] | str:
        try:
            outputs = self.predict(group)
        except ModelError as error:
            if not self._any_size:  # all other batches would fail too
                raise
            return str(error)
        found = {name: outputs[name] for name in self._outputs}
        if seen is not None:
            seen(found, outputs)
        return found


def _apart(output: Array, group: Group) -> Array:
    """``output``, copied if it may be a part of an input, whose memory is used again."""
    shared = any(np.may_share_memory(output, array) for array in group.inputs.values())
    return output.copy() if shared else output


def merged(loaded: LoadedBatch, answers: Answers, errors: dict[int, str]) -> tuple[list[int], dict[str, Array]]:
    """Positions of the predicted samples in the batch, and their outputs in order; adds ``errors`` for the others."""
    rows: list[int] = []
    pieces: list[dict[str, Array]] = []
    for group, outputs in zip(loaded.groups, answers, strict=True):
        if isinstance(outputs, str):  # the network does not support this input size
            errors.update(dict.fromkeys(group.rows, outputs))
            continue
        good = answered(group.rows, outputs, errors)
        if good:
            everything = len(good) == len(group.rows)
            rows += group.rows if everything else [group.rows[i] for i in good]
            pieces.append(outputs if everything else {name: values[good] for name, values in outputs.items()})
    if len(pieces) <= 1:
        return rows, pieces[0] if pieces else {}
    order = np.argsort(rows)
    try:
        merged = {name: np.concatenate([piece[name] for piece in pieces])[order] for name in pieces[0]}
    except ValueError:
        raise ModelError(
            "inputs of different sizes gave outputs of different sizes; run each input size separately"
        ) from None
    return sorted(rows), merged


def answered(rows: Sequence[int], outputs: dict[str, Array], errors: dict[int, str]) -> Sequence[int]:
    """Positions in a group whose outputs contain no NaN; adds ``errors`` for the others."""
    bad: dict[int, str] = {}
    for name, values in outputs.items():
        if values.ndim == 0 or len(values) != len(rows):
            raise ModelError(
                f"output {name!r} has shape {list(values.shape)} for {len(rows)} samples; expected the batch on axis 0"
            )
        if values.dtype.kind == "f" and np.isnan(values).any():
            for i in np.flatnonzero(np.isnan(values.reshape(len(rows), -1)).any(axis=1)).tolist():
                bad.setdefault(i, f"the model's output {name!r} contains NaN for this input")
    errors.update({rows[i]: reason for i, reason in bad.items()})
    return [i for i in range(len(rows)) if i not in bad] if bad else range(len(rows))


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
