"""Evaluates parts of a graph in float64, node by node, with onnx's reference operators.

A tensor that is a quotient is represented as a pair (numerator, denominator), so that the two linear forms of a
projective grid can be measured separately. Every other tensor is one array.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from stn_infer.arrays import Array
from stn_infer.errors import one_line
from stn_infer.fusion.basis import NO_CLAMP
from stn_infer.fusion.dataflow import LOWER_CLAMPS, SHAPE_OPS, GraphView, NotLinear
from stn_infer.fusion.operators import OPERATORS
from stn_infer.fusion.shapes import Observation, Sizes
from stn_infer.proto.edit import copy_of
from stn_infer.proto.retype import FLOAT_TYPES
from stn_infer.proto.traversal import attributes_of, walk_back

# Inputs that are shapes (or scales of a shape), not values.
SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Expand", "Reshape", "Tile"), (1,)),
    "Resize": (2, 3),
}
# Operators that only select or rearrange the elements of a shape.
_PICKS = frozenset({"Shape", "Gather", "Slice", "Squeeze", "Unsqueeze", "Cast", "Concat", "Identity", "Reshape"})
# Operators that compute each output element from single elements: a constant repeated over the batch stays repeated.
_EACH_ELEMENT = _PICKS | frozenset(
    {"Expand", "Tile", "Transpose", "Flatten", "Split", "GatherElements", "ScatterElements", "Where", "Neg", "Sqrt"}
    | {"Add", "Sub", "Mul", "Div", "Pow", "Exp", "Log", "Abs", "Reciprocal", "Sum", "Mean", "Pad", "CastLike"}
    | {"Min", "Max", "Clip", "Resize", "GridSample", "DepthToSpace", "SpaceToDepth", "GatherND", "Compress"}
)
# Operators from which exporters compute the index of every sample; two batch sizes determine the result at all others.
_INDEX_OPS = _PICKS | frozenset(
    {"Size", "Range", "Expand", "Tile", "Transpose", "ConstantOfShape", "Constant", "Where", "Equal", "Mul", "Add"}
)
# Types that a size can be cast to without changing its value.
_NUMBERS = FLOAT_TYPES | {TensorProto.INT32, TensorProto.INT64}
# Batch sizes at which a shape must continue its linear growth.
_BATCHES = (1, 4, 5, 8, 16, 17, 33, 64, 100, 128)
# A constant larger than this is recomputed for each use instead of cached.
_KEPT_BYTES = 2**22


@dataclass(frozen=True)
class Quotient:
    """``numerator / denominator``, broadcast to one shape.

    If the denominator is clamped: ``numerator / max(denominator, minimum) + offset``, with minimum and offset constant.
    """

    numerator: Array
    denominator: Array
    minimum: Array | None = None
    offset: Array | None = None

    @property
    def parts(self) -> tuple[Array, ...]:
        """The arrays that it consists of: two, or four."""
        if self.minimum is None or self.offset is None:
            return self.numerator, self.denominator
        return self.numerator, self.denominator, self.minimum, self.offset


@dataclass(frozen=True)
class Clamped:
    """``max(value, minimum)``, with minimum constant, of one shape."""

    value: Array
    minimum: Array


Value = Array | Quotient | Clamped


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


class Evaluator:
    """Computes float64 values of a graph's constants, and of the tensors that follow from values given at a cut."""

    def __init__(self, view: GraphView, observed: Observation, opset: int) -> None:
        self._view, self._observed, self._opset = view, observed, opset
        self._constants: dict[tuple[str, Sizes], Array] = {}
        self._sized: dict[str, bool] = {}
        self._linear: set[str] = set()  # tensors that only select from shapes, so they are linear in the dynamic sizes
        self._references: dict[int, Any] = {}

    @property
    def settings(self) -> tuple[Sizes, ...]:
        """The sizes at which constants differ if they depend on the file's dynamic sizes."""
        return self._observed.settings

    def depends_on_open_sizes(self, name: str) -> bool:
        """Whether the values (not only the shape) of a constant tensor depend on a dynamic size.

        Shape arguments of Expand, Reshape and Tile don't count as long as they grow with the batch: the same values
        are only repeated more often. Selections from a shape are linear in the batch, so two sizes decide. Anything
        else computed from a shape is assumed to depend on it.
        """
        stack = [name]
        while stack:
            top = stack[-1]
            if top in self._sized:
                stack.pop()
                continue
            needs = [need for need in self._needs(top) if need not in self._sized]
            if needs:
                stack.extend(needs)
                continue
            self._sized[top] = self._is_sized(top)
        return self._sized[name]

    def _value_inputs(self, name: str) -> list[str]:
        node, maker = self._view.node_of(name), self._view.maker(name)
        if node is not None and maker in SHAPE_INPUTS:
            others = [need for index, need in enumerate(node.input) if index not in SHAPE_INPUTS[maker]]
            return [need for need in others if need]
        needs = self._needs(name)
        if maker == "AffineGrid" and not self._varies(name):
            return needs[:1]
        return [] if maker == "ConstantOfShape" else needs

    def _is_sized(self, name: str) -> bool:
        node = self._view.node_of(name)
        if node is None:
            return False
        needs = self._value_inputs(name)
        if not all(self.grows_with_batch(need) for need in self._needs(name) if need not in needs):
            return True
        sized = node.op_type in SHAPE_OPS or any(self._sized[need] for need in needs)
        # A sum of a repeated constant along the batch counts the samples.
        sized = sized or (node.op_type not in _EACH_ELEMENT and any(map(self._carries_open_size, needs)))
        if not sized or not self._only_picks(node):
            return sized
        self._linear.add(name)
        first, *others = (self.constant(name, sizes) for sizes in self.settings)
        return any(not np.array_equal(first, other) for other in others)

    def grows_with_batch(self, name: str) -> bool:
        """Whether a shape is linear in the batch: by its construction, or else at several batch sizes.

        Exporters compare shapes with -1, multiply and add. No structural rule distinguishes that from a threshold.
        """
        batches = [sizes for sizes in self.settings if not sizes.variant]
        if not self.depends_on_open_sizes(name) or name in self._linear or len(batches) < 2:
            return True
        first, second = (self.constant(name, sizes) for sizes in batches)
        if first.shape != second.shape or first.dtype.kind not in "iuf":
            return False
        start, step = batches[0].batch, second - first
        return all(
            np.array_equal(self.constant(name, Sizes(batch)), first + (batch - start) * step) for batch in _BATCHES
        )

    def _only_picks(self, node: onnx.NodeProto) -> bool:
        """Whether a node selects from shapes at positions that are the same for every size."""
        if node.op_type not in _PICKS or (node.op_type == "Cast" and attributes_of(node)["to"] not in _NUMBERS):
            return False
        picked = len(node.input) if node.op_type == "Concat" else 1
        if node.op_type in SHAPE_OPS:
            return True
        values_are = all(name in self._linear or not self._sized[name] for name in node.input[:picked] if name)
        return values_are and not any(self._sized.get(name, False) for name in node.input[picked:])

    def sample_index(self, name: str) -> Array | None:
        """The value, at the first setting, of an index [N, ..., R] whose first component is each sample's number.

        None if the tensor is not such an index, or if its values at other sizes may follow another rule.
        """
        for top in walk_back([name], self._needs):
            node = self._view.node_of(top)
            if node is None:
                continue
            if node.op_type not in _INDEX_OPS:
                return None
            # Exporters compare a shape with -1, which it never equals; any other number might be a size.
            if node.op_type == "Equal" and not any(
                need in self._view.producer and np.all(self.constant(need, self.settings[0]) < 0) for need in node.input
            ):
                return None
        values = [self.constant(name, sizes) for sizes in self.settings]
        for value, sizes in zip(values, self.settings, strict=True):
            if value.ndim < 2 or len(value) != sizes.batch or value.shape[1:] != values[0].shape[1:]:
                return None
            number = np.arange(sizes.batch).reshape(-1, *[1] * (value.ndim - 2))
            if np.any(value[..., 0] != number) or np.any(value[..., 1:] != values[0][:1, ..., 1:]):
                return None
        return values[0]

    def constant(self, name: str, sizes: Sizes) -> Array:
        """Returns the value of a constant tensor at given sizes; floats in float64.

        Raises:
            NotLinear: an operator that the tensor is computed with can't be evaluated.
        """
        local: dict[str, Array] = {}
        stack = [name]
        while stack:
            top = stack[-1]
            if top in local or (top, sizes) in self._constants:
                stack.pop()
                continue
            missing = [need for need in self._needs(top) if need not in local and (need, sizes) not in self._constants]
            if missing:
                stack.extend(missing)
                continue
            self._store(top, sizes, local)
        return local[name] if name in local else self._constants[name, sizes]

    def _varies(self, name: str) -> bool:
        return any(axis.varied is not None for axis in self._observed.shapes.get(name, ()))

    def _carries_open_size(self, name: str) -> bool:
        return any(axis.batch or axis.varied is not None for axis in self._observed.shapes.get(name, ()))

    def _needs(self, name: str) -> list[str]:
        node = self._view.node_of(name)
        return [] if node is None or node.op_type in SHAPE_OPS else [need for need in node.input if need]

    def _store(self, name: str, sizes: Sizes, local: dict[str, Array]) -> None:
        for output, value in self._outputs(name, sizes, local):
            # Views of few numbers take little memory, whatever their shape.
            if _held_bytes(value) <= _KEPT_BYTES:
                self._constants[output, sizes] = value
            else:
                local[output] = value

    def _outputs(self, name: str, sizes: Sizes, local: dict[str, Array]) -> list[tuple[str, Array]]:
        if name in self._view.initializers:
            tensor = self._view.initializers[name]
            if tensor.data_location == TensorProto.EXTERNAL:
                raise NotLinear(name, "", "its data are in an external file that was not read")
            return [(name, _widened(numpy_helper.to_array(tensor)))]
        node = self._view.node_of(name)
        if node is None:
            raise NotLinear(name, "", "it is not a constant")
        if node.op_type in SHAPE_OPS:
            return [(name, self._shape(node, sizes))]
        inputs = [
            None if not need else local[need] if need in local else self._constants[need, sizes] for need in node.input
        ]
        try:
            outputs = self.apply(node, inputs)
        except NotLinear:
            if name not in self._observed.constants:
                raise
            return [(name, _widened(self._observed.constants[name]))]
        return [(output, value) for output, value in zip(node.output, outputs, strict=False) if output]

    def _shape(self, node: onnx.NodeProto, sizes: Sizes) -> Array:
        shape = self._observed.shapes.get(node.input[0])
        if shape is None:
            reason = f"the shape of {node.input[0]!r} does not follow a simple rule"
            raise NotLinear(node.output[0], node.op_type, reason)
        lengths = np.array([axis.at(sizes) for axis in shape], np.int64)
        if node.op_type == "Size":
            return np.array(lengths.prod(), np.int64)
        attributes = attributes_of(node)
        return lengths[attributes.get("start", 0) : attributes.get("end", len(lengths))]

    def apply(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """Evaluates one node on float64 inputs; casts to a float type keep float64.

        Raises:
            NotLinear: neither this package's operators nor onnx's reference implementation can evaluate it.
        """
        if node.op_type == "Cast" and attributes_of(node)["to"] in FLOAT_TYPES and inputs[0] is not None:
            return [inputs[0].astype(np.float64)]
        operator = OPERATORS.get(node.op_type)
        if operator is not None:
            try:
                return operator({"num_outputs": len(node.output), **attributes_of(node)}, inputs)
            except (ValueError, TypeError, IndexError, KeyError, np.linalg.LinAlgError) as error:
                raise NotLinear(node.output[0], node.op_type, f"it cannot be evaluated: {one_line(error)}") from error
        feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = self._reference(node).run(None, feeds)
        except Exception as error:  # the reference operators raise exceptions of any type
            raise NotLinear(node.output[0], node.op_type, f"it cannot be evaluated: {one_line(error)}") from error
        return [_widened(np.asarray(result)) for result in results]

    def _reference(self, node: onnx.NodeProto) -> Any:
        from onnx.reference import ReferenceEvaluator

        if id(node) not in self._references:
            opsets = {"": self._opset, node.domain: self._opset}
            self._references[id(node)] = ReferenceEvaluator(copy_of(node), opsets=opsets)
        return self._references[id(node)]

    def forward(
        self, sources: Mapping[str, Array], nodes: Sequence[int], quotients: frozenset[str], target: str, sizes: Sizes
    ) -> Value:
        """Computes ``target`` from values of the cut's tensors, through ``nodes``.

        Args:
            sources: name -> value, in the tensor's shape at ``sizes``.
            nodes: indices of the nodes between the cut and ``target``, ascending.
            quotients: the tensors that the proof found to be quotients or reciprocals.
            target: the tensor to compute.
            sizes: the values of the dynamic sizes.

        Raises:
            NotLinear: an operator can't be evaluated.
        """
        last = {name: position for position, index in enumerate(nodes) for name in self._view.nodes[index].input}
        values: dict[str, Value] = dict(sources)
        for position, index in enumerate(nodes):
            node = self._view.nodes[index]
            inputs: list[Value | None] = [
                None if not name else values[name] if name in values else self.constant(name, sizes)
                for name in node.input
            ]
            if quotients.isdisjoint((*node.input, *node.output)):
                outputs: Sequence[Value] = self.apply(node, cast("list[Array | None]", inputs))
            else:
                outputs = self._quotient(node, inputs)
            del inputs
            for name, value in zip(node.output, outputs, strict=False):
                values.setdefault(name, value)
            for name in node.input:
                if last[name] == position and name != target:
                    values.pop(name, None)
        return values[target]

    def _quotient(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Value]:
        """Evaluates one node with a quotient among its inputs or outputs."""
        if node.op_type in LOWER_CLAMPS:
            return [self._clamp(node, cast("list[Array | None]", inputs))]
        if any(isinstance(value, Clamped) for value in inputs):
            return self._clamped(node, inputs)
        if any(isinstance(value, Quotient) and value.minimum is not None for value in inputs):
            return self._clamped_quotient(node, inputs)
        pairs = [value if isinstance(value, Quotient) else _over_one(cast("Array | None", value)) for value in inputs]
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
            # One term is a quotient and the others are constants: a/b + c = (a + c b)/b.
            terms = [pair.numerator if i == varying else pair.numerator * bottom for i, pair in enumerate(pairs)]
            return [_broadcast(self.apply(node, terms)[0], bottom)]
        if node.op_type == "Neg":
            return [Quotient(-first.numerator, first.denominator)]
        # A layout operator: it acts on the denominators as on the numerators.
        data = _data_inputs(node)
        tops = [pair.numerator if index in data else _plain(inputs[index]) for index, pair in enumerate(pairs)]
        bottoms = [pair.denominator if index in data else _plain(inputs[index]) for index, pair in enumerate(pairs)]
        below = self.apply(node, bottoms)
        return [Quotient(top, bottom) for top, bottom in zip(self.apply(node, tops), below, strict=True)]

    def _clamp(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> Clamped:
        """The value and the lower bound of a clamp; the proof found one value that varies and no upper bound."""
        varying = next(index for index, name in enumerate(node.input) if name in self._view.varying)
        value = cast("Array", inputs[varying])
        least: Array = np.array(0.0 if node.op_type == "Relu" else NO_CLAMP)
        for index, bound in enumerate(inputs):
            if index != varying and bound is not None and not (node.op_type == "Clip" and index == 2):
                least = np.maximum(least, bound)
        shape = np.broadcast_shapes(value.shape, least.shape)
        return Clamped(np.broadcast_to(value, shape), np.broadcast_to(least, shape))

    def _clamped(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Value]:
        """Evaluates one node with a clamped value among its inputs: a division by it, or a step before that."""
        last = inputs[-1]
        if node.op_type in ("Div", "Reciprocal") and isinstance(last, Clamped):
            top = np.ones(()) if node.op_type == "Reciprocal" else cast("Array", inputs[0])
            shape = np.broadcast_shapes(top.shape, last.value.shape)
            top, value, minimum = (np.broadcast_to(part, shape) for part in (top, last.value, last.minimum))
            return [Quotient(top, value, minimum, np.zeros(shape))]
        if node.op_type in ("Mul", "Div"):
            factor = next(value for value in inputs if not isinstance(value, Clamped))
            if np.any(cast("Array", factor) <= 0):
                reason = "it changes the sign of a clamped denominator, which then is limited from above"
                raise NotLinear(node.output[0], node.op_type, reason)
        values = self.apply(node, [v.value if isinstance(v, Clamped) else _plain(v) for v in inputs])
        minima = self.apply(node, [v.minimum if isinstance(v, Clamped) else _plain(v) for v in inputs])
        return [
            Clamped(value, np.broadcast_to(least, value.shape)) for value, least in zip(values, minima, strict=True)
        ]

    def _clamped_quotient(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Value]:
        """Evaluates one node with a quotient of clamped denominator among its inputs."""
        quotient = next(v for v in inputs if isinstance(v, Quotient) and v.minimum is not None)
        assert quotient.minimum is not None and quotient.offset is not None
        if node.op_type in ("Mul", "Div", "Add", "Sub", "Sum", "Mean", "Neg"):
            # One term is the quotient; of a sum, the constants move the offset.
            scaled = node.op_type in ("Mul", "Div")
            tops = [
                value.numerator if isinstance(value, Quotient) else value if scaled else np.zeros(np.shape(value))
                for value in cast("list[Array | Quotient]", inputs)
            ]
            moves = [value.offset if isinstance(value, Quotient) else value for value in inputs]
            top = self.apply(node, tops)[0]
            offset = self.apply(node, cast("list[Array | None]", moves))[0]
            parts = (top, quotient.denominator, quotient.minimum, offset)
            return [Quotient(*(np.broadcast_to(part, top.shape) for part in parts))]
        data = _data_inputs(node)
        whole = [
            _with_minimum(value) if index in data and value is not None else value for index, value in enumerate(inputs)
        ]
        found = [
            self.apply(node, [value.parts[part] if isinstance(value, Quotient) else _plain(value) for value in whole])
            for part in range(4)
        ]
        return [Quotient(*parts) for parts in zip(*found, strict=True)]


def _with_minimum(value: Value) -> Quotient:
    """A value as a quotient of four parts."""
    pair = value if isinstance(value, Quotient) else _over_one(cast("Array", value))
    if pair.minimum is not None:
        return pair
    shape = pair.numerator.shape
    return Quotient(pair.numerator, pair.denominator, np.full(shape, NO_CLAMP), np.zeros(shape))


def _held_bytes(value: Array) -> int:
    """Bytes that an array takes; a view that repeats values counts them once."""
    elements = 1
    for size, stride in zip(value.shape, value.strides, strict=True):
        elements *= size if stride else 1
    return elements * value.itemsize


def _over_one(value: Array | None) -> Quotient:
    array = np.zeros(0) if value is None else value
    return Quotient(array, np.ones(array.shape))


def _plain(value: Value | None) -> Array | None:
    return value.numerator if isinstance(value, Quotient) else cast("Array | None", value)


def _broadcast(numerator: Array, denominator: Array) -> Quotient:
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return Quotient(np.broadcast_to(numerator, shape), np.broadcast_to(denominator, shape))


def _data_inputs(node: onnx.NodeProto) -> frozenset[int]:
    """Which inputs of a layout operator hold data; the others are shapes or indices."""
    if node.op_type == "Concat":
        return frozenset(range(len(node.input)))
    if node.op_type == "Where":
        return frozenset((1, 2))
    if node.op_type in ("ScatterElements", "ScatterND"):
        return frozenset((0, 2))
    return frozenset((0,))
