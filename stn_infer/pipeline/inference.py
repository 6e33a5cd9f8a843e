"""Batched inference over many inputs: loading, prediction and writing run concurrently in bounded memory.

On a CPU there is one worker per core, and each runs the model with one thread. On a GPU a few workers keep it busy,
each with a batch on its way there, in computation or on its way back, and the others decode. `schedule.py` assigns work
to workers; this module has the steps: load, predict, write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from stn_infer.activation import ASSUMED_SCORES, Scores
from stn_infer.backends.base import Backend
from stn_infer.data.inputs import Inputs, Sample, Survey
from stn_infer.data.loader import tell_assumption
from stn_infer.errors import InputError, UsageError, of_input
from stn_infer.pipeline.environment import Environment
from stn_infer.pipeline.job import Folder, Job, shard_rows_of
from stn_infer.pipeline.pictures import Pictures
from stn_infer.pipeline.plan import Plan, RunOptions, shard_rows
from stn_infer.pipeline.shards import Progress, Writer, batches_of, schedule, shards_of
from stn_infer.pipeline.warps import WatchedBackend
from stn_infer.preprocess.geometry import placements
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed, counted
from stn_infer.repairs.dependence import dependence_note

_SUFFIXES = 4  # that are named in a note
# A job on a cluster has about so many shards, and so many for each worker, so that all workers end at about the same
# time. Their samples are a multiple of so many, unless they become too large.
_SPREAD_SHARDS, _PER_WORKER, _QUANTUM = 64, 32, 64


class Spread(Protocol):
    """Has shards predicted and written elsewhere."""

    @property
    def workers(self) -> int:
        """The largest number of shards in work at once."""

    def __call__(self, writer: Writer, shards: Iterator[tuple[int, tuple[Sample, ...]]]) -> None:
        """Takes what counts shards, and the numbers and samples of those missing."""


@dataclass(frozen=True)
class RunSummary(Printed):
    """The result of a job; as text, what the command prints.

    Attributes:
        output: the folder of the predictions and status files, or its URL.
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

    output: Path | str
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
            f"{counted(self.total, 'input')}{resumed}: {self.ok} predicted, {self.failed} failed, "
            f"in {self.seconds:.2f} s ({rate:.0f}/s); {self.output}/predictions-*.{self.format}"
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
    files = f"{counted(total, 'file')} in the folders {'is' if total == 1 else 'are'}"
    return f"{files} neither images nor arrays by their suffixes ({named}{more}); name a file itself to read it"


