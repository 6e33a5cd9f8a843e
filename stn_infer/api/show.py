"""``show``: draw each spatial transformer's source, sampling grid and warped output for some inputs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.activation import ASSUMED_SCORES
from stn_infer.api.source import OnnxModel, metadata_of, names_the_file, resolve_model
from stn_infer.arrays import Array
from stn_infer.budget import Budget
from stn_infer.data.inputs import as_sources
from stn_infer.errors import InputError, ModelError, UsageError
from stn_infer.fusion.basis import AnyBasis, Basis
from stn_infer.metadata import ModelMetadata
from stn_infer.pictures.look import Look, WarpView
from stn_infer.pipeline.plan import classifier_of
from stn_infer.predictions import Candidate, Classifier
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed
from stn_infer.progress import step
from stn_infer.sources.identify import PYTORCH_KINDS, identify

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from stn_infer.backends.base import Backend
    from stn_infer.fusion.fuse import Finding
    from stn_infer.reference.calls import SamplerCall
    from stn_infer.reference.taps import Tapped
    from stn_infer.sources.load import LoadedModel
    from stn_infer.sources.reference import WeightsLike


@dataclass(frozen=True)
class ShowReport(Printed):
    """The result of ``show``; as text, what the command prints, and in a notebook the picture.

    Attributes:
        path: the file written.
        looks: the content of the picture, one item per input; of an animation, of its first frame.
    """

    path: Path
    looks: tuple[Look, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user."""
        assumed = any(look.candidates and look.assumed_scores for look in self.looks)
        return (ASSUMED_SCORES,) if assumed else ()

    def lines(self) -> list[str]:
        """The prediction for each input, and the file."""
        named = [f"{it.name}: {', '.join(it.captions) or it.prediction or 'no class prediction'}" for it in self.looks]
        return [*named, *(f"note: {note}" for note in self.notes), f"wrote {self.path}"]

    def json_content(self) -> dict[str, object]:
        """The file, and the prediction for each input; without the pictures."""
        looks = [{"name": it.name, "prediction": it.prediction, "candidates": it.candidates} for it in self.looks]
        return {"path": self.path, "looks": looks, "notes": self.notes}

    def _repr_html_(self) -> str:
        kind = {".png": "png", ".svg": "svg+xml", ".gif": "gif", ".webp": "webp"}.get(self.path.suffix.lower())
        if kind is None or not self.path.is_file():
            return super()._repr_html_()
        return f'<img src="data:image/{kind};base64,{b64encode(self.path.read_bytes()).decode()}">'


