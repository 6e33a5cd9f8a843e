"""What a model and the options of a job determine: how inputs become arrays, and how outputs become rows of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from stn_infer.activation import resolve_scores
from stn_infer.backends.base import Backend
from stn_infer.backends.batching import row_axis
from stn_infer.backends.embedded import taking_pictures
from stn_infer.data.loader import Loader, resolve_preprocess
from stn_infer.errors import ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import Format, check_classes, make_format
from stn_infer.predictions import Classifier
from stn_infer.preprocess.rule import Preprocess

SHARD_ROWS = 4096
SHARD_BYTES = 256 << 20  # a shard is held in memory, so a shard of large outputs has fewer rows


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a job, documented at :func:`stn_infer.run`.

    Attributes:
        callers: on a CPU, the largest number of workers that run the model at once; None: all.

    Raises:
        UsageError: ``batch_size``, ``workers``, ``callers`` or ``shard_rows`` is below 1.
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
    callers: int | None = None
    shard_rows: int | None = None
    strict: bool = False
    overwrite: bool = False
    save_images: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "callers", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is at least 1, not {value}")
        if self.resume and self.overwrite:
            raise UsageError("--resume continues the job in the folder, --overwrite replaces it; give only one of them")


@dataclass(frozen=True)
class Plan:
    """A model with the options of a job; the same in every process that works on the job.

    Attributes:
        runner: the model, which takes pixels where its graph normalizes them.
        preprocess: how images become inputs; None if the model takes none.
        decoder, classifier, encoder: of its outputs.
        axis: of the inputs that have one row per sample, see :func:`~stn_infer.backends.batching.row_axis`.
        loader: of its inputs.
    """

    runner: Backend
    preprocess: Preprocess | None
    decoder: Decoder
    classifier: Classifier
    encoder: Format
    axis: str | None
    loader: Loader

    @classmethod
    def of(cls, opened: Backend, options: RunOptions) -> Self:
        """The plan for an open backend.

        Raises:
            UsageError, ModelError, MissingDependencyError: the options do not fit the model.
        """
        if not opened.inputs:
            raise ModelError("the model has no inputs: there is nothing to predict")
        runner = taking_pictures(opened)
        how = resolve_preprocess(runner.inputs, runner.metadata.preprocess, options.preprocess)
        decoder = Decoder(runner.metadata.decodings, runner.inputs, runner.outputs)
        classifier = classifier_of(
            runner.metadata, options.activation, options.labels, top_k=options.top_k, threshold=options.threshold
        )
        check_classes(runner.outputs, None, options.activation, decoder=decoder)
        encoder = make_format(options.format, runner.outputs, classifier, decoder, options.outputs)
        axis = row_axis(runner.inputs, runner.outputs)
        loader = Loader(runner.inputs, how, axis, runner.device)
        return cls(runner, how, decoder, classifier, encoder, axis, loader)


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


def shard_rows(backend: Backend) -> int:
    """Rows per shard, from the known output sizes; the same for the same model."""
    size = sum(
        int(np.prod([axis or 256 for axis in spec.shape[1:]], dtype=np.int64)) * spec.dtype.itemsize
        for spec in backend.outputs
    )
    return max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, size)))
