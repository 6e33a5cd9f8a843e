"""A half-precision model in float32: the same graph without its rounding, to compare two graphs exactly."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from stn_infer.graph.structure import subgraphs

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type"})


def has_halves(model: onnx.ModelProto) -> bool:
    """Whether anything in the main graph or in a function is float16 or bfloat16."""
    graph = model.graph
    return (
        any(tensor.data_type in HALF_TYPES for tensor in graph.initializer)
        or any(value.type.tensor_type.elem_type in HALF_TYPES for value in (*graph.input, *graph.output))
        or any(_node_has_halves(node) for node in graph.node)
        or any(_node_has_halves(node) for function in model.functions for node in function.node)
    )


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every float16 and bfloat16 is a float32; values keep their stored precision.

    Initialisers in external data stay as they are there, and are cast where the graph begins.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    casts = []
    for tensor in wide.graph.initializer:
        if tensor.data_type in HALF_TYPES:
            stored = f"{tensor.name}__stored"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
            tensor.name = stored
    if casts:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in wide.graph.node]
        del wide.graph.node[:]
        wide.graph.node.extend([*casts, *nodes])
    for function in wide.functions:
        _widen_nodes(function.node)
        del function.value_info[:]
    return wide


def _node_has_halves(node: onnx.NodeProto) -> bool:
    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type in HALF_TYPES:
            return True
        if attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT and attribute.i in HALF_TYPES:
            return True
        for graph in subgraphs(attribute):
            if any(tensor.data_type in HALF_TYPES for tensor in graph.initializer):
                return True
            if any(_node_has_halves(inner) for inner in graph.node):
                return True
    return False


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALF_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALF_TYPES:
                attribute.i = TensorProto.FLOAT
            for graph in subgraphs(attribute):
                _widen_graph(graph)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in HALF_TYPES and tensor.data_location != TensorProto.EXTERNAL:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
