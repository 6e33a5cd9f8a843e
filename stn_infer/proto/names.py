"""Names for new tensors and nodes that clash with none of a graph's."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from stn_infer.proto.traversal import every_graph, nested_nodes


class Names:
    """Names that are free in a graph or a function, and in the subgraphs within."""

    def __init__(self, holder: onnx.GraphProto | onnx.FunctionProto) -> None:
        self._taken = {name for node in nested_nodes(holder.node) for name in (*node.input, *node.output)}
        if isinstance(holder, onnx.FunctionProto):
            self.take((*holder.input, *holder.output))
            return
        for graph in every_graph(holder):
            self.take(value.name for value in (*graph.input, *graph.output, *graph.initializer))

    def take(self, names: Iterable[str]) -> None:
        """Count ``names`` among those that are taken."""
        self._taken.update(names)

    def fresh(self, name: str) -> str:
        """``name``, or one like it; it is taken from now on."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name
