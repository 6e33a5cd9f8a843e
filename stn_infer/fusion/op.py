"""The ops ``stn::SpatialTransformer`` and ``stn::ProjectiveTransformer``, version 1, and their plain ONNX bodies.

Every file that this package writes carries, beside the nodes, model-local functions of the same names. A runtime
with a kernel for the op takes the kernel; every other runtime inlines the function. See ARCHITECTURE.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.errors import ModelError
from stn_infer.proto.edit import copy_of
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import attributes_of, nested_nodes, opset_of

DOMAIN = "stn"
VERSION = 1
SPATIAL = "SpatialTransformer"
PROJECTIVE = "ProjectiveTransformer"
OP_TYPES = (SPATIAL, PROJECTIVE)

Kind = Literal["affine", "basis", "projective"]

# GridSample's three attributes.
_SAMPLER_ATTRIBUTES = ("align_corners", "mode", "padding_mode")


@dataclass(frozen=True)
class SpatialNode:
    """One spatial transformer in an ONNX graph.

    Attributes:
        name: the node's name.
        kind: ``affine``, ``basis`` or ``projective``.
        input, theta, output: tensor names; theta is [N, D, K], projective [N, 3, 3].
        basis: [K, P] float32, P = prod(output_size), row-major.
        output_size: (height, width) or (depth, height, width).
        mode, padding_mode, align_corners: the sampler, in GridSample's words.
    """

    name: str
    kind: Kind
    input: str
    theta: str
    output: str
    basis: NDArray[np.float32]
    output_size: tuple[int, ...]
    mode: str
    padding_mode: str
    align_corners: bool

    def grid(self, theta: NDArray[Any]) -> NDArray[np.float64]:
        """The sampling grid [N, *output_size, D] in float64 for ``theta`` [N, D, K]."""
        points = theta.astype(np.float64) @ self.basis.astype(np.float64)
        if self.kind == "projective":
            with np.errstate(divide="ignore", invalid="ignore"):
                points = points[:, :-1] / points[:, -1:]
        return points.transpose(0, 2, 1).reshape(len(theta), *self.output_size, points.shape[1])


def node_attributes(
    kind: Kind, output_size: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool
) -> dict[str, Any]:
    """The attributes of a node; ``grid_shape`` is [0, *output_size, D], 0 standing for the batch."""
    attributes: dict[str, Any] = {
        "mode": mode,
        "padding_mode": padding_mode,
        "align_corners": int(align_corners),
        "grid_shape": [0, *output_size, len(output_size)],
        "plugin_namespace": DOMAIN,
        "plugin_version": str(VERSION),
    }
    if kind != "projective":
        attributes["kind"] = kind
    return attributes


def function_proto(op_type: str, opset: int) -> onnx.FunctionProto:
    """The body of ``op_type`` in plain ONNX at ``opset``; attributes are taken by reference."""
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
        # Coordinates stay fp32 whatever the image's type is, and GridSample wants one type for both.
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
    """Whether it is one of our own ops."""
    return bool(node.domain == DOMAIN and node.op_type in OP_TYPES)


def attach_functions(model: onnx.ModelProto) -> None:
    """Give ``model``, in place, the functions of the ops its nodes use, and the import of domain ``stn``."""
    types = {node.op_type for node in nested_nodes(model.graph.node) if is_spatial(node)}
    used = [op_type for op_type in OP_TYPES if op_type in types]
    present = {(function.domain, function.name) for function in model.functions}
    opset = opset_of(model)
    model.functions.extend(function_proto(name, opset) for name in used if (DOMAIN, name) not in present)
    if used and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def spatial_nodes(model: onnx.ModelProto) -> tuple[SpatialNode, ...]:
    """The spatial transformers of ``model``, in graph order.

    Raises:
        ModelError: a node's basis is not a constant, or it lacks an attribute.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if not is_spatial(node):
            continue
        attributes = attributes_of(node)
        try:
            found.append(
                SpatialNode(
                    name=node.name,
                    kind="projective" if node.op_type == PROJECTIVE else attributes["kind"],
                    input=node.input[0],
                    theta=node.input[1],
                    output=node.output[0],
                    basis=numpy_helper.to_array(constants[node.input[2]]),
                    output_size=tuple(int(size) for size in attributes["grid_shape"][1:-1]),
                    mode=attributes["mode"],
                    padding_mode=attributes["padding_mode"],
                    align_corners=bool(attributes["align_corners"]),
                )
            )
        except (KeyError, IndexError) as error:
            raise ModelError(f"node {node.name!r} ({DOMAIN}::{node.op_type}) lacks {error}; export it again") from None
    return tuple(found)


def with_theta(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with theta [N, D, K] of every spatial transformer as an extra output.

    The outputs are named ``theta`` where there is one transformer, else ``theta_0``, ``theta_1``, … in graph order.
    """
    copy = copy_of(model)
    nodes, names = spatial_nodes(copy), Names(copy.graph)
    for index, node in enumerate(nodes):
        name = names.fresh("theta" if len(nodes) == 1 else f"theta_{index}")
        rows = 3 if node.kind == "projective" else len(node.output_size)
        batch = copy.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
        copy.graph.node.append(helper.make_node("Identity", [node.theta], [name], name=f"stn_{name}"))
        copy.graph.output.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, rows, node.basis.shape[0]])
        )
    return copy
