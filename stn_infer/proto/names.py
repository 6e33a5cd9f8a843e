"""Names for new tensors and nodes that clash with none of a model's."""

from __future__ import annotations

import onnx

from stn_infer.proto.traversal import all_nodes, bodies


class Names:
    """Names that are free in a whole model, bodies included."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graphs = [model.graph, *(graph for node in all_nodes(model.graph.node) for _, graph in bodies(node))]
        self._taken = {name for graph in graphs for node in graph.node for name in (*node.input, *node.output)}
        for graph in graphs:
            self._taken.update(tensor.name for tensor in graph.initializer)
            self._taken.update(value.name for value in (*graph.input, *graph.output))
        self.transformers = 0

    def fresh(self, name: str) -> str:
        """``name``, or one like it."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def prefix(self) -> str:
        """What the names of one transformer's tensors begin with."""
        self.transformers += 1
        return f"stn_{self.transformers - 1}"
