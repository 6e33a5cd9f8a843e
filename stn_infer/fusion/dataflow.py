"""Data flow in a graph: which tensors vary with the inputs' data, and which nodes a sampling grid depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from stn_infer.fusion.scopes import Scope
from stn_infer.proto.traversal import (
    STANDARD_DOMAINS,
    is_standard,
    names_read,
    nested_nodes,
    producers,
    walk_back,
)

#: Operators that limit values.
CLAMPS = frozenset({"Clip", "Max", "Min", "Relu"})
#: Those that can limit a denominator from below.
LOWER_CLAMPS = CLAMPS - {"Min"}
#: Operators that a clamped denominator may pass before the division.
AFTER_CLAMP = frozenset(
    {"Identity", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"}
    | {"Concat", "Split", "Slice", "Gather", "GatherND", "GatherElements", "Add", "Sub", "Sum", "Mul", "Div"}
)
# Operators that return a shape, not data: constant once the batch size is known.
SHAPE_OPS = frozenset({"Shape", "Size"})
# Operators whose output shape depends on data.
_DATA_SHAPED_OPS = frozenset(
    {"NonZero", "Compress", "Unique", "NonMaxSuppression", "Loop", "Scan", "If", "SequenceMap", "StringSplit"}
    | {"ImageDecoder"}
)
# Inputs from this index on determine (part of) the output's shape; the inputs before it are data.
_SHAPE_INPUTS = {
    **dict.fromkeys(
        ("Range", "ConstantOfShape", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"), 0
    ),
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Slice", "Resize", "Upsample", "Pad", "CenterCropPad", "OneHot"), 1),
    **dict.fromkeys(("TopK", "Squeeze", "Unsqueeze", "Split", "AffineGrid", "Col2Im", "DFT", "STFT"), 1),
    **dict.fromkeys(("SequenceAt", "SequenceInsert", "SequenceErase", "SplitToSequence"), 1),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare"), 1),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"), 1),
    "MaxUnpool": 2,
}
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
# Operators of other domains that are known to be deterministic; the others might be random.
OTHER_CONSTANT_OPS = frozenset({("com.microsoft", "Inverse")})


@dataclass(frozen=True)
class NotLinear(Exception):
    """Why a tensor is not provably linear in the tensors before it.

    Attributes:
        tensor: the output at which the proof ends.
        op_type: the operator that produces it; empty for an input of the graph.
        reason: one clause, for a message.
    """

    tensor: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor!r} ({self.op_type}): {self.reason}"


class WideSpan(NotLinear):
    """A map that is linear, but has too many dimensions to benefit from fusion."""


class TooLarge(WideSpan):
    """A map that is linear, but whose basis would make the file larger, or slower without the plugin library."""


class Product(NotLinear):
    """A product of values that both depend on data, where only linear operators are allowed."""


class GraphView:
    """Producers, constants and data dependence in one scope of a model.

    Attributes:
        scope: the scope.
        nodes: its nodes, in topological order (required by ONNX).
        initializers: name -> tensor, without those that a caller may override.
        producer: tensor -> index of the node that produces it; tensors given to the scope have none.
        varying: the tensors that depend on the data of an input; a shape is not data.
        denominator_clamps: indices of the clamps whose result is a denominator, or becomes a part of one.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.nodes = scope.nodes
        self.initializers = {n: tensor for n, tensor in scope.initializers.items() if n not in scope.defaults}
        self.producer = {name: i for name, i in producers(self.nodes).items() if name not in scope.given}
        self.varying = {value.name for value in scope.model.graph.input} | scope.defaults | scope.given
        functions = {(f.domain, f.name): f for f in scope.model.functions if f.domain not in STANDARD_DOMAINS}
        _trace(self.nodes, self.varying, functions)
        self.denominator_clamps = self._find_denominator_clamps()

    def node_of(self, tensor: str) -> onnx.NodeProto | None:
        """The node that produces a tensor. None for initializers and for tensors given to the scope."""
        index = self.producer.get(tensor)
        return None if index is None else self.nodes[index]

    def maker(self, tensor: str) -> str:
        """The operator that produces a tensor, with its domain unless it is standard; empty if no node produces it."""
        node = self.node_of(tensor)
        return "" if node is None else _operator(node)

    def varying_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of ``node`` that vary with data, without duplicates."""
        return [name for name in dict.fromkeys(node.input) if name in self.varying]

    def region(self, grid: str, op_types: frozenset[str]) -> list[int]:
        """Indices, ascending, of the nodes through which ``grid`` can be traced back over ``op_types`` only."""

        def followed(name: str) -> bool:
            node = self.node_of(name)
            if node is None or not is_standard(node):
                return False
            return node.op_type in op_types or self.producer[name] in self.denominator_clamps

        def before(name: str) -> list[str]:
            return self.varying_inputs(self.nodes[self.producer[name]]) if followed(name) else []

        return sorted({self.producer[name] for name in walk_back([grid], before) if followed(name)})

    def _find_denominator_clamps(self) -> frozenset[int]:
        """Follows each clamp from below to the divisions by it."""
        dividing: set[str] = set()  # tensors that a division divides by, perhaps after other operators
        found = set()
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            if not is_standard(node):
                continue
            if node.op_type in LOWER_CLAMPS and not dividing.isdisjoint(node.output):
                found.add(index)
            if node.op_type in AFTER_CLAMP and not dividing.isdisjoint(node.output):
                dividing.update(name for name in node.input if name in self.varying)
            if node.op_type in ("Div", "Reciprocal"):
                dividing.update(node.input[-1:])
        return frozenset(found)

    def constants_behind(self, region: list[int]) -> tuple[set[str], set[str]]:
        """The non-varying tensors that ``region``'s nodes depend on, and the tensors whose shapes these read."""

        def before(name: str) -> Iterable[str]:
            node = self.node_of(name)
            return [] if node is None or is_standard(node, *SHAPE_OPS) else node.input

        inputs = (name for index in region for name in self.nodes[index].input if name not in self.varying)
        constants = set(walk_back(inputs, before))
        makers = [node for name in constants if (node := self.node_of(name)) is not None]
        return constants, {node.input[0] for node in makers if is_standard(node, *SHAPE_OPS)}


