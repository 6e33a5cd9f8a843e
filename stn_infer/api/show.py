"""``show``: draw each spatial transformer's source, sampling grid and warped output for some inputs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.activation import ASSUMED_SCORES
from stn_infer.api.source import OnnxModel, metadata_of, names_the_file, resolve_model
from stn_infer.budget import Budget
from stn_infer.data.inputs import as_sources, local_files
from stn_infer.errors import ModelError, UsageError, of_input
from stn_infer.metadata import ModelMetadata
from stn_infer.pictures.look import Look
from stn_infer.pictures.looking import Opened, Samples
from stn_infer.pictures.samples import check_choice
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed
from stn_infer.progress import step
from stn_infer.sources.identify import PYTORCH_KINDS, identify

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from stn_infer.fusion.fuse import Finding
    from stn_infer.sources.load import LoadedModel
    from stn_infer.sources.reference import WeightsLike


@dataclass(frozen=True)
class ShowReport(Printed):
    """The result of ``show``; as text, what the command prints, and in a notebook the picture.

    Attributes:
        path: the file written.
        looks: the content of the picture, one item per input; of an animation, of its first frame. An input that
            cannot be read has an error instead of content.
        sampled: of how many inputs these were chosen at random, and the seed; None: they are the first.
    """

    path: Path
    looks: tuple[Look, ...]
    sampled: tuple[int, int] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user."""
        assumed = any(look.candidates and look.assumed_scores for look in self.looks)
        return (ASSUMED_SCORES,) if assumed else ()

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(input, error) of those that cannot be read."""
        return tuple((look.name, look.error) for look in self.looks if look.error)

    def lines(self) -> list[str]:
        """The results, what failed and what there is to note, and the file."""
        *found, wrote = self.results
        failed = [f"failed: {of_input(name, error)}" for name, error in self.failures]
        return [*found, *failed, *(f"note: {note}" for note in self.notes), wrote]

    @property
    def results(self) -> list[str]:
        """The prediction for each input, how many are right, where that is known, and the file."""
        named = [f"{look.name}: {_summary(look)}" for look in self.looks if not look.error]
        return [*named, *self._totals(), f"wrote {self.path}"]

    def _totals(self) -> list[str]:
        known = [look.is_right for look in self.looks if look.is_right is not None]
        right = [f"{sum(known)} of {len(known)} predictions are right"] if known else []
        if self.sampled is None:
            return right
        total, seed = self.sampled
        return [*right, f"{len(self.looks)} of {total:,} inputs, chosen at random with seed {seed}"]

    def json_content(self) -> dict[str, object]:
        """The file, and the prediction for each input; without the pictures."""
        looks = [
            {
                "name": look.name,
                "prediction": look.prediction,
                "candidates": look.candidates,
                "truth": look.truth,
                "right": look.is_right,
                "error": look.error,
            }
            for look in self.looks
        ]
        total, seed = self.sampled or (None, None)
        return {"path": self.path, "looks": looks, "sampled_of": total, "seed": seed, "notes": self.notes}

    def _repr_html_(self) -> str:
        kind = {".png": "png", ".svg": "svg+xml", ".gif": "gif", ".webp": "webp"}.get(self.path.suffix.lower())
        if kind is None or not self.path.is_file():
            return super()._repr_html_()
        return f'<img src="data:image/{kind};base64,{b64encode(self.path.read_bytes()).decode()}">'


def _summary(look: Look) -> str:
    text = ", ".join(look.captions) or look.prediction or "no class prediction"
    return text if look.is_right is None else f"{text} (right)" if look.is_right else f"{text} (wrong: {look.truth})"


@names_the_file
def show(
    model: str | Path | nn.Module,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    count: int | None = None,
    sample: int | None = None,
    seed: int | None = None,
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

    Samplers of one image share its picture: the color of an outline is that of the frame around what is sampled. Of a
    volume, three slices are drawn through the middle of the sampled box, with the box's edges and the line along which
    its surface crosses the slice. An input that cannot be read has a panel with the error.

    Args:
        model: an ONNX file, a module, or any source that ``export`` takes.
        inputs: as for ``run``; or a CSV file or a folder with one subfolder per class, as for ``eval``, for predictions
            that are marked as right or wrong.
        output: the picture to write; its suffix (.png, .svg, .pdf) selects the format. With .gif or .webp, an
            animation: of the inputs as they turn, grow and move, or of ``snapshots``.
        weights: a checkpoint for a source, as for ``export``.
        input_shapes: the shapes of a source's inputs, as for ``export``.
        count: the maximum number of inputs; None: 8.
        sample: draw so many inputs chosen at random instead.
        seed: of that choice; None: 0.
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
        InputError: there is no input, or none of the inputs can be read, or a CSV file has a class that the model does
            not know.
        WeightsError: a snapshot does not exist or does not fit the model.
        MissingDependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
        UsageError: ``count`` with ``sample``, or ``seed`` without it; an animation of too few frames, or too large a
            one; or ``snapshots`` with a picture, with ``weights`` or ``frames``, or of a model that contains
            its weights.
    """
    from stn_infer.files import check_writable, write_atomically
    from stn_infer.pictures.animation import SUFFIXES, check_frames, encode
    from stn_infer.pictures.drawing import draw, layout_of, require_matplotlib
    from stn_infer.pictures.snapshots import find_snapshots
    from stn_infer.sources.reference import Weights

    path = Path(output)
    inputs = as_sources(inputs)
    animated = path.suffix.lower() in SUFFIXES
    if snapshots is not None:
        _check_snapshots(str(model), animated, weights, frames)
    require_matplotlib()
    read = (model, *(snapshots or ()), None if weights is None else Weights.of(weights).file)
    check_writable(path, inputs=chain(read, local_files(inputs)))
    states = find_snapshots(snapshots or ())
    number = len(states) if snapshots is not None else 24 if frames is None else frames
    if animated:
        check_frames(number, moving=snapshots is None)
    choice = check_choice(count, sample, seed)
    samples = Samples(inputs, *choice, preprocess, labels, activation, top_k, strict)

    def opened(weights: WeightsLike | None) -> Opened:
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
        return ShowReport(path, found[0], shown.sampled)
    layout = layout_of(found, captioned=bool(states))
    check_frames(number, layout.width, layout.height, moving=snapshots is None)
    captions = [state.caption for state in states] or [""] * number
    pictures = [draw(looks, ".png", layout, caption) for looks, caption in zip(found, captions, strict=True)]
    durations = [frame_ms or (250 if states else 80)] * number
    if states:
        durations[-1] *= 4
    write_atomically(path, encode(pictures, path.suffix.lower(), durations))
    return ShowReport(path, found[0], shown.sampled)


