"""Extend an ONNX file with outputs for the inputs and results of its samplers, and extract single samplers from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil, log2, prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.arrays import Array
from stn_infer.errors import ModelError
from stn_infer.fusion.basis import AnyBasis, Basis
from stn_infer.fusion.op import DOMAIN, OP_TYPES
from stn_infer.fusion.samplers import SamplerNode, find_samplers, infer_facts, spatial_nodes
from stn_infer.proto.edit import copy_of, inline_functions
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import is_standard
from stn_infer.reference.calls import SamplerCall, TracedRun

_PREFIX = "stn_verify"
_HALVES: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def without_other_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline all functions of a model except those of domain ``stn``; raises as :func:`inline_functions`."""
    others = [function for function in model.functions if not _ours(function.domain, function.name)]
    if not others:
        return model
    return inline_functions(model, [(DOMAIN, name) for name in OP_TYPES])


def _ours(domain: str, name: str) -> bool:
    return domain == DOMAIN and name in OP_TYPES


def sampler_nodes(model: onnx.ModelProto) -> tuple[SamplerNode, ...]:
    """The samplers in the main graph, in graph order; functions outside domain ``stn`` must have been inlined."""
    ours = {node.output: node for node in spatial_nodes(model)}
    found = [ours.get(node.output, node) for node in find_samplers(model) if not (node.where or node.custom)]
    types = {name: fact.elem_type for name, fact in infer_facts(model).items() if fact.elem_type}
    for node in found:  # the output has the image's type; shape inference does not look into every function
        types.setdefault(node.output, types.get(node.input, 0))
    return tuple(replace(node, dtype=_HALVES.get(types.get(node.input, 0), "float32")) for node in found)


