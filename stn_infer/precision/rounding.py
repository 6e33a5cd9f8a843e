"""Emulates a half-precision graph in float32 arithmetic with the graph's rounding.

No runtime supports every operator in every type: onnxruntime's CPU provider has no bfloat16 operators, and computes
float16 in float32 without intermediate rounding. By definition, each operator is exact and each half-precision tensor
is rounded. A GPU that accumulates in float32 computes the same.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.proto.edit import copy_of, inline_functions, replace_all
from stn_infer.proto.retype import HALF_TYPES


def half_types(model: onnx.ModelProto) -> frozenset[int]:
    """The half-precision types of the main graph's constants and casts."""
    casts = (attribute.i for node in model.graph.node if node.op_type == "Cast" for attribute in node.attribute)
    return HALF_TYPES.intersection((*(tensor.data_type for tensor in model.graph.initializer), *casts))


def rounded_in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy with float32 tensors of the same values in place of half-precision ones, and functions inlined.

    Args:
        model: with float32 (or integer) inputs and outputs, as :func:`~stn_infer.precision.half.to_half` returns it.
    """
    plain = inline_functions(model) if model.functions else model
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(plain).graph.value_info
    }
    wide = copy_of(plain)
    graph = wide.graph
    for tensor in graph.initializer:
        if tensor.data_type in HALF_TYPES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            kind = types.get(name)
            if kind in HALF_TYPES:
                exact, narrow = f"{name}.exact", f"{name}.rounded"
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [narrow], to=kind))
                nodes.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in HALF_TYPES:
                    attribute.i = TensorProto.FLOAT
    replace_all(graph.node, nodes)
    del graph.value_info[:]
    return wide
