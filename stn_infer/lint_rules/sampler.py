"""Rules about samplers: how each runtime handles them, and the cost of their grids.

Sources: measured behavior of parsers and runtimes (TensorRT-RTX 1.7.1, onnxruntime 1.31); the TensorRT support
matrices; for onnxruntime's CUDA provider, its kernel list and pull request 27201, which added volumes and kernels for
opset 20 and later in 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from stn_infer.fusion.op import is_spatial
from stn_infer.fusion.samplers import UNKNOWN_OPERATOR, SamplerNode, reads_nearest, unknown_samplers
from stn_infer.lint_rules.catalog import Severity
from stn_infer.lint_rules.context import LintContext, LintFinding, LintRule
from stn_infer.proto.traversal import attributes_of, is_standard, producers, subgraphs, walk_back
from stn_infer.repairs.affine_grids import is_aten_grid
from stn_infer.repairs.low_precision import quantized_tensors

_HALF_EPSILON: dict[int, float] = {TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
_FAMILIAR_WIDTH = 1024
# Operators that compute a flow field, and operators that may lie between the flow field and a grid.
_FLOW_MAKERS = frozenset({"Conv", "ConvTranspose", "DeformConv"})
_FLOW_CARRIERS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Concat", "Slice", "Split", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Tanh"}
    | {"Resize", "Upsample", "Cast", "Gather", "Identity", "Clip", "Pad", "GridSample"}
)
_MAX_VALUES = 1 << 24


def traps(context: LintContext) -> Iterator[LintFinding]:
    """Opset 20's spelling of the mode, which TensorRT up to 11.1 reads as nearest."""
    for sampler in context.samplers:
        if reads_nearest(context.model, sampler, context.facts):
            yield _finding(
                "opset-20-trap",
                "error",
                sampler,
                f"mode {sampler.spelling!r} (opset {context.opset}) is silently imported as NEAREST by TensorRT up to "
                "11.1; all versions read the spelling of opset 16 to 19 correctly" + context.unfixable("opset-20-trap"),
                context.fixable("opset-20-trap"),
            )


def affine_grids(context: LintContext) -> Iterator[LintFinding]:
    """AffineGrid, which TensorRT cannot import."""
    users = {sampler.grid: sampler for sampler in context.samplers}
    for node in context.model.graph.node:
        if is_standard(node, "AffineGrid"):
            found = context.pass_finding(users[node.output[0]]) if node.output[0] in users else None
            fixable = bool(found and found.fused) or context.fixable("affine-grid")
            yield LintFinding(
                "affine-grid",
                "warning",
                node.name or node.output[0],
                node.output[0],
                "AffineGrid has no importer in any TensorRT version; "
                + ("optimize replaces it" if fixable else "export at opset 18, which decomposes it")
                + context.unfixable("affine-grid"),
                fixable,
            )


def custom_samplers(context: LintContext) -> Iterator[LintFinding]:
    """Custom samplers, known and unknown, and GridSample in an opset without GridSample."""
    left = [entry.message for entry in context.repairs if entry.code == "custom-sampler" and not entry.done]
    for sampler in context.samplers:
        if sampler.custom:
            name = f"{sampler.domain or 'the default domain'}::{sampler.op_type}"
            where = "onnxruntime" if sampler.domain == "com.microsoft" else "its own runtime"
            what = f"{name} runs only in {where}"
        elif context.opset < 16 and not sampler.ours:
            what = f"no runtime has GridSample at opset {context.opset}"
        else:
            continue
        why = next((message for message in left if message.startswith(f"{sampler.name!r} (")), "")
        yield _finding(
            "custom-sampler",
            "warning" if sampler.domain == "com.microsoft" else "error",
            sampler,
            f"{what}; from opset 16 on the standard GridSample runs everywhere"
            + (f" (not fixable: {why})" if why else context.unfixable("custom-sampler")),
            context.fixable("custom-sampler") and not why,
        )
    for node, why in unknown_samplers(context.model):
        fixed = why == UNKNOWN_OPERATOR and is_aten_grid(node) and context.fixable("custom-sampler")
        yield LintFinding(
            "custom-sampler",
            "error",
            node.name or node.output[0],
            node.output[0],
            f"{node.domain or 'the default domain'}::{node.op_type} is a sampler of its own runtime: "
            + ("optimize replaces it" if fixed else f"{why}; export it as GridSample, at opset 16 or later"),
            fixed,
        )