@dataclass(frozen=True)
class Tapped:
    """A copy of a model with additional float32 outputs for the inputs and results of its samplers.

    Attributes:
        model: the copy.
        outputs: the original's outputs, in order.
        samplers: in graph order.
        taps: one dictionary per sampler, which maps ``image``, ``theta`` (for a spatial transformer), ``grid`` (where
            the graph contains it) and ``warped`` to the name of the output.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    samplers: tuple[SamplerNode, ...]
    taps: tuple[Mapping[str, str], ...]

    def read(self, values: Mapping[str, Array]) -> TracedRun:
        """Split the copy's outputs into the original's outputs and the sampler calls."""
        calls = []
        for node, names in zip(self.samplers, self.taps, strict=True):
            image, warped = values[names["image"]], values[names["warped"]]
            seen = "grid" in names
            calls.append(SamplerCall.of(node, image, values[names["grid" if seen else "theta"]], warped, at_grid=seen))
        return TracedRun({name: values[name] for name in self.outputs}, tuple(calls))


def tap(model: onnx.ModelProto, *, inlined: bool, wanted: Collection[str] | None = None) -> Tapped:
    """Add outputs for the inputs and results of all samplers.

    Args:
        model: any file; it is copied.
        inlined: inline the functions of domain ``stn`` too, which gives access to the grids inside. If false, their
            nodes stay, for a runtime that has kernels for them.
        wanted: of ``image``, ``theta``, ``grid`` and ``warped``, those to add; None: all.

    Raises:
        ModelError: its functions cannot be inlined.
    """
    flat = without_other_functions(model)
    samplers = sampler_nodes(flat)
    copy = inline_functions(flat) if inlined and flat.functions else copy_of(flat)
    free = Names(copy.graph)
    grids: list[str | None] = [node.input[1] for node in copy.graph.node if is_standard(node, "GridSample")]
    if len(grids) != len(samplers):
        grids = [sampler.grid or None for sampler in samplers]
    taps = []
    for index, (sampler, grid) in enumerate(zip(samplers, grids, strict=True)):
        tensors = {"image": sampler.input, "warped": sampler.output}
        if sampler.fused:
            tensors["theta"] = sampler.theta
        if grid is not None:
            tensors["grid"] = grid
        if wanted is not None:
            tensors = {what: tensor for what, tensor in tensors.items() if what in wanted}
        names = {what: free.fresh(f"{_PREFIX}_{index}_{what}") for what in tensors}
        for what, tensor in tensors.items():
            copy.graph.node.append(helper.make_node("Cast", [tensor], [names[what]], to=TensorProto.FLOAT))
            copy.graph.output.append(helper.make_tensor_value_info(names[what], TensorProto.FLOAT, None))
        taps.append(names)
    return Tapped(copy, tuple(value.name for value in flat.graph.output), samplers, tuple(taps))


def isolated(
    model: onnx.ModelProto, sampler: SamplerNode, image_shape: tuple[int, ...], placed: tuple[int, ...]
) -> bytes:
    """Extract one sampler to a file with float32 inputs ``image`` and ``points`` (theta or grid) and output ``warped``.

    The file keeps the node's attributes, its basis, and the functions and opsets of the original.

    Args:
        model: the original file.
        sampler: the sampler to extract.
        image_shape: the shape of ``image`` without batch.
        placed: the shape of ``points`` without batch.

    Returns:
        The content of the file.
    """
    node = copy_of(next(node for node in model.graph.node if sampler.output in node.output))
    nodes = [node]
    node.input[1], node.output[0] = "points", "warped"
    node.input[0] = "image"
    if sampler.dtype != "float32":
        half = TensorProto.FLOAT16 if sampler.dtype == "float16" else TensorProto.BFLOAT16
        node.input[0], node.output[0] = "image_half", "warped_half"
        nodes = [
            helper.make_node("Cast", ["image"], ["image_half"], to=half),
            node,
            helper.make_node("Cast", ["warped_half"], ["warped"], to=TensorProto.FLOAT),
        ]
        if not sampler.ours:  # GridSample requires one type for both inputs
            node.input[1] = "points_half"
            nodes.insert(0, helper.make_node("Cast", ["points"], ["points_half"], to=half))
    constants = []
    if sampler.basis is not None:
        del node.input[2:]
        node.input.extend(sampler.basis.constants)
        pairs = sampler.basis.constants.items()
        constants = [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in pairs]
        size = sampler.basis.output_size
    else:
        size = placed[:-1]
    shapes = {"image": image_shape, "points": placed}
    graph = helper.make_graph(
        nodes,
        "sampler",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("warped", TensorProto.FLOAT, ["batch", image_shape[0], *size])],
        constants,
    )
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    small.functions.extend(function for function in model.functions if _ours(function.domain, function.name))
    content: bytes = small.SerializeToString()
    return content


def theta_for(basis: AnyBasis, grid: Array) -> Array | None:
    """The theta [N, D, K] in float32 whose grid is ``grid`` [N, *out, D]; None if the family has no such grid.

    Raises:
        ModelError: the basis and its output size have different numbers of points.
    """
    if not all(np.isfinite(values).all() for values in basis.constants.values()):
        return None
    points = basis.rows.shape[1] if isinstance(basis, Basis) else prod(grid.shape[1:-1])
    if basis.output_size and points != prod(basis.output_size):
        raise ModelError(f"the basis has {points} points for an output of {basis.output_size}")
    if isinstance(basis, Basis) and basis.kind == "projective":
        # A constant denominator that no clamp changes; a power of two, so that the division is exact.
        w = 2.0 ** ceil(log2(max(1.0, basis.w_min or 1.0)))
        points = (grid - np.array(basis.offset or 0.0)) * w
        theta = basis.fitted(np.concatenate([points, np.full_like(points[..., :1], w)], axis=-1))
    else:
        theta = basis.fitted(grid)
    if not np.abs(basis.grid(theta) - grid).max(initial=0.0) < 1e-4:
        return None
    return np.asarray(theta, np.float32)