@names_the_file
def show(
    model: str | Path | nn.Module,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    count: int = 8,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    top_k: int | None = None,
    strict: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
    frames: int | None = None,
    frame_ms: int | None = None,
    snapshots: Sequence[str | Path] | None = None,
) -> ShowReport:
    """Draw the first ``count`` inputs with the sampled regions, the warped outputs and the predictions.

    Of a volume, three slices are drawn through the middle of the sampled box, with the box's edges and the line along
    which its surface crosses the slice.

    Args:
        model: an ONNX file, a module, or any source that ``export`` takes.
        inputs: as for ``run``.
        output: the picture to write; its suffix (.png, .svg, .pdf) selects the format. With .gif or .webp, an
            animation: of the inputs as they turn, grow and move, or of ``snapshots``.
        weights: a checkpoint for a source, as for ``export``.
        input_shapes: the shapes of a source's inputs, as for ``export``.
        count: the maximum number of inputs.
        preprocess: as for ``run``.
        labels, activation, top_k: as for ``run``.
        strict: as for ``run``.
        allow_code: as for ``export``.
        budget: as for ``lint``.
        frames: the number of frames of moving inputs, at least 3; None: 24.
        frame_ms: how long each frame is shown, in milliseconds; None: 80, or 250 of ``snapshots``, whose last frame is
            shown four times as long.
        snapshots: checkpoints of a source, in the order of training, or folders of them: one frame each, of the same
            inputs, with the training step.

    Returns:
        The picture's file and content.

    Raises:
        ModelError: the model has no known spatial transformer.
        InputError: there is no input, or one of the inputs cannot be read.
        WeightsError: a snapshot does not exist or does not fit the model.
        MissingDependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
        UsageError: an animation of too few frames, or too large a one; or ``snapshots`` with a picture, with
            ``weights`` or ``frames``, or of a model that contains its weights.
    """
    from stn_infer.files import check_writable, write_atomically
    from stn_infer.pictures.animation import SUFFIXES, check_frames, encode
    from stn_infer.pictures.drawing import draw, require_matplotlib
    from stn_infer.pictures.panels import count_panels
    from stn_infer.pictures.snapshots import find_snapshots

    path = Path(output)
    inputs = as_sources(inputs)
    animated = path.suffix.lower() in SUFFIXES
    if snapshots is not None:
        _check_snapshots(str(model), animated, weights, frames)
    require_matplotlib()
    check_writable(path)
    states = find_snapshots(snapshots or ())
    number = len(states) if snapshots is not None else 24 if frames is None else frames
    if animated:
        check_frames(number, 1, moving=not states)
    samples = _Samples(inputs, count, preprocess, _Classes(labels, activation, top_k), strict)

    def opened(weights: WeightsLike | None) -> _Opened:
        return _open(model, weights, input_shapes, allow_code, budget)

    first = opened(states[0].path if states else weights)
    step("running the model")
    shown = samples.read(first)
    found = [shown.looks(first)]
    if states:
        found += [shown.looks(opened(state.path)) for state in states[1:]]
    elif animated:
        found += [shown.looks(first, index / number) for index in range(1, number)]
    step("drawing")
    if not animated:
        write_atomically(path, draw(found[0], path.suffix))
        return ShowReport(path, found[0])
    panels = sum(count_panels(warp) for look in found[0] for warp in look.warps)
    check_frames(number, panels, moving=not states)
    every = [look for looks in found for look in looks]
    captions = [state.caption for state in states] or [""] * number
    pictures = [draw(looks, ".png", every, caption) for looks, caption in zip(found, captions, strict=True)]
    durations = [frame_ms or (250 if states else 80)] * number
    if states:
        durations[-1] *= 4
    write_atomically(path, encode(pictures, path.suffix.lower(), durations))
    return ShowReport(path, found[0])


