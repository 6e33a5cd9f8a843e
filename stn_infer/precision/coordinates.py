"""Which nodes of a graph compute where its samplers read: what no lower precision may touch."""

from __future__ import annotations

import onnx

from stn_infer.fusion.op import DOMAIN, OP_TYPES
from stn_infer.proto.traversal import reads

#: Operators with weights.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def coordinate_nodes(model: onnx.ModelProto, *, whole_head: bool = False) -> frozenset[int]:
    """Positions, in the main graph, of the nodes that compute sampling grids or theta.

    From each sampler backwards, up to and including the layer whose output the transformation's parameters are: a
    Conv, ConvTranspose or Gemm, or a MatMul of samples [N, features] with a constant matrix.

    Args:
        model: fused or not.
        whole_head: go on through fully connected layers, up to the last convolution (exclusive).
    """
    graph = model.graph
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    known = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: _rank(value) for value in (*known.value_info, *known.input, *known.output)}
    found: set[int] = set()
    pending = [name for node in graph.node for name in _coordinates(node)]
    while pending:
        index = producer.get(pending.pop())
        if index is None or index in found:
            continue
        node = graph.node[index]
        layer = node.op_type in LAYERS | _RECURRENT
        if node.op_type == "MatMul":
            # of tokens [N, ..., features] one can't tell a layer from points times a basis
            layer = node.input[1] in constants and ranks.get(node.input[0]) == 2
        dense = node.op_type in ("Gemm", "MatMul")
        if whole_head and layer and not dense:
            continue
        found.add(index)
        if not layer or (whole_head and dense):
            # what a nested sampler samples here is a field of coordinates: it is followed as well
            pending.extend(name for name in reads(node) if name not in constants)
    return frozenset(found)


def _coordinates(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node that say where it samples."""
    if (node.op_type == "GridSample" and node.domain in ("", "ai.onnx")) or is_spatial(node):
        return [node.input[1]]
    return []


def is_spatial(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in OP_TYPES


def _rank(value: onnx.ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None