def _operator(node: onnx.NodeProto) -> str:
    plain = node.domain in STANDARD_DOMAINS or (node.domain, node.op_type) in OTHER_CONSTANT_OPS
    return node.op_type if plain else f"{node.domain}::{node.op_type}"


def _trace(
    nodes: Iterable[onnx.NodeProto], varying: set[str], functions: Mapping[tuple[str, str], onnx.FunctionProto]
) -> set[str]:
    """Adds to ``varying``, in place, every tensor that depends on its tensors' data.

    Returns the tensors whose shape depends on data.
    """
    data_shaped: set[str] = set()
    for node in nodes:
        outputs = [name for name in node.output if name]
        sources = tuple(names_read(node))
        if is_standard(node, *SHAPE_OPS):
            if node.input[0] in data_shaped:
                varying.update(outputs)
            continue
        varies = _is_random(node) or not varying.isdisjoint(sources)
        if varies:
            varying.update(outputs)
        shaped_by_data = varies and node.op_type in _DATA_SHAPED_OPS
        if node.op_type in _SHAPE_INPUTS:
            shaped_by_data = not varying.isdisjoint(node.input[_SHAPE_INPUTS[node.op_type] :])
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            given = zip(function.input, node.input, strict=False)
            shaped_by_data = bool(_trace(function.node, {inner for inner, name in given if name in varying}, functions))
        if shaped_by_data or not data_shaped.isdisjoint(sources):
            data_shaped.update(outputs)
    return data_shaped


def _is_random(node: onnx.NodeProto) -> bool:
    """Whether a node, or one in its bodies, may compute different values from the same inputs."""
    return any(map(_draws, nested_nodes([node])))


def _draws(node: onnx.NodeProto) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return (node.domain, node.op_type) not in OTHER_CONSTANT_OPS
    # Dropout's third input enables training mode
    return node.op_type in _RANDOM_OPS or (node.op_type == "Dropout" and any(node.input[2:]))
