"""Look inside an ONNX file: a copy that shows what its samplers read and return, and each sampler on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.arrays import Array
from stn_infer.errors import ModelError
from stn_infer.fusion.basis import canonical_basis
from stn_infer.fusion.op import DOMAIN, OP_TYPES, SpatialNode, spatial_nodes
from stn_infer.proto.edit import copy_of
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import attributes_of, is_standard
from stn_infer.reference.sampling import Doubles, coordinate_bound
from stn_infer.samplers import SamplerSpec

_PREFIX = "stn_verify"
_HALVES: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


@dataclass(frozen=True)
class Points:
    """Where a sampler should read, and how far float32 may put it from there.

    Attributes:
        grid: [N, *out, D] float64, coordinates in [-1, 1].
        bound: [N, *out, D], in pixels of the image.
    """

    grid: Doubles
    bound: Doubles


@dataclass(frozen=True)
class SamplerNode:
    """One sampler of a file: a spatial transformer, or a plain GridSample.

    Attributes:
        sampler: its attributes.
        transformer: the node; None for GridSample.
        dtype: the type of the image it samples.
        node: as it stands in the file.
    """

    sampler: SamplerSpec
    transformer: SpatialNode | None
    dtype: str
    node: onnx.NodeProto

    @property
    def placed_by(self) -> str:
        """What it is given to place its points: ``theta`` or ``grid``."""
        return "grid" if self.transformer is None else "theta"

    def points(self, given: Array, size: Sequence[int]) -> Points:
        """Where it should sample an image of ``size`` when it is given this theta [N, D, K], or this grid."""
        if self.transformer is None:
            grid = given.astype(np.float64)
            return Points(grid, coordinate_bound(grid, size))
        return theta_points(self.transformer, given, size)


def theta_points(node: SpatialNode, theta: Array, size: Sequence[int]) -> Points:
    """The grid of ``theta`` [N, D, K] in float64, and float32's bound."""
    basis = _exact_basis(node)
    values = theta.astype(np.float64)
    shape = (len(values), *node.output_size, -1)

    def arranged(points: Array) -> Array:
        return np.asarray(points.transpose(0, 2, 1).reshape(shape))

    points, terms = values @ basis, np.abs(values) @ np.abs(basis)
    if node.kind != "projective":
        grid = arranged(points)
        return Points(grid, coordinate_bound(grid, size, arranged(terms), len(basis)))
    with np.errstate(divide="ignore", invalid="ignore"):
        grid = arranged(points[:, :-1] / points[:, -1:])
    w = arranged(np.concatenate([points[:, -1:], terms[:, -1:]], axis=1))
    return Points(grid, coordinate_bound(grid, size, arranged(terms[:, :-1]), len(basis), w))


def _exact_basis(node: SpatialNode) -> Doubles:
    """The basis [K, P]; the rows x, y(, z), 1 of kind affine exactly, of which the file holds float32 copies."""
    stored = node.basis.astype(np.float64)
    if node.kind == "basis":
        return stored
    exact = canonical_basis(node.output_size)
    return exact if exact.shape == stored.shape and np.abs(exact - stored).max(initial=0.0) < 1e-6 else stored


def without_other_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every function inlined but those of our ops."""
    from onnx import inliner

    others = [function for function in model.functions if not _ours(function.domain, function.name)]
    if not others:
        return model
    keep = [(DOMAIN, name) for name in OP_TYPES]
    return inliner.inline_selected_functions(model, keep, exclude=True)


def _ours(domain: str, name: str) -> bool:
    return domain == DOMAIN and name in OP_TYPES


def sampler_nodes(model: onnx.ModelProto) -> tuple[SamplerNode, ...]:
    """The samplers in the main graph, in its order; functions other than ours must have been inlined."""
    transformers = iter(spatial_nodes(model))
    types = _types(model)
    found = []
    for node in model.graph.node:
        dtype = _HALVES.get(types.get(node.input[0], 0), "float32") if node.input else "float32"
        if _ours(node.domain, node.op_type):
            transformer = next(transformers)
            sampler = SamplerSpec.of(transformer.mode, transformer.padding_mode, transformer.align_corners)
            found.append(SamplerNode(sampler, transformer, dtype, node))
        elif is_standard(node, "GridSample"):
            found.append(SamplerNode(_plain_sampler(node), None, dtype, node))
    return tuple(found)


def _plain_sampler(node: onnx.NodeProto) -> SamplerSpec:
    values = attributes_of(node)
    return SamplerSpec.of(
        values.get("mode", "linear"),
        values.get("padding_mode", "zeros"),
        bool(values.get("align_corners", 0)),
    )


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types by tensor name, as far as they are known."""
    with contextlib.suppress(Exception):  # a convenience: unknown types are float32
        model = onnx.shape_inference.infer_shapes(model)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    # what our op returns has its image's type; shape inference does not look into every function
    for node in model.graph.node:
        if node.input and node.output and node.op_type in (*OP_TYPES, "GridSample"):
            types.setdefault(node.output[0], types.get(node.input[0], 0))
    return types