def volumes(context: LintContext) -> Iterator[LintFinding]:
    """5-D samplers, and the runtimes that support them."""
    for sampler in context.samplers:
        if not _is_volume(context, sampler):
            continue
        if sampler.spec.mode == "bicubic":
            yield _finding(
                "cubic-volume",
                "error",
                sampler,
                "no runtime supports bicubic sampling of volumes: onnxruntime and PyTorch reject it; use mode linear",
            )
        elif not sampler.ours:
            yield _finding(
                "volume-sampler",
                "warning",
                sampler,
                "volume (5-D): TensorRT supports it natively from 11.2.1 on; older versions need the plugin library "
                "and a node of domain stn",
                _replaced(context, sampler),
            )


def cubics(context: LintContext) -> Iterator[LintFinding]:
    """Cost of bicubic sampling, and the runtimes that support it."""
    for sampler in context.samplers:
        if sampler.spec.mode == "bicubic" and not _is_volume(context, sampler):
            yield _finding(
                "cubic-sampler",
                "info",
                sampler,
                "bicubic reads 16 pixels per sample instead of 4; onnxruntime, TensorRT from 8.5 on and the plugin "
                "library support it; mmdeploy's plugin computes bilinear instead",
            )


def mixed_types(context: LintContext) -> Iterator[LintFinding]:
    """Image and grid of different types, which TensorRT rejects."""
    for sampler in context.samplers:
        image, grid = context.fact(sampler.input), context.fact(sampler.grid)
        plain = sampler.grid and not sampler.ours
        if plain and image.elem_type and grid.elem_type and image.elem_type != grid.elem_type:
            yield _finding(
                "mixed-types",
                "warning",
                sampler,
                f"the image is {image.type_name} and the grid {grid.type_name}: TensorRT requires the same type",
                any(map(context.fixable, ("mixed-types", "half-grid"))) or _replaced(context, sampler),
            )


def half_grids(context: LintContext) -> Iterator[LintFinding]:
    """Grids in half precision, with their error in pixels."""
    for sampler in context.samplers:
        kind = context.fact(sampler.grid).elem_type
        if kind not in _HALF_EPSILON:
            continue
        width, known = _width(context, sampler)
        error = width * _HALF_EPSILON[kind] / 4
        yield _finding(
            "half-grid",
            "warning" if error >= 0.1 or not known else "info",
            sampler,
            f"the grid is {context.fact(sampler.grid).type_name}: rounding moves sampling points by up to "
            f"{error:.2g} px at {'' if known else 'e.g. '}width {width}; keep the grid in float32",
            _fused(context, sampler) or context.fixable("half-grid"),
        )


def quantized_grids(context: LintContext) -> Iterator[LintFinding]:
    """Grids and parameters in integers, with their step in pixels."""
    samplers = {sampler.name: sampler for sampler in context.samplers}
    for found in quantized_tensors(context.model, context.facts):
        sampler = samplers[found.sampler]
        width, known = _width(context, sampler)
        step = found.pixels(width)
        what = "a constant or the result of an integer operator" if not found.source else "a quantized tensor"
        size = f"steps of {step:.2g} px at {'' if known else 'e.g. '}width {width}" if found.scale else "unknown steps"
        yield LintFinding(
            "quantized-grid",
            "warning" if step >= 0.1 or not found.scale or not known else "info",
            sampler.name,
            found.tensor,
            f"{what} on the path to the sampler moves its points in {size}; "
            + ("optimize reads it before it is quantized" if found.source else "export with theta and grid in float32"),
            bool(found.source) and context.fixable("quantized-grid"),
        )


def cpu_samplers(context: LintContext) -> Iterator[LintFinding]:
    """Samplers without a kernel in onnxruntime's CUDA provider, which then run on the CPU."""
    for sampler in context.samplers:
        if sampler.ours or sampler.custom:
            continue
        kind = context.fact(sampler.input)
        reasons = []
        if kind.elem_type not in (0, TensorProto.FLOAT):
            reasons.append(f"it has kernels only for float, not for {kind.type_name}")
        if _is_volume(context, sampler):
            reasons.append("releases before 2026 have none for volumes")
        if context.opset >= 20:
            reasons.append("releases before 2026 have none for opset 20 and later")
        if reasons:
            yield _finding(
                "cpu-sampler",
                "warning",
                sampler,
                "onnxruntime's CUDA provider may silently run it on the CPU, with host-device copies: "
                + " and ".join(reasons),
                _replaced(context, sampler),
            )


