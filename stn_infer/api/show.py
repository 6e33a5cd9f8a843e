"""What a model looks at: for some inputs, each spatial transformer's source, sampling grid and warped output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.arrays import Array
from stn_infer.errors import InputError, ModelError
from stn_infer.metadata import ModelMetadata, Preprocess
from stn_infer.reference.model import Sampling
from stn_infer.show.look import Look, WarpView

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.ort import OrtBackend
    from stn_infer.fusion.fuse import Finding
    from stn_infer.fusion.op import SpatialNode


def show(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    count: int = 8,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[Look, ...]:
    """Draw the first ``count`` inputs with what is sampled from them, the warped outputs and the predictions.

    Args:
        model: an ``.onnx`` file, or any source that ``export`` takes.
        inputs: as for ``run``.
        output: the picture to write; its suffix (.png, .svg, .pdf) says which kind.
        count: at most this many.
        preprocess, labels: as for ``run``.

    Returns:
        What was drawn.

    Raises:
        ModelError: the model has no 2-D spatial transformer of known form.
        InputError: there is no input, or one of those to be drawn cannot be read.
        MissingDependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
    """
    from stn_infer.files import check_writable, write_atomically
    from stn_infer.show.drawing import draw, require_matplotlib

    path = Path(output)
    require_matplotlib()
    check_writable(path)
    looks = look(model, inputs, count=count, preprocess=preprocess, labels=labels)
    write_atomically(path, draw(looks, path.suffix))
    return looks


def look(
    model: str | Path,
    inputs: Sequence[str | Path],
    *,
    count: int = 8,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[Look, ...]:
    """What :func:`show` draws, as arrays; see there."""
    proto, nodes, metadata = _model(str(model))
    opened = _open(proto, nodes)
    names, feeds = _read(opened.backend, inputs, count, metadata.preprocess, preprocess)
    values = {**feeds, **opened.backend.run(feeds)}
    predictions = _predictions(values[opened.answer], tuple(labels) if labels is not None else metadata.labels)
    return tuple(
        Look(
            name,
            predictions[index],
            tuple(
                _warp_view(node, values[node.input][index], values[theta][index], values[node.output][index])
                for node, theta in zip(nodes, opened.thetas, strict=True)
            ),
        )
        for index, name in enumerate(names)
    )


def _model(model: str) -> tuple[onnx.ModelProto, tuple[SpatialNode, ...], ModelMetadata]:
    from stn_infer.fusion.fuse import describe, fuse
    from stn_infer.fusion.op import spatial_nodes
    from stn_infer.proto.load import load_model

    if model.endswith(".onnx"):
        proto = load_model(Path(model))
        metadata = ModelMetadata.from_props({prop.key: prop.value for prop in proto.metadata_props})
        findings: tuple[Finding, ...] = ()
        if not spatial_nodes(proto):
            proto, findings = fuse(proto)
    else:
        from stn_infer.sources.load import load_source
        from stn_infer.torch_export.portable import build_portable

        loaded = load_source(model)
        metadata = loaded.metadata
        proto, findings = build_portable(loaded)
    nodes = spatial_nodes(proto)
    if not nodes:
        raise ModelError(f"{model} has no spatial transformer to draw: {describe(findings)}")
    if any(len(node.output_size) != 2 for node in nodes):
        raise ModelError(f"{model} transforms volumes; only images can be drawn")
    return proto, nodes, metadata


@dataclass(frozen=True)
class _Opened:
    """The model with everything to be drawn among its outputs: ``answer`` is its own first, ``thetas`` one a node."""

    backend: OrtBackend
    answer: str
    thetas: tuple[str, ...]


def _open(proto: onnx.ModelProto, nodes: Sequence[SpatialNode]) -> _Opened:
    import onnx

    from stn_infer.backends.ort import OrtBackend
    from stn_infer.fusion.op import with_theta

    own = len(proto.graph.output)
    probe = with_theta(proto)
    thetas = tuple(value.name for value in probe.graph.output[own:])
    present = {value.name for value in (*probe.graph.output, *probe.graph.input)}
    wanted = dict.fromkeys(name for node in nodes for name in (node.input, node.output))
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    return _Opened(OrtBackend(probe.SerializeToString()), proto.graph.output[0].name, thetas)


def _read(
    backend: OrtBackend,
    inputs: Sequence[str | Path],
    count: int,
    own: Preprocess | None,
    given: Preprocess | str | None,
) -> tuple[list[str], dict[str, Array]]:
    """Names and arrays of the first ``count`` samples."""
    from stn_infer.data.inputs import Inputs
    from stn_infer.data.loader import Loader, resolve_preprocess

    loader = Loader(backend.inputs, resolve_preprocess(backend.inputs, own, given))
    samples = list(islice(Inputs(inputs, loader.arrays.count_rows), count))
    if not samples:
        raise InputError("there is nothing to draw: no input was found")
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


def _warp_view(node: SpatialNode, source: Array, theta: Array, warped: Array) -> WarpView:
    grid = node.grid(theta[None])[0]
    points = Sampling(grid, source.shape[1:], node.mode, node.align_corners).pixels(grid)
    return WarpView(source, points, warped, straight=node.kind != "basis")