@dataclass(frozen=True)
class Tapped:
    """A copy of a model with what its samplers do as float32 outputs.

    Attributes:
        model: the copy.
        outputs: the original's outputs, in order.
        samplers: in the graph's order.
        taps: one dictionary a sampler: ``image``, ``theta`` (of a spatial transformer), ``grid`` (where it can be
            seen) and ``warped`` to the name of the output that holds it.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    samplers: tuple[SamplerNode, ...]
    taps: tuple[Mapping[str, str], ...]


def tap(model: onnx.ModelProto, *, inlined: bool) -> Tapped:
    """Make what the samplers do visible.

    Args:
        model: any file; it is copied.
        inlined: replace our functions by their bodies, so that the grids inside can be seen. Else the nodes stay, for
            a runtime that has a kernel for them.
    """
    from onnx import inliner

    flat = without_other_functions(model)
    samplers = sampler_nodes(flat)
    copy = copy_of(inliner.inline_local_functions(flat) if inlined and flat.functions else flat)
    free = Names(copy.graph)
    grids: list[str | None] = [node.input[1] for node in copy.graph.node if node.op_type == "GridSample"]
    if len(grids) != len(samplers):
        plain = iter(grids)
        grids = [None if sampler.transformer is not None else next(plain) for sampler in samplers]
    taps = []
    for index, (sampler, grid) in enumerate(zip(samplers, grids, strict=True)):
        tensors = {"image": sampler.node.input[0], "warped": sampler.node.output[0]}
        if sampler.transformer is not None:
            tensors["theta"] = sampler.transformer.theta
        if grid is not None:
            tensors["grid"] = grid
        names = {what: free.fresh(f"{_PREFIX}_{index}_{what}") for what in tensors}
        for what, tensor in tensors.items():
            copy.graph.node.append(helper.make_node("Cast", [tensor], [names[what]], to=TensorProto.FLOAT))
            copy.graph.output.append(helper.make_tensor_value_info(names[what], TensorProto.FLOAT, None))
        taps.append(names)
    return Tapped(copy, tuple(value.name for value in flat.graph.output), samplers, tuple(taps))


def isolated(
    model: onnx.ModelProto, sampler: SamplerNode, image_shape: tuple[int, ...], placed: tuple[int, ...]
) -> bytes:
    """A file that is this one sampler: inputs ``image`` and ``points`` (theta or grid) in float32, output ``warped``.

    It keeps the node's attributes, its basis, and the functions and opsets of the file.

    Args:
        model: the file it is from.
        image_shape, placed: the inputs' shapes without batch.
    """
    node = copy_of(sampler.node)
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
        if sampler.transformer is None:  # GridSample wants one type for both
            node.input[1] = "points_half"
            nodes.insert(0, helper.make_node("Cast", ["points"], ["points_half"], to=half))
    constants = []
    if sampler.transformer is not None:
        node.input[2] = "basis"
        constants.append(numpy_helper.from_array(np.ascontiguousarray(sampler.transformer.basis), "basis"))
        size = sampler.transformer.output_size
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


def theta_for(node: SpatialNode, grid: Array) -> Array | None:
    """theta [N, D, K] float32 whose grid is ``grid`` [N, *out, D], or None where the family has no such grid."""
    basis = node.basis.astype(np.float64)
    if not np.isfinite(basis).all():
        return None
    if node.output_size and basis.shape[1] != prod(node.output_size):
        raise ModelError(
            f"node {node.name!r}: its basis has {basis.shape[1]} points for an output of {node.output_size}"
        )
    points = np.moveaxis(grid.reshape(len(grid), -1, grid.shape[-1]), 1, 2)  # [N, D, P]
    theta = np.linalg.lstsq(basis.T, points.transpose(2, 0, 1).reshape(basis.shape[1], -1), rcond=None)[0]
    theta = theta.reshape(len(basis), *points.shape[:2]).transpose(1, 2, 0)  # [N, D, K]
    if not np.abs(theta @ basis - points).max(initial=0.0) < 1e-4:
        return None
    if node.kind == "projective":
        last = np.zeros((len(theta), 1, len(basis)))
        last[..., -1] = 1  # the basis ends in ones
        theta = np.concatenate([theta, last], axis=1)
    return np.asarray(theta, np.float32)
