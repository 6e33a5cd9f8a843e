"""Counts the axes of reductions from the front.

onnxruntime 1.31 gives the result of a Reduce* or Arg* operator a wrong shape if the tensor is empty and the axis is
negative: ReduceMax over axis -1 of [0, 3] is [0, 3]. A detector that finds no box would fail there.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from stn_infer.proto.names import Names
from stn_infer.proto.traversal import every_graph


def count_from_the_front(model: onnx.ModelProto) -> None:
    """Replaces negative axes of reductions in place, where the model states the rank of their input."""
    names = Names(model.graph)
    made: dict[tuple[int, ...], str] = {}
    for graph in every_graph(model.graph):
        values = (*graph.value_info, *graph.input, *graph.output)
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            is_reduction = node.op_type.startswith("Reduce") or node.op_type in ("ArgMax", "ArgMin")
            if node.domain or not is_reduction or node.input[0] not in ranks:
                continue
            rank = ranks[node.input[0]]
            for attribute in node.attribute:
                if attribute.name == "axis" and attribute.i < 0:
                    attribute.i += rank
                elif attribute.name == "axes":
                    attribute.ints[:] = [axis % rank for axis in attribute.ints]
            tensor = constants.get(node.input[1]) if len(node.input) > 1 else None
            if tensor is None:
                continue
            axes = numpy_helper.to_array(tensor).reshape(-1).tolist()
            if min(axes, default=0) >= 0:
                continue
            wanted = tuple(axis % rank for axis in axes)
            if wanted not in made:
                made[wanted] = names.fresh("axes")
                model.graph.initializer.append(numpy_helper.from_array(np.array(wanted, np.int64), made[wanted]))
            node.input[1] = made[wanted]