def look(
    model: str | Path,
    inputs: Sequence[str | Path],
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    count: int | None = None,
    sample: int | None = None,
    seed: int | None = None,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    top_k: int | None = None,
    strict: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> tuple[Look, ...]:
    """The content of the picture of :func:`show`, as arrays; arguments and errors as there."""
    choice = check_choice(count, sample, seed)
    runner = _open(model, weights, input_shapes, allow_code, budget)
    samples = Samples(inputs, *choice, preprocess, labels, activation, top_k, strict)
    return samples.read(runner).looks(runner)


def _check_snapshots(model: str, animated: bool, weights: WeightsLike | None, frames: int | None) -> None:
    if not animated:
        raise UsageError("--snapshots make an animation; write a .gif or .webp file")
    if weights is not None or frames is not None:
        raise UsageError("--snapshots are the weights and the frames; omit --weights and --frames")
    if identify(model).kind not in PYTORCH_KINDS:
        raise UsageError(f"{model} contains its weights; --snapshots are of a network, a recipe or a factory")


def _open(
    model: str | Path | nn.Module,
    weights: WeightsLike | None,
    input_shapes: Sequence[tuple[int, ...]] | None,
    allow_code: bool,
    budget: Budget | None,
) -> Opened:
    from stn_infer.backends.embedded import taking_pictures
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.reference.taps import tap

    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    proto, metadata = _model(found, str(model))
    tapped = tap(proto, inlined=False)
    opened = OrtBackend(tapped.model.SerializeToString())
    backend = taking_pictures(opened)
    inner = metadata.preprocess if backend is not opened else None
    left = backend.metadata.preprocess or metadata.preprocess
    return Opened(backend, tapped, replace(metadata, preprocess=left), inner)


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
