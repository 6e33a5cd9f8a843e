"""Finds the nodes that compute sampling coordinates; these are never converted to reduced precision."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from stn_infer.fusion.op import is_spatial, reads_grid
from stn_infer.proto.traversal import names_read, producers, walk_back

#: Operators with weights.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def coordinate_nodes(model: onnx.ModelProto, *, whole_head: bool = False) -> frozenset[int]:
    """Returns the positions, in the main graph, of the nodes that compute sampling grids or theta.

    Traces back from each sampler, up to and including the layer that outputs the transformation's parameters: a Conv,
    ConvTranspose or Gemm, or a MatMul of samples [N, features] with a constant matrix.

    Args:
        model: fused or not.
        whole_head: continue through fully connected layers, up to but excluding the last convolution.
    """
    graph = model.graph
    made = producers(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    known = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: _rank(value) for value in (*known.value_info, *known.input, *known.output)}

    def is_layer(node: onnx.NodeProto) -> bool:
        if node.op_type == "MatMul":
            # With tokens [N, ..., features], a layer cannot be distinguished from points times a basis.
            return node.input[1] in constants and ranks.get(node.input[0]) == 2
        return node.op_type in LAYERS | _RECURRENT

    def is_part(name: str) -> bool:
        dense = name in made and graph.node[made[name]].op_type in ("Gemm", "MatMul")
        return name in made and not (whole_head and not dense and is_layer(graph.node[made[name]]))

    def before(name: str) -> Iterable[str]:
        if not is_part(name) or (is_layer(graph.node[made[name]]) and not whole_head):
            return ()
        # A nested sampler samples a field of coordinates here, so its inputs are traced too.
        return names_read(graph.node[made[name]])

    starts = [name for node in graph.node if reads_grid(node) or is_spatial(node) for name in node.input[1:]]
    return frozenset(made[name] for name in walk_back(starts, before) if is_part(name))


def _rank(value: onnx.ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None
