"""``show``: draw each spatial transformer's source, sampling grid and warped output for some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.source import OnnxModel, metadata_of, names_the_file, resolve_model
from stn_infer.arrays import Array
from stn_infer.budget import Budget
from stn_infer.errors import InputError, ModelError
from stn_infer.fusion.basis import AnyBasis, Basis
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.show.look import Look, WarpView

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.ort import OrtBackend
    from stn_infer.fusion.fuse import Finding
    from stn_infer.reference.calls import SamplerCall
    from stn_infer.sources.load import LoadedModel
    from stn_infer.sources.reference import WeightsLike


@names_the_file
def show(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    count: int = 8,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    strict: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
    frames: int = 24,
    frame_ms: int = 80,
) -> tuple[Look, ...]:
    """Draw the first ``count`` inputs with the sampled regions, the warped outputs and the predictions.

    Args:
        model: an ONNX file, or any source that ``export`` takes.
        inputs: as for ``run``.
        output: the picture to write; its suffix (.png, .svg, .pdf) selects the format. With .gif or .webp, an
            animation of the inputs as they turn, grow and move.
        weights: a checkpoint for a source, as for ``export``.
        input_shapes: the shapes of a source's inputs, as for ``export``.
        count: the maximum number of inputs.
        preprocess: as for ``run``.
        labels: as for ``run``.
        strict: as for ``run``.
        allow_code: as for ``export``.
        budget: as for ``lint``.
        frames: the number of frames of an animation.
        frame_ms: how long each is shown, in milliseconds.

    Returns:
        The content of the picture, one item per input; of an animation, of its first frame.

    Raises:
        ModelError: the model has no known 2-D spatial transformer.
        InputError: there is no input, or one of the inputs cannot be read.
        MissingDependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
        UsageError: an animation of fewer than two frames, or too large a one.
    """
    from stn_infer.files import check_writable, write_atomically
    from stn_infer.show.animation import SUFFIXES, check_frames, encode
    from stn_infer.show.drawing import draw, require_matplotlib

    path = Path(output)
    require_matplotlib()
    check_writable(path)
    animated = path.suffix.lower() in SUFFIXES
    if animated:
        check_frames(frames, 1, 1)
    phases = tuple(index / frames for index in range(frames)) if animated else (0.0,)
    found = _looks(
        model,
        inputs,
        phases,
        weights=weights,
        input_shapes=input_shapes,
        count=count,
        preprocess=preprocess,
        labels=labels,
        strict=strict,
        allow_code=allow_code,
        budget=budget,
    )
    if animated:
        check_frames(frames, len(found[0]), len(found[0][0].warps))
        every = [item for looks in found for item in looks]
        pictures = [draw(looks, ".png", every) for looks in found]
        write_atomically(path, encode(pictures, path.suffix.lower(), frame_ms))
    else:
        write_atomically(path, draw(found[0], path.suffix))
    return found[0]


def look(
    model: str | Path,
    inputs: Sequence[str | Path],
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    count: int = 8,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    strict: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> tuple[Look, ...]:
    """The content of the picture of :func:`show`, as arrays; arguments and errors as there."""
    return _looks(
        model,
        inputs,
        (0.0,),
        weights=weights,
        input_shapes=input_shapes,
        count=count,
        preprocess=preprocess,
        labels=labels,
        strict=strict,
        allow_code=allow_code,
        budget=budget,
    )[0]


def _looks(
    model: str | Path,
    inputs: Sequence[str | Path],
    phases: Sequence[float],
    *,
    weights: WeightsLike | None,
    input_shapes: Sequence[tuple[int, ...]] | None,
    count: int,
    preprocess: Preprocess | str | None,
    labels: Sequence[str] | None,
    strict: bool,
    allow_code: bool,
    budget: Budget | None,
) -> list[tuple[Look, ...]]:
    """One item per phase of the movement; phase 0 is the inputs themselves."""
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.reference.taps import tap
    from stn_infer.show.animation import moved

    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    proto, metadata = _model(found, str(model))
    tapped = tap(proto, inlined=False)
    backend = OrtBackend(tapped.model.SerializeToString())
    names, feeds = _read(backend, inputs, count, metadata.preprocess, preprocess, strict)
    chosen = tuple(labels) if labels is not None else metadata.labels
    result = []
    for phase in phases:
        fed = {key: moved(it, phase) if phase and it.ndim == 4 else it for key, it in feeds.items()}
        run = tapped.read(backend.run(fed))
        predictions = _predictions(next(iter(run.outputs.values())), chosen)
        calls = [call for call in run.calls if call.node.ours]
        if any(call.image.ndim != 4 for call in calls):
            raise ModelError(f"{model} transforms volumes, but only images can be drawn")
        result.append(
            tuple(
                Look(name, predictions[index], tuple(_warp_view(call, index) for call in calls))
                for index, name in enumerate(names)
            )
        )
    return result


def _model(model: OnnxModel | LoadedModel, name: str) -> tuple[onnx.ModelProto, ModelMetadata]:
    from stn_infer.fusion.fuse import describe, fuse
    from stn_infer.fusion.op import is_op

    if isinstance(model, OnnxModel):
        proto = model.load()
        metadata = metadata_of(proto)
        findings: tuple[Finding, ...] = ()
        if not any(map(is_op, proto.graph.node)):
            proto, findings = fuse(proto)
    else:
        from stn_infer.torch_export.portable import build_portable

        metadata = model.metadata
        portable = build_portable(model)
        proto, findings = portable.model, portable.findings
    if not any(map(is_op, proto.graph.node)):
        raise ModelError(f"{name} has no sampler to draw: {describe(findings)}")
    return proto, metadata


def _read(
    backend: OrtBackend,
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


def _predictions(output: Array, labels: tuple[str, ...] | None) -> list[str]:
    if output.ndim != 2 or output.shape[1] < 2:
        return [""] * len(output)
    classes = output.argmax(axis=1)
    return [labels[index] if labels and index < len(labels) else str(index) for index in classes]


def _warp_view(call: SamplerCall, index: int) -> WarpView:
    return WarpView(call.image[index], call.pixels[index], call.warped[index], _keeps_lines(call.node.basis))


def _keeps_lines(basis: AnyBasis | None) -> bool:
    """Whether the grid maps straight lines to straight lines: affine, or a homography of pixels that nothing clamps."""
    if not isinstance(basis, Basis) or basis.kind == "basis":
        return False
    return basis.kind == "affine" or (basis.over_pixels and basis.w_min is None)
