"""The ops ``stn::SpatialTransformer`` and ``stn::ProjectiveTransformer``, version 1, and their plain ONNX bodies.

Every fused file contains, besides the nodes, model-local functions of the same names. A runtime with a kernel for the
op runs the kernel; every other runtime inlines the function. See ARCHITECTURE.md.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from stn_infer.fusion.basis import Kind
from stn_infer.proto.traversal import nested_nodes, opset_of
from stn_infer.samplers import DEFAULT_SPEC, SamplerSpec

DOMAIN = "stn"
VERSION = 1
SPATIAL = "SpatialTransformer"
PROJECTIVE = "ProjectiveTransformer"
OP_TYPES = (SPATIAL, PROJECTIVE)

# GridSample's three attributes.
_SAMPLER_ATTRIBUTES = ("align_corners", "mode", "padding_mode")


def node_attributes(
    kind: Kind, output_size: tuple[int, ...], spec: SamplerSpec = DEFAULT_SPEC, opset: int = 18
) -> dict[str, Any]:
    """Returns the attributes of a node at ``opset``; ``grid_shape`` is [0, *output_size, D], 0 denoting the batch."""
    attributes: dict[str, Any] = {
        **spec.attributes(opset),
        "grid_shape": [0, *output_size, len(output_size)],
        "plugin_namespace": DOMAIN,
        "plugin_version": str(VERSION),
    }
    if kind != "projective":
        attributes["kind"] = kind
    return attributes


def function_proto(op_type: str, opset: int) -> onnx.FunctionProto:
    """Returns the body of ``op_type`` in plain ONNX at ``opset``; attributes are references to the caller's."""
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
    sample = helper.make_node("GridSample", ["stn_image", "stn_grid"], ["stn_sampled"])
    sample.attribute.extend(
        _reference(name, name, onnx.AttributeProto.INT if name == "align_corners" else onnx.AttributeProto.STRING)
        for name in _SAMPLER_ATTRIBUTES
    )
    nodes += [
        helper.make_node("Transpose", [points], ["stn_transposed"], perm=[0, 2, 1]),
        shape,
        helper.make_node("Reshape", ["stn_transposed", "stn_grid_shape"], ["stn_grid"]),
        # Coordinates stay float32 for every image type, and GridSample requires one type for image and grid.
        helper.make_node("Cast", ["input"], ["stn_image"], to=TensorProto.FLOAT),
        sample,
        helper.make_node("CastLike", ["stn_sampled", "input"], ["output"]),
    ]
    attributes = [*_SAMPLER_ATTRIBUTES, "grid_shape", "plugin_namespace", "plugin_version"]
    if op_type == SPATIAL:
        attributes.append("kind")
    return helper.make_function(
        DOMAIN,
        op_type,
        ["input", "theta", "basis"],
        ["output"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=attributes,
        doc_string="output = GridSample(input, theta · basis)",
    )


def _reference(name: str, function_attribute: str, kind: int) -> onnx.AttributeProto:
    attribute = onnx.AttributeProto(name=name, ref_attr_name=function_attribute)
    attribute.type = kind  # type: ignore[assignment]
    return attribute


def is_spatial(node: onnx.NodeProto) -> bool:
    """Whether a node is one of this package's ops."""
    return bool(node.domain == DOMAIN and node.op_type in OP_TYPES)


def attach_functions(model: onnx.ModelProto) -> None:
    """Adds to ``model``, in place, the functions of the ops that its nodes use, and the import of domain ``stn``."""
    types = {node.op_type for node in nested_nodes(model.graph.node) if is_spatial(node)}
    used = [op_type for op_type in OP_TYPES if op_type in types]
    present = {(function.domain, function.name) for function in model.functions}
    opset = opset_of(model)
    model.functions.extend(function_proto(name, opset) for name in used if (DOMAIN, name) not in present)
    if used and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
