"""A graph seen as data flow: which tensors vary with the inputs' data, and where a sampling grid can be cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from stn_infer.graph.scopes import STANDARD_DOMAINS, Scope, all_nodes, bodies, names_read

# Their outputs tell a shape, not data: constant once the batch size is known.
SHAPE_OPS = frozenset({"Shape", "Size"})
# The shape of what they make is data itself.
_DATA_SHAPED_OPS = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression", "Loop", "Scan", "If"})
# Input 0 is data; the others give the shape of the output, or a part of it.
_RESHAPING_OPS = frozenset(
    {"Reshape", "Expand", "Tile", "ConstantOfShape", "Slice", "Range", "Resize", "Pad", "OneHot", "TopK", "Squeeze"}
)
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
# Operators of other domains that are known to compute the same from the same; the rest might be random.
_OTHER_CONSTANT_OPS = frozenset({("com.microsoft", "Inverse")})


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


class GraphView:
    """Producers, constants and data dependence in one scope of a model.

    Attributes:
        scope: the scope.
        nodes: its nodes, in topological order (ONNX demands it).
        initialisers: name -> tensor, but for those that a caller may override.
        producer: tensor -> index of the node that makes it; what the scope is given has none.
        varying: the tensors that depend on the data of an input; a shape is no data.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.nodes = scope.nodes
        self.initialisers = {n: tensor for n, tensor in scope.initialisers.items() if n not in scope.defaults}
        self.producer = {
            name: index
            for index, node in enumerate(self.nodes)
            for name in node.output
            if name and name not in scope.given
        }
        self.varying = {value.name for value in scope.model.graph.input} | scope.defaults | scope.given
        data_shaped: set[str] = set()
        for node in self.nodes:
            outputs = [name for name in node.output if name]
            sources = tuple(names_read(node))
            if node.op_type in SHAPE_OPS:
                if node.input[0] in data_shaped:
                    self.varying.update(outputs)
                continue
            varies = _is_random(node) or not self.varying.isdisjoint(sources)
            if varies:
                self.varying.update(outputs)
            shape_sources = node.input[0 if node.op_type in ("Range", "ConstantOfShape") else 1 :]
            reshaped = node.op_type in _RESHAPING_OPS and any(name in self.varying for name in shape_sources)
            if reshaped or (varies and node.op_type in _DATA_SHAPED_OPS) or not data_shaped.isdisjoint(sources):
                data_shaped.update(outputs)

    def maker(self, tensor: str) -> str:
        """The operator that makes a tensor; empty for inputs and initialisers."""
        index = self.producer.get(tensor)
        return "" if index is None else self.nodes[index].op_type

    def varying_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of ``node`` that vary with data, without repeats."""
        return [name for name in dict.fromkeys(node.input) if name in self.varying]

    def region(self, grid: str, op_types: frozenset[str]) -> list[int]:
        """Indices of the nodes through which ``grid`` can be followed back over ``op_types`` alone, ascending."""
        found: set[int] = set()
        stack = [grid]
        while stack:
            index = self.producer.get(stack.pop())
            if index is None or index in found or not follows(self.nodes[index], op_types):
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
            if node.op_type in SHAPE_OPS:
                shaped.add(node.input[0])
            else:
                stack.extend(node.input)
        return constants, shaped


def follows(node: onnx.NodeProto, op_types: frozenset[str]) -> bool:
    """Whether a node is one of ONNX's own ``op_types``."""
    return node.op_type in op_types and node.domain in STANDARD_DOMAINS


def _is_random(node: onnx.NodeProto) -> bool:
    """Whether a node may compute something else each time."""
    if node.domain not in STANDARD_DOMAINS:
        return (node.domain, node.op_type) not in _OTHER_CONSTANT_OPS
    if node.op_type in _RANDOM_OPS:
        return True
    return any(_is_random(inner) for _, graph in bodies(node) for inner in all_nodes(graph.node))