def look(
    model: str | Path,
    inputs: Sequence[str | Path],
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    count: int = 8,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    top_k: int | None = None,
    strict: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> tuple[Look, ...]:
    """The content of the picture of :func:`show`, as arrays; arguments and errors as there."""
    runner = _open(model, weights, input_shapes, allow_code, budget)
    return _Samples(inputs, count, preprocess, _Classes(labels, activation, top_k), strict).read(runner).looks(runner)


def _check_snapshots(model: str, animated: bool, weights: WeightsLike | None, frames: int | None) -> None:
    if not animated:
        raise UsageError("--snapshots make an animation; write a .gif or .webp file")
    if weights is not None or frames is not None:
        raise UsageError("--snapshots are the weights and the frames; omit --weights and --frames")
    if identify(model).kind not in PYTORCH_KINDS:
        raise UsageError(f"{model} contains its weights; --snapshots are of a network, a recipe or a factory")


@dataclass(frozen=True)
class _Opened:
    """A model in onnxruntime that also returns what its samplers read and return."""

    backend: Backend
    tapped: Tapped
    metadata: ModelMetadata


def _open(
    model: str | Path | nn.Module,
    weights: WeightsLike | None,
    input_shapes: Sequence[tuple[int, ...]] | None,
    allow_code: bool,
    budget: Budget | None,
) -> _Opened:
    from stn_infer.backends.embedded import taking_pictures
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.reference.taps import tap

    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    proto, metadata = _model(found, str(model))
    tapped = tap(proto, inlined=False)
    backend = taking_pictures(OrtBackend(tapped.model.SerializeToString()))
    return _Opened(backend, tapped, replace(metadata, preprocess=backend.metadata.preprocess or metadata.preprocess))


@dataclass(frozen=True)
class _Classes:
    """How classes are named and ranked, as given by the user."""

    labels: Sequence[str] | None
    activation: str | None
    top_k: int | None

    def classifier(self, metadata: ModelMetadata) -> Classifier:
        """For this model."""
        return classifier_of(metadata, self.activation, self.labels, top_k=self.top_k)

    def assumed(self, metadata: ModelMetadata) -> bool:
        """Whether nothing says what its scores are."""
        return self.activation is None and metadata.scores is None


@dataclass(frozen=True)
class _Samples:
    """What is drawn, as given by the user."""

    inputs: Sequence[str | Path]
    count: int
    preprocess: Preprocess | str | None
    classes: _Classes
    strict: bool

    def read(self, runner: _Opened) -> _Shown:
        """Read them as this model takes them."""
        own = runner.metadata
        names, feeds = _read(runner.backend, self.inputs, self.count, own.preprocess, self.preprocess, self.strict)
        return _Shown(names, feeds, self.classes.classifier(own), self.classes.assumed(own))


@dataclass(frozen=True)
class _Shown:
    """Names and arrays of the samples, and how their classes are ranked."""

    names: list[str]
    feeds: dict[str, Array]
    classifier: Classifier
    assumed_scores: bool

    def looks(self, runner: _Opened, phase: float = 0.0) -> tuple[Look, ...]:
        """What the model does with each sample; ``phase`` of the movement, 0: the samples themselves."""
        from stn_infer.pictures.animation import moved

        fed = {key: moved(it, phase) if phase and it.ndim in (4, 5) else it for key, it in self.feeds.items()}
        run = runner.tapped.read(runner.backend.run(fed))
        best, candidates = _ranked(next(iter(run.outputs.values())), self.classifier)
        calls = [call for call in run.calls if call.node.ours]
        return tuple(
            Look(
                name,
                best[index],
                tuple(_warp_view(call, index) for call in calls),
                candidates[index],
                self.assumed_scores,
            )
            for index, name in enumerate(self.names)
        )


def _model(model: OnnxModel | LoadedModel, name: str) -> tuple[onnx.ModelProto, ModelMetadata]:
    from stn_infer.fusion.fuse import describe, fuse
    from stn_infer.fusion.op import is_op
    from stn_infer.proto.activation import with_scores

    if isinstance(model, OnnxModel):
        proto = model.load()
        metadata = with_scores(proto, metadata_of(proto))
        findings: tuple[Finding, ...] = ()
        if not any(map(is_op, proto.graph.node)):
            proto, findings = fuse(proto)
    else:
        from stn_infer.torch_export.portable import build_portable

        portable = build_portable(model)
        proto, findings = portable.model, portable.findings
        metadata = with_scores(proto, model.metadata)
    if not any(map(is_op, proto.graph.node)):
        raise ModelError(f"{name} has no sampler to draw: {describe(findings)}")
    return proto, metadata


def _read(
    backend: Backend,
    inputs: Sequence[str | Path],
    count: int,
    own: Preprocess | None,
    given: Preprocess | str | None,
    strict: bool,
) -> tuple[list[str], dict[str, Array]]:
    """Names and arrays of the first ``count`` samples."""
    from stn_infer.data.inputs import Inputs
    from stn_infer.data.loader import Loader, resolve_preprocess, tell_assumption

    how = resolve_preprocess(backend.inputs, own, given)
    loader = Loader(backend.inputs, how)
    samples = list(islice(Inputs(inputs, loader.arrays.count_rows), count))
    if not samples:
        raise InputError("no input was found: there is nothing to draw")
    if loader.has_pixels(samples):
        tell_assumption(how, own, given, strict=strict)
    batch = loader.load(samples)
    for error in batch.errors.values():
        raise InputError(error)
    if len(batch.groups) != 1:
        raise InputError("the inputs have different sizes; draw them in separate pictures")
    return [Path(sample.name).name for sample in samples], batch.groups[0].inputs


def _ranked(output: Array, classifier: Classifier) -> tuple[list[str], list[tuple[Candidate, ...]]]:
    """The name of the best class of each sample, and all that are shown; nothing if there are no scores."""
    if output.ndim != 2 or output.shape[1] < 2 or np.isnan(output).any():
        return [""] * len(output), [()] * len(output)
    ranked = classifier.rank(output)
    rows = range(len(ranked))
    return [ranked.best(row).name for row in rows], [ranked.shown(row) for row in rows]


def _warp_view(call: SamplerCall, index: int) -> WarpView:
    return WarpView(call.image[index], call.pixels[index], call.warped[index], _keeps_lines(call.node.basis))


def _keeps_lines(basis: AnyBasis | None) -> bool:
    """Whether the grid maps straight lines to straight lines: affine, or a homography of pixels that nothing clamps."""
    if not isinstance(basis, Basis) or basis.kind == "basis":
        return False
    return basis.kind == "affine" or (basis.over_pixels and basis.w_min is None)