def grids(context: LintContext) -> Iterator[LintFinding]:
    """The fusion's result for each grid."""
    for sampler in context.samplers:
        if sampler.fused:
            yield _finding("fused", "info", sampler, "already a fused spatial transformer")
            continue
        found = context.pass_finding(sampler)
        if found is None:
            continue
        if found.fused:
            yield _finding(
                "fusable-grid",
                "warning",
                sampler,
                f"the grid is linear in {found.parameters} values per sample, but is written to memory and read back; "
                "optimize fuses it",
                True,
            )
        elif _is_flow(context.model, sampler.grid):
            yield _finding(
                "dense-flow",
                "info",
                sampler,
                f"grid {sampler.grid!r} is a flow field that a convolution computes per pixel; it cannot be fused",
            )
        else:
            yield _finding("grid-not-linear", "info", sampler, found.why)


def plain_samplers(context: LintContext) -> Iterator[LintFinding]:
    """Samplers at a grid that is not linear, which the plugin library can run."""
    for sampler in context.samplers:
        found = context.pass_finding(sampler)
        if found is None or found.fused or sampler.ours:
            continue
        if found.written:
            what = (
                "the runtime's own GridSample runs it; optimize writes stn::Sampler at the same grid, which the plugin "
            )
            yield _finding("plain-sampler", "info", sampler, f"{what}library runs and other runtimes inline", True)
        elif found.obstacle:
            yield _finding("plain-sampler", "info", sampler, f"it stays a GridSample, because {found.obstacle}")


def precision(context: LintContext) -> Iterator[LintFinding]:
    """Effect of TF32, reported once per file."""
    for sampler in context.samplers:
        found = context.pass_finding(sampler)
        if sampler.fused or (found is not None and found.fused):
            width, known = _width(context, sampler)
            error = 0.14 * width / _FAMILIAR_WIDTH
            yield _finding(
                "tf32",
                "info",
                sampler,
                f"TF32 in the matrix product of the grid moves sampling points by up to {error:.2g} px at "
                f"{'' if known else 'e.g. '}width {width}; stn-infer disables TF32 by default (--tf32 enables it), "
                "other programs may enable it by default",
            )
            return


def conventions(context: LintContext) -> Iterator[LintFinding]:
    """A grid and a sampler with different ``align_corners`` conventions."""
    grids = {node.output[0]: node for node in context.model.graph.node if node.op_type == "AffineGrid"}
    for sampler in context.samplers:
        found = context.pass_finding(sampler)
        if sampler.fused or sampler.where or found is None or found.kind != "affine":
            continue
        corners = None
        if sampler.grid in grids:
            corners = bool(attributes_of(grids[sampler.grid]).get("align_corners", 0))
        else:
            size = (context.fact(sampler.grid).dims or ())[1:-1]
            corners = _mesh_convention(context.model, sampler.grid, size[-1] if size else None)
        if corners is not None and corners != sampler.spec.align_corners:
            width, _ = _width(context, sampler)
            yield _finding(
                "convention-mix",
                "info",
                sampler,
                f"-1 and 1 are the {'centers' if corners else 'edges'} of the outer pixels in the grid, but their "
                f"{'centers' if sampler.spec.align_corners else 'edges'} in the sampler: even an identity theta "
                f"samples up to {_identity_error(width, corners):.2f} px off; correct only if the network was trained "
                "this way (PyTorch before 1.3 mixed the two conventions)",
            )


RULES: tuple[LintRule, ...] = (
    traps,
    custom_samplers,
    affine_grids,
    volumes,
    mixed_types,
    half_grids,
    quantized_grids,
    cpu_samplers,
    grids,
    plain_samplers,
    cubics,
    conventions,
    precision,
)


def _finding(code: str, severity: Severity, sampler: SamplerNode, message: str, fixable: bool = False) -> LintFinding:
    if sampler.where:
        message = f"in {sampler.where}: {message}"
    return LintFinding(code, severity, sampler.name, sampler.grid or sampler.input, message, fixable)


