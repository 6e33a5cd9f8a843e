"""What a model does with some samples: what its samplers read and return, and what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.batching import row_axis
from stn_infer.data.loader import Group, Loader, resolve_preprocess, tell_assumption
from stn_infer.errors import InputError, ModelError
from stn_infer.fusion.basis import AnyBasis, Basis, map_points
from stn_infer.metadata import ModelMetadata
from stn_infer.pictures.animation import moved
from stn_infer.pictures.look import Look, WarpView
from stn_infer.pictures.samples import choose
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.pictures import images_per_sample
from stn_infer.pipeline.plan import classifier_of
from stn_infer.pipeline.warps import read_pictures
from stn_infer.predictions import Candidate, Classifier
from stn_infer.preprocess.rule import Preprocess

if TYPE_CHECKING:
    from stn_infer.backends.base import Backend
    from stn_infer.reference.calls import SamplerCall
    from stn_infer.reference.taps import Tapped


@dataclass(frozen=True)
class Opened:
    """A model in onnxruntime that also returns what its samplers read and return.

    Attributes:
        backend: takes pictures, see :func:`~stn_infer.backends.embedded.taking_pictures`.
        tapped: its model.
        metadata: of the model, with what remains to be done with pictures.
        inner: the preprocessing of values that the samplers read, if the graph does a part of it; else None.
    """

    backend: Backend
    tapped: Tapped
    metadata: ModelMetadata
    inner: Preprocess | None


@dataclass(frozen=True)
class Samples:
    """What is drawn, as given by the user.

    Attributes:
        inputs: as for ``run``; one CSV file or a folder with one subfolder per class has labels.
        count, seed: as for :func:`~stn_infer.pictures.samples.choose`.
        preprocess, labels, activation, top_k, strict: as for ``run``.
    """

    inputs: Sequence[str | Path]
    count: int
    seed: int | None
    preprocess: Preprocess | str | None
    labels: Sequence[str] | None
    activation: str | None
    top_k: int | None
    strict: bool

    def read(self, runner: Opened) -> Shown:
        """Read them as this model takes them.

        Raises:
            InputError: there are none, or none of them can be read.
            UsageError: an option does not fit the model.
        """
        own = runner.metadata
        classifier = classifier_of(own, self.activation, self.labels, top_k=self.top_k)
        outputs = [spec for spec in runner.backend.outputs if spec.name in runner.tapped.outputs]
        decoder = Decoder(own.decodings, runner.backend.inputs, outputs)
        how = resolve_preprocess(runner.backend.inputs, own.preprocess, self.preprocess)
        axis = row_axis(runner.backend.inputs, outputs)
        loader = Loader(runner.backend.inputs, how, axis, runner.backend.device)
        classes = None
        if outputs and len(outputs[0].shape) == 2 and not own.decodings:
            classes = classifier.labels or [str(number) for number in range(outputs[0].shape[1] or 0)] or None
        drawn = choose(self.inputs, loader.arrays.count_rows, self.count, self.seed, classes)
        if loader.has_pixels(drawn.samples):
            tell_assumption(how, own.preprocess, self.preprocess, strict=self.strict)
        batch = loader.load(drawn.samples)
        if len(batch.errors) == len(drawn.samples):
            more = f" (and {len(batch.errors) - 1} more inputs)" if len(batch.errors) > 1 else ""
            raise InputError(f"{batch.errors[0]}{more}")
        return Shown(
            tuple(sample.name for sample in drawn.samples),
            drawn.truths,
            batch.groups,
            batch.errors,
            classifier,
            decoder,
            self.activation is None and own.scores is None,
            how if runner.inner is None else runner.inner,
            drawn.sampled,
        )


@dataclass(frozen=True)
class Shown:
    """The samples that are drawn.

    Attributes:
        names: of all samples.
        truths: the label of each, or None.
        groups: the arrays of those that could be read, by size.
        errors: by position, why a sample could not be read.
        classifier, decoder: what makes predictions of outputs.
        assumed_scores: whether nothing says what the scores are.
        rule: how the values of pictures that samplers read were made from pixels; None: there are no pictures.
        sampled: of how many they were chosen at random, and the seed; None: they are the first.
    """

    names: tuple[str, ...]
    truths: tuple[str | None, ...]
    groups: tuple[Group, ...]
    errors: dict[int, str]
    classifier: Classifier
    decoder: Decoder
    assumed_scores: bool
    rule: Preprocess | None
    sampled: tuple[int, int] | None

    def looks(self, runner: Opened, phase: float = 0.0) -> tuple[Look, ...]:
        """What the model does with each sample; ``phase`` of the movement, 0: the samples themselves.

        Raises:
            ModelError: the model cannot run, or no sampler's results can be told apart by sample.
        """
        found = {row: self._failed(row, error) for row, error in self.errors.items()}
        for group in self.groups:
            found.update(zip(group.rows, self._group(runner, group, phase), strict=True))
        return tuple(found[row] for row in range(len(self.names)))

    def _group(self, runner: Opened, group: Group, phase: float) -> list[Look]:
        fed = {key: moved(it, phase) if phase and it.ndim in (4, 5) else it for key, it in group.inputs.items()}
        try:
            values = runner.backend.run(fed)
        except ModelError as error:
            if len(self.groups) == 1:
                raise
            return [self._failed(row, str(error)) for row in group.rows]
        count = len(group.rows)
        run = runner.tapped.read(values)
        texts, candidates = self._predictions(run.outputs, count)
        warps: list[list[WarpView]] = [[] for _ in group.rows]
        pictures = read_pictures(runner.tapped)
        for call, names, reads in zip(run.calls, runner.tapped.taps, pictures, strict=True):
            if call.node.ours:
                theta = values[names["theta"]] if "theta" in names else None
                _add(warps, call, _denominators(call.node.basis, theta), self.rule if reads else None)
        if not all(warps):
            raise ModelError("the model's samplers return images that cannot be told apart by sample")
        return [
            Look(
                Path(self.names[row]).name,
                texts[index],
                tuple(warps[index]),
                candidates[index],
                self.assumed_scores,
                self.truths[row],
            )
            for index, row in enumerate(group.rows)
        ]

    def _failed(self, row: int, error: str) -> Look:
        short = Path(self.names[row]).name
        return Look(short, "", (), error=error.replace(self.names[row], short))

    def _predictions(self, outputs: dict[str, Array], count: int) -> tuple[list[str], list[tuple[Candidate, ...]]]:
        """Of each sample the text that is read, or the name of the best class and all classes that are shown."""
        texts, candidates = [""] * count, [()] * count  # type: list[str], list[tuple[Candidate, ...]]
        decodings = self.decoder.decodings
        first = next(iter(outputs.values()))
        if decodings:
            for decoding in decodings:
                if decoding.kind == "sequence":
                    return list(self.decoder.texts(decoding, outputs)), candidates
        elif first.ndim == 2 and first.shape[1] > 1 and len(first) == count:
            good = np.flatnonzero(~np.isnan(first).any(axis=1)).tolist()
            ranked = self.classifier.rank(first[good])
            for position, row in enumerate(good):
                texts[row], candidates[row] = ranked.best(position).name, ranked.shown(position)
        return texts, candidates


def _add(warps: list[list[WarpView]], call: SamplerCall, w: Array | None, rule: Preprocess | None) -> None:
    """Add one sampler's images to each sample's, several of a sample as so many samplers."""
    samples, images = len(warps), len(call.warped)
    if images % samples:
        return
    together = call.warped.ndim == 5 or images_per_sample(call.image, call.warped, samples) > 0
    count, pixels = images // samples, call.pixels
    for index, views in enumerate(warps):
        for row in range(index * count, (index + 1) * count) if together else range(index, images, samples):
            views.append(
                WarpView(
                    call.image[row],
                    pixels[row],
                    call.warped[row],
                    isinstance(call.node.basis, Basis) and call.node.basis.kind == "affine",
                    None if w is None else w[row],
                    call.node.input,
                    rule,
                )
            )


def _denominators(basis: AnyBasis | None, theta: Array | None) -> Array | None:
    """The denominators [N, *out] of a quotient that nothing clamps; None for other grids."""
    if theta is None or not isinstance(basis, Basis) or basis.kind != "projective" or basis.w_min is not None:
        return None
    exact = basis.exact()
    return map_points(theta[:, -1:].astype(np.float64), exact.rows, exact.output_size)[..., 0]
