"""The ops of domain ``stn`` and their plain ONNX bodies.

All are of version 1, and ``ProjectiveTransformer`` of version 2 too: over any basis, in 2-D and 3-D, with a denominator
clamped from below (``w_min``) and an ``offset`` after the division. ``SpatialTransformer`` and
``ProjectiveTransformer`` compute the sampling grid from theta and a basis; ``TensorProductTransformer`` from a lattice
and one matrix per axis; ``LatticeTransformer`` from up to 64 weighted lattice points per pixel. ``Sampler`` reads a
grid, whatever computes it. Every file with such nodes contains model-local functions of the same names. A runtime with
a kernel for the op runs the kernel; every other runtime inlines the function. See ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from stn_infer.fusion.basis import NO_CLAMP, Kind
from stn_infer.proto.traversal import attributes_of, is_standard, nested_nodes, opset_of
from stn_infer.samplers import DEFAULT_SPEC, SamplerSpec

DOMAIN = "stn"
VERSION = 1
SPATIAL = "SpatialTransformer"
PROJECTIVE = "ProjectiveTransformer"
TENSOR_PRODUCT = "TensorProductTransformer"
LATTICE = "LatticeTransformer"
SAMPLER = "Sampler"
OP_TYPES = (SPATIAL, PROJECTIVE, TENSOR_PRODUCT, LATTICE, SAMPLER)

# GridSample's three attributes.
_SAMPLER_ATTRIBUTES = ("align_corners", "mode", "padding_mode")
# How TensorRT's parser finds the plugin of a node.
_PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
# What only nodes of version 2 have.
_QUOTIENT = ("w_min", "offset")


def node_attributes(
    kind: Kind, output_size: tuple[int, ...], spec: SamplerSpec = DEFAULT_SPEC, opset: int = 18
) -> dict[str, Any]:
    """Returns the attributes of a node at ``opset``; ``grid_shape`` is [0, *output_size, D], 0 denoting the batch."""
    attributes = {**sampler_attributes(spec, opset), "grid_shape": [0, *output_size, len(output_size)]}
    if kind in ("affine", "basis"):
        attributes["kind"] = kind
    return attributes


def quotient_attributes(rank: int, w_min: float = NO_CLAMP, offset: Sequence[float] = ()) -> dict[str, Any]:
    """Returns what makes a ``ProjectiveTransformer`` of version 1 one of version 2.

    Args:
        rank: D.
        w_min: the denominator's lower bound.
        offset: added to (x, y[, z]) after the division; empty: zeros.
    """
    values = [float(value) for value in offset] or [0.0] * rank
    return {"w_min": float(w_min), "offset": values, "plugin_version": "2"}


def is_version_2(node: onnx.NodeProto) -> bool:
    """Whether a node is a ``ProjectiveTransformer`` of version 2."""
    projective = node.domain == DOMAIN and node.op_type == PROJECTIVE
    return projective and attributes_of(node).get("plugin_version") == "2"


def op_of(kind: Kind) -> str:
    """Returns the op that computes a grid of this kind."""
    others = {"projective": PROJECTIVE, "tensor_product": TENSOR_PRODUCT, "lattice": LATTICE}
    return others.get(kind, SPATIAL)


def tensor_product_shapes(lattice: Sequence[int], output_size: Sequence[int]) -> dict[str, Any]:
    """Returns the attributes of a ``TensorProductTransformer`` that its plain body reshapes theta with.

    Args:
        lattice: (planes, rows, columns) of theta; images have one plane.
        output_size: (height, width) or (depth, height, width).
    """
    rank, (planes, rows, columns) = len(output_size), lattice
    depth = output_size[0] if rank == 3 else 1
    return {"theta_shape": [0, rank, planes, rows * columns], "lattice_shape": [0, rank, depth, rows, columns]}


def sampler_attributes(spec: SamplerSpec, opset: int) -> dict[str, Any]:
    """Returns the attributes of a ``Sampler`` at ``opset``."""
    return {**spec.attributes(opset), **_PLUGIN}


def function_proto(op_type: str, opset: int, version: int = VERSION) -> onnx.FunctionProto:
    """Returns the body of ``op_type`` in plain ONNX at ``opset``; attributes are references to the caller's.

    Version 2 exists for ``ProjectiveTransformer``.
    """
    if op_type == PROJECTIVE and version == 2:
        return _quotient(opset)
    if op_type == SAMPLER:
        grid = [helper.make_node("Cast", ["grid"], ["stn_grid"], to=TensorProto.FLOAT)]
        return _function(op_type, ["input", "grid"], grid, (), "output = GridSample(input, grid)", opset)
    if op_type == TENSOR_PRODUCT:
        return _tensor_product(opset)
    if op_type == LATTICE:
        return _lattice(opset)
    nodes = [helper.make_node("MatMul", ["theta", "basis"], ["stn_points"])]
    points = "stn_points"
    if op_type == PROJECTIVE:
        nodes += [
            helper.make_node("Constant", [], ["stn_split"], value_ints=[2, 1]),
            helper.make_node("Split", ["stn_points", "stn_split"], ["stn_xy", "stn_w"], axis=1),
            helper.make_node("Div", ["stn_xy", "stn_w"], ["stn_divided"]),
        ]
        points = "stn_divided"
    shape = helper.make_node("Constant", [], ["stn_grid_shape"])
    shape.attribute.append(_reference("value_ints", "grid_shape", onnx.AttributeProto.INTS))
    nodes += [
        helper.make_node("Transpose", [points], ["stn_transposed"], perm=[0, 2, 1]),
        shape,
        helper.make_node("Reshape", ["stn_transposed", "stn_grid_shape"], ["stn_grid"]),
    ]
    attributes = ("grid_shape",) if op_type == PROJECTIVE else ("grid_shape", "kind")
    text = "output = GridSample(input, theta · basis)"
    return _function(op_type, ["input", "theta", "basis"], nodes, attributes, text, opset)


def _quotient(opset: int) -> onnx.FunctionProto:
    """points = theta [N, D + 1, K] · basis [K, P]; grid = points[:, :D] / max(points[:, D], w_min) + offset."""
    bounds = {"stn_zero": 0, "stn_last": -1, "stn_far": 2**31 - 1, "stn_rows": 1}
    least = helper.make_node("Constant", [], ["stn_w_min"])
    least.attribute.append(_reference("value_float", "w_min", onnx.AttributeProto.FLOAT))
    moves = helper.make_node("Constant", [], ["stn_offset"])
    moves.attribute.append(_reference("value_floats", "offset", onnx.AttributeProto.FLOATS))
    nodes = [
        helper.make_node("MatMul", ["theta", "basis"], ["stn_points"]),
        *(helper.make_node("Constant", [], [name], value_ints=[value]) for name, value in bounds.items()),
        helper.make_node("Slice", ["stn_points", "stn_zero", "stn_last", "stn_rows"], ["stn_numerators"]),
        helper.make_node("Slice", ["stn_points", "stn_last", "stn_far", "stn_rows"], ["stn_denominator"]),
        least,
        helper.make_node("Max", ["stn_denominator", "stn_w_min"], ["stn_w"]),
        helper.make_node("Div", ["stn_numerators", "stn_w"], ["stn_divided"]),
        helper.make_node("Transpose", ["stn_divided"], ["stn_transposed"], perm=[0, 2, 1]),
        moves,
        helper.make_node("Add", ["stn_transposed", "stn_offset"], ["stn_moved"]),
        *_reshaped("stn_moved", "grid_shape", "stn_grid"),
    ]
    text = "output = GridSample(input, points / max(w, w_min) + offset), points and w the rows of theta · basis"
    return _function(PROJECTIVE, ["input", "theta", "basis"], nodes, ("grid_shape", *_QUOTIENT), text, opset)


def _reshaped(source: str, attribute: str, target: str) -> list[onnx.NodeProto]:
    """Nodes that reshape ``source`` to the shape in an attribute of the caller."""
    shape = helper.make_node("Constant", [], [f"{target}_shape"])
    shape.attribute.append(_reference("value_ints", attribute, onnx.AttributeProto.INTS))
    return [shape, helper.make_node("Reshape", [source, f"{target}_shape"], [target])]


def _tensor_product(opset: int) -> onnx.FunctionProto:
    """theta [N, D, K] contracted with planes [Do, d], rows [Ho, h] and columns [w, Wo]; K = d h w.

    The first axis is contracted on the small lattice, so that only the last product has the size of the grid. In each
    product the lattice is the left operand, since onnxruntime's MatMul rejects an empty batch on the right alone. Its
    transposes move more than its last two axes, since such are fused into a product that rejects it too.
    """

    def contracted(source: str, axes: list[int], matrix: str, target: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Transpose", [source], [f"{source}_moved"], perm=axes),
            helper.make_node("Transpose", [matrix], [f"stn_{matrix}_moved"], perm=[1, 0]),
            helper.make_node("MatMul", [f"{source}_moved", f"stn_{matrix}_moved"], [target]),
        ]

    nodes = [
        *_reshaped("theta", "theta_shape", "stn_flat"),  # [N, D, d, h w]
        *contracted("stn_flat", [0, 3, 1, 2], "planes", "stn_planes"),  # [N, h w, D, Do]
        helper.make_node("Transpose", ["stn_planes"], ["stn_planes_last"], perm=[0, 2, 3, 1]),
        *_reshaped("stn_planes_last", "lattice_shape", "stn_lattice"),  # [N, D, Do, h, w]
        *contracted("stn_lattice", [0, 2, 4, 1, 3], "rows", "stn_rows"),  # [N, Do, w, D, Ho]
        helper.make_node("Transpose", ["stn_rows"], ["stn_rows_last"], perm=[0, 3, 1, 4, 2]),
        helper.make_node("MatMul", ["stn_rows_last", "columns"], ["stn_points"]),  # [N, D, Do, Ho, Wo]
        helper.make_node("Transpose", ["stn_points"], ["stn_transposed"], perm=[0, 2, 3, 4, 1]),
        *_reshaped("stn_transposed", "grid_shape", "stn_grid"),
    ]
    inputs, attributes = ["input", "theta", "planes", "rows", "columns"], ("theta_shape", "lattice_shape", "grid_shape")
    text = "output = GridSample(input, theta contracted with one matrix per axis)"
    return _function(TENSOR_PRODUCT, inputs, nodes, attributes, text, opset)


def _lattice(opset: int) -> onnx.FunctionProto:
    """The sum over J of weight [J, P] times the points of theta [N, D, K] at index [J, P]."""
    nodes = [
        helper.make_node("Gather", ["theta", "index"], ["stn_taken"], axis=2),  # [N, D, J, P]
        helper.make_node("Mul", ["stn_taken", "weight"], ["stn_weighted"]),
        helper.make_node("Constant", [], ["stn_taps"], value_ints=[2]),
        helper.make_node("ReduceSum", ["stn_weighted", "stn_taps"], ["stn_points"], keepdims=0),
        helper.make_node("Transpose", ["stn_points"], ["stn_transposed"], perm=[0, 2, 1]),
        *_reshaped("stn_transposed", "grid_shape", "stn_grid"),
    ]
    text = "output = GridSample(input, sum of weighted lattice points)"
    return _function(LATTICE, ["input", "theta", "index", "weight"], nodes, ("grid_shape",), text, opset)


def _function(
    op_type: str,
    inputs: Sequence[str],
    grid: Sequence[onnx.NodeProto],
    attributes: Sequence[str],
    text: str,
    opset: int,
) -> onnx.FunctionProto:
    """Returns a function that computes ``stn_grid`` in float32 by the nodes of ``grid`` and samples its input there."""
    sample = helper.make_node("GridSample", ["stn_image", "stn_grid"], ["stn_sampled"])
    sample.attribute.extend(
        _reference(name, name, onnx.AttributeProto.INT if name == "align_corners" else onnx.AttributeProto.STRING)
        for name in _SAMPLER_ATTRIBUTES
    )
    nodes = [
        *grid,
        # Coordinates stay float32 for every image type, and GridSample requires one type for image and grid.
        helper.make_node("Cast", ["input"], ["stn_image"], to=TensorProto.FLOAT),
        sample,
        helper.make_node("CastLike", ["stn_sampled", "input"], ["output"]),
    ]
    return helper.make_function(
        DOMAIN,
        op_type,
        inputs,
        ["output"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=[*_SAMPLER_ATTRIBUTES, *_PLUGIN, *attributes],
        doc_string=text,
    )


def _reference(name: str, function_attribute: str, kind: int) -> onnx.AttributeProto:
    attribute = onnx.AttributeProto(name=name, ref_attr_name=function_attribute)
    attribute.type = kind  # type: ignore[assignment]
    return attribute


def is_spatial(node: onnx.NodeProto) -> bool:
    """Whether a node is one of this package's ops that compute the grid from theta."""
    return bool(node.domain == DOMAIN and node.op_type in OP_TYPES and node.op_type != SAMPLER)


