"""Evaluate parts of a graph in float64, node by node, with onnx's reference operators.

A tensor that is a quotient is carried as a pair (numerator, denominator), so that a projective grid's two linear
forms can be measured apart; everything else is one array.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from stn_infer.errors import one_line
from stn_infer.graph.mesh import canonical_basis
from stn_infer.graph.observe import BATCHES, Observation
from stn_infer.graph.region import GraphView, Obstacle, attributes_of

Array = NDArray[Any]

# Input 0 holds the values, input 1 a shape.
SHAPED_BY_SECOND = frozenset({"Expand", "Reshape", "Tile"})
# What only picks or arranges the elements of a shape.
_PICKS = frozenset({"Shape", "Gather", "Slice", "Squeeze", "Unsqueeze", "Cast", "Concat", "Identity", "Reshape"})
# What makes each element from single elements, so that a constant that is repeated over the batch stays repeated.
_EACH_ELEMENT = _PICKS | frozenset(
    {"Expand", "Tile", "Transpose", "Flatten", "Split", "GatherElements", "ScatterElements", "Where", "Neg", "Sqrt"}
    | {"Add", "Sub", "Mul", "Div", "Pow", "Exp", "Log", "Abs", "Reciprocal", "Sum", "Mean"}
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Quotient:
    """``numerator / denominator``, of one broadcast shape."""

    numerator: Array
    denominator: Array


Value = Array | Quotient


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


class Evaluator:
    """Float64 values of a graph's constants and of what follows from values given at a cut."""

    def __init__(self, view: GraphView, observed: Observation, opset: int) -> None:
        self._view, self._observed, self._opset = view, observed, opset
        self._constants: dict[tuple[str, int], Array] = {}
        self._sized: dict[str, bool] = {}

    def depends_on_batch_size(self, name: str) -> bool:
        """Whether the values (not the shape alone) of a tensor that varies with no data follow from the batch size.

        The shape arguments of what expands or reshapes don't count: the values stay the same, only more often. Picks
        from a shape are linear in the batch, so that two sizes decide; anything else computed from it is presumed to
        depend on it.
        """
        stack = [name]
        while stack:
            top = stack[-1]
            if top in self._sized:
                stack.pop()
                continue
            needs = [need for need in self._value_inputs(top) if need not in self._sized]
            if needs:
                stack.extend(needs)
                continue
            self._sized[top] = self._is_sized(top)
        return self._sized[name]

    def _value_inputs(self, name: str) -> list[str]:
        needs = self._needs(name)
        if name in self._view.producer and self._view.nodes[self._view.producer[name]].op_type in SHAPED_BY_SECOND:
            return needs[:1]
        if name in self._view.producer and self._view.nodes[self._view.producer[name]].op_type == "ConstantOfShape":
            return []
        return needs

    def _is_sized(self, name: str) -> bool:
        if name not in self._view.producer:
            return False
        node = self._view.nodes[self._view.producer[name]]
        needs = self._value_inputs(name)
        sized = node.op_type in ("Shape", "Size") or any(self._sized[need] for need in needs)
        # a sum along the batch of a repeated constant counts the samples
        sized = sized or (node.op_type not in _EACH_ELEMENT and any(map(self._carries_batch, needs)))
        if not sized or node.op_type not in _PICKS:
            return sized
        first, second = (self.constant(name, batch) for batch in BATCHES)
        return not np.array_equal(first, second)

    def constant(self, name: str, batch: int) -> Array:
        """The value of a tensor that varies with no data, at a batch size; floats in float64.

        Raises:
            Obstacle: an operator behind it can't be evaluated.
        """
        stack = [name]
        while stack:
            top = stack[-1]
            if (top, batch) in self._constants:
                stack.pop()
                continue
            missing = [need for need in self._needs(top) if (need, batch) not in self._constants]
            if missing:
                stack.extend(missing)
                continue
            self._store(top, batch)
        return self._constants[name, batch]

    def _carries_batch(self, name: str) -> bool:
        return any(axis.batch for axis in self._observed.shapes.get(name, ()))

    def _needs(self, name: str) -> list[str]:
        if name in self._view.initialisers or name not in self._view.producer:
            return []
        node = self._view.nodes[self._view.producer[name]]
        return [] if node.op_type in ("Shape", "Size") else [need for need in node.input if need]

    def _store(self, name: str, batch: int) -> None:
        if name in self._view.initialisers:
            self._constants[name, batch] = _widened(numpy_helper.to_array(self._view.initialisers[name]))
            return
        if name not in self._view.producer:
            raise Obstacle(name, "", "it is no constant")
        node = self._view.nodes[self._view.producer[name]]
        if node.op_type in ("Shape", "Size"):
            self._constants[name, batch] = self._shape(node, batch)
            return
        inputs = [self._constants[need, batch] if need else None for need in node.input]
        try:
            outputs = self.apply(node, inputs)
        except Obstacle:
            if name not in self._observed.constants:
                raise
            self._constants[name, batch] = _widened(self._observed.constants[name])
            return
        self._constants.update(((output, batch), value) for output, value in zip(node.output, outputs, strict=False))

    def _shape(self, node: onnx.NodeProto, batch: int) -> Array:
        name = node.input[0]
        template = self._observed.shapes.get(name, self._observed.open_shapes.get(name))
        if template is None:
            raise Obstacle(node.output[0], node.op_type, f"the shape of {name!r} follows no simple rule")
        attributes = attributes_of(node)
        asked = template[attributes.get("start", 0) : attributes.get("end", len(template))]
        sizes = np.array([-1 if axis is None else axis.at(batch) for axis in asked], np.int64)
        if -1 in sizes:
            raise Obstacle(node.output[0], node.op_type, "it follows the size of the images, which is open")
        return np.array(sizes.prod(), np.int64) if node.op_type == "Size" else sizes

    def apply(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """One node on float64 inputs; casts to a float type keep float64.

        Raises:
            Obstacle: onnx's reference implementation can't do it.
        """
        from onnx.reference import ReferenceEvaluator

        if node.op_type == "Cast" and attributes_of(node)["to"] in _FLOATS and inputs[0] is not None:
            return [inputs[0].astype(np.float64)]
        if node.op_type == "Dropout" and inputs[0] is not None:
            return [inputs[0]]
        if node.op_type == "AffineGrid" and inputs[0] is not None and inputs[1] is not None:
            return [_affine_grid(inputs[0], inputs[1], bool(attributes_of(node).get("align_corners", 0)))]
        feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
        wanted = onnx.NodeProto()
        wanted.CopyFrom(node)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                evaluator = ReferenceEvaluator(wanted, opsets={"": self._opset, node.domain: self._opset})
                results = evaluator.run(None, feeds)
        except Exception as error:  # the reference operators raise anything
            raise Obstacle(node.output[0], node.op_type, f"it cannot be evaluated: {one_line(error)}") from error
        return [_widened(np.asarray(result)) for result in results]

    def forward(
        self, sources: Mapping[str, Array], nodes: Sequence[int], quotients: frozenset[str], target: str, batch: int
    ) -> Value:
        """The value of ``target``, from values given for the cut's tensors, through ``nodes`` (ascending).

        Args:
            sources: name -> value with ``batch`` samples.
            nodes: indices of the nodes between the cut and ``target``.
            quotients: the tensors that the proof found to be quotients or reciprocals.
            target: the tensor wanted.
            batch: number of samples.

        Raises:
            Obstacle: an operator can't be evaluated.
        """
        values: dict[str, Value] = dict(sources)
        for index in nodes:
            node = self._view.nodes[index]
            inputs: list[Value | None] = [
                None if not name else values[name] if name in values else self.constant(name, batch)
                for name in node.input
            ]
            if quotients.isdisjoint((*node.input, *node.output)):
                outputs: Sequence[Value] = self.apply(node, cast("list[Array | None]", inputs))
            else:
                outputs = self._quotient(node, inputs)
            for name, value in zip(node.output, outputs, strict=False):
                values.setdefault(name, value)
        return values[target]

    def _quotient(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Value]:
        """One node of which an input or the output is a quotient."""
        pairs = [value if isinstance(value, Quotient) else _over_one(value) for value in inputs]
        first = pairs[0]
        if node.op_type == "Reciprocal":
            return [Quotient(np.ones_like(first.numerator), first.numerator)]
        if node.op_type == "Div":
            second = pairs[1]
            if isinstance(inputs[1], Quotient) or not isinstance(inputs[0], Quotient):
                return [_broadcast(first.numerator, second.numerator)]
            return [_broadcast(first.numerator / second.numerator, first.denominator)]
        if node.op_type == "Mul":
            second = pairs[1]
            return [_broadcast(first.numerator * second.numerator, first.denominator * second.denominator)]
        if node.op_type in ("Add", "Sub", "Sum", "Mean"):
            varying = next(index for index, value in enumerate(inputs) if isinstance(value, Quotient))
            bottom = pairs[varying].denominator
            # one term is a quotient, the others are constants: a/b + c = (a + c b)/b
            terms = [pair.numerator if i == varying else pair.numerator * bottom for i, pair in enumerate(pairs)]
            return [_broadcast(self.apply(node, terms)[0], bottom)]
        if node.op_type == "Neg":
            return [Quotient(-first.numerator, first.denominator)]
        # layout alone: what it does to the numerators it does to the denominators
        data = _data_inputs(node)
        tops = [pair.numerator if index in data else _plain(inputs[index]) for index, pair in enumerate(pairs)]
        bottoms = [pair.denominator if index in data else _plain(inputs[index]) for index, pair in enumerate(pairs)]
        below = self.apply(node, bottoms)
        return [Quotient(top, bottom) for top, bottom in zip(self.apply(node, tops), below, strict=True)]


def _affine_grid(theta: Array, size: Array, corners: bool) -> Array:
    """ONNX's AffineGrid in float64; the reference operator computes in float32."""
    output_size = [int(length) for length in size[2:]]
    points = theta @ canonical_basis(output_size, corners)
    return np.asarray(points.transpose(0, 2, 1).reshape(len(theta), *output_size, theta.shape[1]))


def _over_one(value: Array | None) -> Quotient:
    array = np.zeros(0) if value is None else value
    return Quotient(array, np.ones(array.shape))


def _plain(value: Value | None) -> Array | None:
    return value.numerator if isinstance(value, Quotient) else value


def _broadcast(numerator: Array, denominator: Array) -> Quotient:
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return Quotient(np.broadcast_to(numerator, shape), np.broadcast_to(denominator, shape))


def _data_inputs(node: onnx.NodeProto) -> frozenset[int]:
    """Which inputs of a layout operator hold data, the others being shapes or indices."""
    if node.op_type == "Concat":
        return frozenset(range(len(node.input)))
    if node.op_type == "Where":
        return frozenset((1, 2))
    if node.op_type == "ScatterElements":
        return frozenset((0, 2))
    return frozenset((0,))