def run_job(
    runner: Backend,
    inputs: Sequence[str | Path],
    output: Path | str,
    options: RunOptions,
    *,
    model: str,
    model_sha256: str = "",
    progress: Progress | None = None,
    environment: Environment | None = None,
    spread: Spread | None = None,
) -> RunSummary:
    """Predict ``inputs`` with an open backend and write the results to the folder ``output``.

    Args:
        runner: on a CPU it should use one thread.
        inputs: files, folders, glob patterns, arrays, ``@list.txt``, ``-`` for stdin; files, folders and patterns may
            be URLs.
        output: a folder or a URL, new or empty unless the job is resumed.
        options: the job's options.
        model, model_sha256: the model's name and hash in ``run.json``; a resumed job must have the same.
        progress: called with (samples done, total samples) after each batch, by one worker at a time.
        environment: where the model runs; None: in this process.
        spread: predicts and writes shards elsewhere; ``runner`` then only says what the model takes and gives.

    Raises:
        UsageError, InputError, OutputError, ModelError: as for :func:`stn_infer.run`.
    """
    started = time.perf_counter()
    plan = Plan.of(runner, options)
    pictures = None if options.save_images is None else _pictures(runner, plan, options.save_images)
    with Inputs(inputs, plan.loader.arrays.count_rows, may_be_empty=plan.axis is not None) as samples:
        survey = samples.survey(options.check_inputs)
        if survey.images and not plan.loader.takes_images:
            raise InputError(
                "the model's input is not a single image [N, C, H, W] of 1 or 3 channels; give .npy or .npz files with "
                + ", ".join(spec.name for spec in plan.runner.inputs)
            )
        if survey.images or plan.loader.arrays.pixels:
            own = plan.runner.metadata.preprocess
            tell_assumption(plan.preprocess, own, options.preprocess, strict=options.strict)
        before = shard_rows_of(output) if options.resume else None
        rows = options.shard_rows or before or _rows(plan.runner, survey.samples, spread)
        described = model, model_sha256, rows, "" if pictures is None else os.path.abspath(pictures.folder)
        where = (environment or Environment.of(plan.runner)).reading(plan.loader, runner.device)
        job = _job(plan, options, survey, where, *described)
        if pictures is not None:
            pictures.check(options.resume, options.overwrite)
        with Folder.open(output, job, options.resume, options.overwrite) as folder:
            if pictures is not None:
                pictures.open(options.overwrite)
            writer = Writer(folder, plan.encoder, progress, pictures)
            shards = shards_of(iter(samples), rows, writer.skip_done())
            if spread is not None:
                spread(writer, shards)
            else:
                batches = chain.from_iterable(
                    batches_of(shard, rows, members, options.batch_size) for shard, members in shards
                )
                size, threads = options.batch_size, options.workers
                schedule(plan.loader, plan.runner, writer, batches, threads, size, options.callers).run()
            assert writer.ok + writer.failed == job.samples, "a sample is missing"
            return RunSummary(
                output=folder.path,
                total=job.samples,
                ok=writer.ok,
                failed=writer.failed,
                resumed=writer.resumed,
                seconds=time.perf_counter() - started,
                failures=tuple(writer.failures),
                preprocess=plan.preprocess,
                batch_dependent=plan.runner.metadata.batch_dependent if options.batch_size > 1 else (),
                left_out=survey.left_out,
                format=options.format,
                scores=job.scores,
                assumed_scores=plan.encoder.classifies
                and options.activation is None
                and plan.runner.metadata.scores is None,
            )


def _pictures(watched: Backend, plan: Plan, folder: Path) -> Pictures:
    if not isinstance(watched, WatchedBackend):
        raise UsageError("save_images needs a model that is opened here: give its file or source")
    runner, encoder, whole = plan.runner, plan.encoder, watched.metadata.preprocess
    image = next((spec.name for spec in runner.inputs if len(spec.shape) == 4), "")
    scores = encoder.outputs[0].name if encoder.classifies else ""
    inner = whole if runner is not watched else plan.preprocess
    embedded = runner.metadata.embedded
    sized = None if embedded is None else embedded.size
    places = placements(whole, sized) if whole is not None and sized is not None else None
    return Pictures(folder, watched.warps, plan.preprocess, inner, places, image, scores, plan.classifier, plan.decoder)


def _rows(runner: Backend, samples: int, spread: Spread | None) -> int:
    """Samples per shard: a cluster gets some shards for each of its workers."""
    most = shard_rows(runner)
    if spread is None:
        return most
    shards = max(_SPREAD_SHARDS, _PER_WORKER * spread.workers)
    return min(most, _QUANTUM * -(-samples // (_QUANTUM * shards)))


def _job(
    plan: Plan,
    options: RunOptions,
    survey: Survey,
    environment: Environment,
    model: str,
    model_sha256: str,
    rows: int,
    pictures: str,
) -> Job:
    runner, encoder = plan.runner, plan.encoder
    return Job(
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
        shard_rows=rows,
        preprocess=plan.preprocess,
        labels=plan.classifier.labels,
        scores=plan.classifier.scores if encoder.classifies else None,
        top_k=options.top_k,
        threshold=options.threshold,
        outputs=tuple(spec.name for spec in runner.outputs),
        stored=tuple(spec.name for spec in encoder.stored),
        runtime=environment.runtime,
        libraries=environment.libraries,
        plugin=environment.plugin,
        cpu=environment.cpu,
        pictures=pictures,
    )
