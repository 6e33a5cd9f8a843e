"""Changes a model's floating-point types: half precision to float32 for comparisons, all to float64 for a reference."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import every_node, subgraphs, tensors_of

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
FLOAT_TYPES = HALF_TYPES | {TensorProto.FLOAT, TensorProto.DOUBLE}
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type"})


def has_halves(model: onnx.ModelProto) -> bool:
    """Whether anything in the main graph or in a function is float16 or bfloat16."""
    graph = model.graph
    return (
        any(tensor.data_type in HALF_TYPES for tensor in tensors_of(model))
        or any(value.type.tensor_type.elem_type in HALF_TYPES for value in (*graph.input, *graph.output))
        or any(_names_a_type(a) and a.i in HALF_TYPES for node in every_node(model) for a in node.attribute)
    )


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy with float32 in place of float16 and bfloat16; values keep their stored precision.

    Initializers with external data keep their type and are cast at the start of the graph.
    """
    wide = copy_of(model)
    change = _Change(HALF_TYPES, TensorProto.FLOAT)
    change.graph(wide.graph)
    casts, names = [], Names(wide.graph)
    for tensor in wide.graph.initializer:
        if tensor.data_type in HALF_TYPES:
            stored = names.fresh(f"{tensor.name}__stored")
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
            tensor.name = stored
    if casts:
        replace_all(wide.graph.node, [*casts, *wide.graph.node])
    for function in wide.functions:
        change.nodes(function.node)
        del function.value_info[:]
    return wide


def widen_node(node: onnx.NodeProto) -> None:
    """Replaces half-precision types and tensors in a node's attributes by float32, in place."""
    _Change(HALF_TYPES, TensorProto.FLOAT).nodes([node])


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy without functions, with double in place of float16, bfloat16 and float32."""
    wide = copy_of(model)
    del wide.functions[:]
    _Change(FLOAT_TYPES, TensorProto.DOUBLE).graph(wide.graph)
    return wide


class _Change:
    """Changes values of the types ``old`` to ``new``, in graphs and their subgraphs; drops inferred shapes."""

    def __init__(self, old: Collection[int], new: int) -> None:
        self.old, self.new = old, new

    def graph(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.tensor(tensor)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in self.old:
                value.type.tensor_type.elem_type = self.new
        del graph.value_info[:]
        self.nodes(graph.node)

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            if TensorProto.FLOAT in self.old:
                _write_defaults(node)
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    self.tensor(attribute.t)
                if _names_a_type(attribute) and attribute.i in self.old:
                    attribute.i = self.new
            for _, graph in subgraphs(node):
                self.graph(graph)

    def tensor(self, tensor: TensorProto) -> None:
        if tensor.data_type in self.old and tensor.data_location != TensorProto.EXTERNAL:
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(self.new))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _write_defaults(node: onnx.NodeProto) -> None:
    """Writes a node's default or scalar float32 values as tensor attributes."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32))))
    if node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name in ("value_float", "value_floats"):
                value = attribute.f if attribute.name == "value_float" else attribute.floats
                tensor = numpy_helper.from_array(np.asarray(value, np.float32))
                attribute.CopyFrom(helper.make_attribute("value", tensor))


def _names_a_type(attribute: onnx.AttributeProto) -> bool:
    return attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT
