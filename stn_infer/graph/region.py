"""A graph seen as data flow: which tensors vary with the inputs' data, and where a sampling grid can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

# Their outputs tell a shape, not data: constant once the batch size is known.
_SHAPE_OPS = frozenset({"Shape", "Size"})
# The shape of what they make is data itself.
_DATA_SHAPED_OPS = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression", "Loop", "Scan", "If"})
# Input 0 is data; the others give the shape of the output, or a part of it.
_RESHAPING_OPS = frozenset(
    {"Reshape", "Expand", "Tile", "ConstantOfShape", "Slice", "Range", "Resize", "Pad", "OneHot", "TopK", "Squeeze"}
)
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


@dataclass(frozen=True)
class Obstacle(Exception):
    """Why a tensor is not provably linear in what comes before it.

    Attributes:
        tensor: the output at which the proof ends.
        op_type: the operator that makes it; empty for an input of the graph.
        reason: one clause, for a message.
    """

    tensor: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor!r} ({self.op_type}): {self.reason}"


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; strings decoded."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node's subgraphs take from the graph around them."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            for inner in graph.node:
                yield from (name for name in (*inner.input, *_captured(inner)) if name not in own)
                own.update(inner.output)


class GraphView:
    """Producers, constants and data dependence of a model's main graph.

    Attributes:
        nodes: the nodes, in topological order (ONNX demands it).
        initialisers: name -> tensor.
        producer: tensor -> index of the node that makes it.
        varying: the tensors that depend on the data of an input; a shape is no data.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        inputs = {value.name for value in graph.input}
        # an initialiser that is an input too is a default, which a caller may override
        self.initialisers = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.varying = inputs
        data_shaped: set[str] = set()
        for node in self.nodes:
            outputs = [name for name in node.output if name]
            sources = (*node.input, *_captured(node))
            if node.op_type in _SHAPE_OPS:
                if node.input[0] in data_shaped:
                    self.varying.update(outputs)
                continue
            varies = node.op_type in _RANDOM_OPS or any(name in self.varying for name in sources)
            if varies:
                self.varying.update(outputs)
            shape_sources = node.input[0 if node.op_type in ("Range", "ConstantOfShape") else 1 :]
            reshaped = node.op_type in _RESHAPING_OPS and any(name in self.varying for name in shape_sources)
            if reshaped or (varies and node.op_type in _DATA_SHAPED_OPS) or not data_shaped.isdisjoint(sources):
                data_shaped.update(outputs)

    def varying_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of ``node`` that vary with data, without repeats."""
        return [name for name in dict.fromkeys(node.input) if name in self.varying]

    def region(self, grid: str, op_types: frozenset[str]) -> list[int]:
        """Indices of the nodes through which ``grid`` can be followed back over ``op_types`` alone, ascending."""
        found: set[int] = set()
        stack = [grid]
        while stack:
            index = self.producer.get(stack.pop())
            if index is None or index in found or self.nodes[index].op_type not in op_types:
                continue
            found.add(index)
            stack.extend(self.varying_inputs(self.nodes[index]))
        return sorted(found)

    def constants_behind(self, region: list[int]) -> tuple[set[str], set[str]]:
        """The non-varying tensors that ``region``'s nodes rest on, and the tensors whose shape these ask for."""
        constants: set[str] = set()
        shaped: set[str] = set()
        stack = [name for index in region for name in self.nodes[index].input if name not in self.varying]
        while stack:
            name = stack.pop()
            if not name or name in constants:
                continue
            constants.add(name)
            if name not in self.producer:
                continue
            node = self.nodes[self.producer[name]]
            if node.op_type in _SHAPE_OPS:
                shaped.add(node.input[0])
            else:
                stack.extend(node.input)
        return constants, shaped