def is_sampler(node: onnx.NodeProto) -> bool:
    """Whether a node is this package's ``Sampler``."""
    return bool(node.domain == DOMAIN and node.op_type == SAMPLER)


def is_op(node: onnx.NodeProto) -> bool:
    """Whether a node is one of this package's ops."""
    return bool(node.domain == DOMAIN and node.op_type in OP_TYPES)


def reads_grid(node: onnx.NodeProto) -> bool:
    """Whether a node samples its first input at its second, a grid: the standard GridSample, or ``Sampler``."""
    return is_standard(node, "GridSample") or is_sampler(node)


def attach_functions(model: onnx.ModelProto) -> None:
    """Adds to ``model``, in place, the functions of the ops that its nodes use, and the import of domain ``stn``.

    Removes those that no node uses any more. A file has one function of a name: if a ``ProjectiveTransformer`` is of
    version 2, all become nodes of version 2.
    """
    nodes = [node for node in nested_nodes(model.graph.node) if is_op(node)]
    types = {node.op_type for node in nodes}
    second = any(map(is_version_2, nodes))
    if second:
        for node in nodes:
            if node.op_type == PROJECTIVE and not is_version_2(node):
                _raise_version(node)
    used = [op_type for op_type in OP_TYPES if op_type in types]
    for index in reversed(range(len(model.functions))):
        function = model.functions[index]
        if function.domain != DOMAIN or function.name not in OP_TYPES:
            continue
        outdated = second and function.name == PROJECTIVE and "w_min" not in function.attribute
        if function.name not in types or outdated:
            del model.functions[index]
    present = {(function.domain, function.name) for function in model.functions}
    opset = opset_of(model)
    model.functions.extend(
        function_proto(name, opset, 2 if second and name == PROJECTIVE else VERSION)
        for name in used
        if (DOMAIN, name) not in present
    )
    if used and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _raise_version(node: onnx.NodeProto) -> None:
    """Makes a ``ProjectiveTransformer`` of version 1 one of version 2, in place."""
    attributes = attributes_of(node)
    kept = {**attributes, **quotient_attributes(len(attributes["grid_shape"]) - 2)}
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(kept.items()))
