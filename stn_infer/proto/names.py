"""Unique names for new tensors and nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from stn_infer.proto.traversal import every_graph, nested_nodes


class Names:
    """Generates names that are unused in a graph or a function and its subgraphs."""

    def __init__(self, holder: onnx.GraphProto | onnx.FunctionProto) -> None:
        self._taken = {name for node in nested_nodes(holder.node) for name in (*node.input, *node.output)}
        if isinstance(holder, onnx.FunctionProto):
            self.take((*holder.input, *holder.output))
            return
        for graph in every_graph(holder):
            self.take(value.name for value in (*graph.input, *graph.output, *graph.initializer))

    def take(self, names: Iterable[str]) -> None:
        """Marks ``names`` as used."""
        self._taken.update(names)

    def fresh(self, name: str) -> str:
        """Returns ``name``, or a variant if it is used, and marks the result as used."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name