def _fused(context: LintContext, sampler: SamplerNode) -> bool:
    found = context.pass_finding(sampler)
    return found is not None and found.fused


def _replaced(context: LintContext, sampler: SamplerNode) -> bool:
    """Whether ``optimize`` replaces the sampler by one of this package's ops."""
    found = context.pass_finding(sampler)
    return found is not None and found.written


def _is_volume(context: LintContext, sampler: SamplerNode) -> bool:
    image, grid = context.fact(sampler.input).dims, context.fact(sampler.grid).dims
    if sampler.fused and image is None:
        return any(_output_rank(node) == 3 for node in context.model.graph.node if sampler.output in node.output)
    return any(dims is not None and len(dims) == 5 for dims in (image, grid))


def _output_rank(node: onnx.NodeProto) -> int:
    if not is_spatial(node):
        return 0
    return next((len(attribute.ints) - 2 for attribute in node.attribute if attribute.name == "grid_shape"), 0)


def _width(context: LintContext, sampler: SamplerNode) -> tuple[int, bool]:
    """The largest spatial size of the sampled image, and whether the file gives it."""
    dims = context.fact(sampler.input).dims or ()
    sizes = [size for size in dims[2:] if size is not None]
    return (max(sizes), True) if sizes else (_FAMILIAR_WIDTH, False)


def _identity_error(width: int, corners: bool) -> float:
    """The largest sampling error, in pixels, of an identity theta on ``width`` pixels."""
    index = np.arange(width)
    if corners:
        coordinate = np.linspace(-1.0, 1.0, width)
        sampled = ((coordinate + 1) * width - 1) / 2
    else:
        coordinate = (2 * index + 1) / width - 1
        sampled = (coordinate + 1) / 2 * (width - 1)
    return float(np.max(np.abs(sampled - index), initial=0.0))


def _is_flow(model: onnx.ModelProto, grid: str) -> bool:
    """Whether a convolution's output reaches the grid only through elementwise and layout operators."""
    nodes, made = model.graph.node, producers(model.graph.node)

    def before(name: str) -> Sequence[str]:
        return nodes[made[name]].input[:2] if name in made and nodes[made[name]].op_type in _FLOW_CARRIERS else ()

    return any(name in made and nodes[made[name]].op_type in _FLOW_MAKERS for name in walk_back([grid], before))


def _mesh_convention(model: onnx.ModelProto, grid: str, width: int | None) -> bool | None:
    """Whether the grid's constant mesh has -1 and 1 at the outer pixels' centers. None if no such mesh is found."""
    if width is None or width < 3:
        return None
    corners = np.linspace(-1.0, 1.0, width)
    edges = corners * (width - 1) / width
    for values in _constants_behind(model.graph, grid):
        unique = np.unique(values.astype(np.float64).ravel())
        for mesh, answer in ((corners, True), (edges, False)):
            if len(unique) >= width and _contains(unique, mesh):
                return answer
    return None


def _contains(values: NDArray[np.float64], wanted: NDArray[np.float64]) -> bool:
    index = np.clip(np.searchsorted(values, wanted), 1, len(values) - 1)
    nearest = np.minimum(np.abs(values[index] - wanted), np.abs(values[index - 1] - wanted))
    return bool(np.all(nearest < 1e-5))


def _constants_behind(graph: onnx.GraphProto, tensor: str) -> Iterator[NDArray[np.float32]]:
    """Yields the float constants that a tensor is computed from, without tracing through layers."""
    made = producers(graph.node)
    constants = {value.name: value for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output and "value" in attributes_of(node):
            constants[node.output[0]] = attributes_of(node)["value"]

    def before(name: str) -> Sequence[str]:
        node = graph.node[made[name]] if name in made else None
        ends = node is None or node.op_type in ("Conv", "Gemm", "Shape") or any(subgraphs(node))
        return () if node is None or ends else node.input

    for name in walk_back([tensor], before):
        value = constants.get(name)
        if (
            value is not None
            and value.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
            and value.data_location != TensorProto.EXTERNAL
            and value.dims
            and np.prod(value.dims) <= _MAX_VALUES
        ):
            yield numpy_helper.to_array(value)
