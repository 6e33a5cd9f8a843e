"""Prove that a sampling grid is affine, or a quotient of affine forms, in some tensors before it.

Each rule says, for one operator, what it makes of inputs whose form is known. The rules are structural: a value never
decides (a clamp at ±10 looks affine wherever one happens to look). They also follow the axis that carries the samples
of a batch, since an operator that mixes samples can't be written as one map a sample. What has no rule ends a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from math import prod

import numpy as np
import onnx
from onnx import TensorProto

from stn_infer.graph.evaluate import SHAPED_BY_SECOND, Evaluator
from stn_infer.graph.observe import BATCHES, Template
from stn_infer.graph.region import GraphView, Obstacle, attributes_of


class Degree(IntEnum):
    """What a tensor is in the cut's values, element by element."""

    CONSTANT = 0
    AFFINE = 1
    RECIPROCAL = 2  # constant / affine
    QUOTIENT = 3  # affine / affine


@dataclass(frozen=True)
class Form:
    """A tensor's degree, and the axis that carries the samples (None: a constant without one)."""

    degree: Degree
    axis: int | None


@dataclass(frozen=True)
class Context:
    """One node under proof: its inputs' forms (None: left out), and what is known of the tensors."""

    node: onnx.NodeProto
    forms: tuple[Form | None, ...]
    shapes: Mapping[str, Template]
    evaluator: Evaluator

    def fail(self, reason: str) -> Obstacle:
        return Obstacle(self.node.output[0], self.node.op_type, reason)

    def shape(self, name: str) -> Template:
        if name not in self.shapes:
            raise self.fail(f"the shape of {name!r} follows no simple rule")
        return self.shapes[name]

    def form(self, index: int) -> Form:
        form = self.forms[index] if index < len(self.forms) else None
        if form is None:
            raise self.fail(f"input {index} is missing")
        return form

    def rank(self, index: int) -> int:
        return len(self.shape(self.node.input[index]))

    def integers(self, index: int) -> list[int] | None:
        """Values of a constant integer input; None where it is left out."""
        if index >= len(self.node.input) or not self.node.input[index]:
            return None
        if self.form(index).degree is not Degree.CONSTANT:
            raise self.fail(f"{self.node.input[index]!r} depends on data")
        values = self.evaluator.constant(self.node.input[index], BATCHES[0])
        return [int(value) for value in np.asarray(values).ravel()]

    def only_first(self) -> Form:
        """The form of input 0, all others being constant."""
        if any(form is not None and form.degree is not Degree.CONSTANT for form in self.forms[1:]):
            raise self.fail("an index or shape depends on data")
        return self.form(0)


Rule = Callable[[Context], Form]


def _moved(context: Context, index: int, output_rank: int) -> int | None:
    axis = context.form(index).axis
    return None if axis is None else axis + output_rank - context.rank(index)


def _common_axis(context: Context, indices: Sequence[int], output_rank: int) -> int | None:
    """The samples' axis after broadcasting; all operands must agree on it."""
    axes = {axis for axis in (_moved(context, index, output_rank) for index in indices) if axis is not None}
    if len(axes) > 1:
        raise context.fail("samples of a batch lie on different axes, so that they mix")
    return axes.pop() if axes else None


def _present(context: Context) -> list[int]:
    return [index for index, form in enumerate(context.forms) if form is not None]


def _elementwise(context: Context, degree: Degree) -> Form:
    indices = _present(context)
    rank = max(context.rank(index) for index in indices)
    return Form(degree, _common_axis(context, indices, rank))


def _sum(context: Context) -> Form:
    degrees = [context.form(index).degree for index in _present(context)]
    varying = [degree for degree in degrees if degree is not Degree.CONSTANT]
    if len(varying) == 1:
        # (a/b) + c = (a + c b)/b: adding a constant to a reciprocal gives it an affine numerator
        degree = Degree.QUOTIENT if varying[0] is Degree.RECIPROCAL else varying[0]
        return _elementwise(context, degree)
    if all(degree is Degree.AFFINE for degree in varying):
        return _elementwise(context, Degree.AFFINE)
    raise context.fail("a sum of quotients has no common denominator")


def _multiply(context: Context) -> Form:
    left, right = sorted((context.form(0).degree, context.form(1).degree))
    if left is Degree.CONSTANT:
        return _elementwise(context, right)
    if (left, right) == (Degree.AFFINE, Degree.RECIPROCAL):
        return _elementwise(context, Degree.QUOTIENT)
    raise context.fail("a product of two values that both depend on data is not linear")


def _divide(context: Context) -> Form:
    top, bottom = context.form(0).degree, context.form(1).degree
    if bottom is Degree.CONSTANT:
        return _elementwise(context, top)
    if bottom is Degree.AFFINE and top in (Degree.CONSTANT, Degree.AFFINE):
        return _elementwise(context, Degree.RECIPROCAL if top is Degree.CONSTANT else Degree.QUOTIENT)
    raise context.fail("a quotient of quotients is not a quotient of affine forms")


def _reciprocal(context: Context) -> Form:
    if context.form(0).degree is not Degree.AFFINE:
        raise context.fail("the reciprocal of a quotient is not a quotient of affine forms with a known sign")
    return Form(Degree.RECIPROCAL, context.form(0).axis)


def _same(context: Context) -> Form:
    return context.only_first()


def _cast(context: Context) -> Form:
    target = attributes_of(context.node)["to"]
    if target not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise context.fail(f"it rounds to {TensorProto.DataType.Name(target).lower()}")
    return context.only_first()


def _dropout(context: Context) -> Form:
    form = context.only_first()
    if len(context.node.input) > 2 and context.integers(2) != [0]:
        raise context.fail("it drops values at random")
    return form


def _where(context: Context) -> Form:
    if context.form(0).degree is not Degree.CONSTANT:
        raise context.fail("the condition depends on data, so that the map has pieces")
    degree = max(context.form(1).degree, context.form(2).degree)
    if degree > Degree.AFFINE:
        degree = Degree.QUOTIENT
    return _elementwise(context, degree)


def _require_affine(context: Context, indices: Sequence[int]) -> None:
    for index in indices:
        if context.form(index).degree > Degree.AFFINE:
            raise context.fail("it mixes quotients with different denominators")


def _one_varying(context: Context, indices: Sequence[int]) -> None:
    if sum(context.form(index).degree is not Degree.CONSTANT for index in indices) > 1:
        raise context.fail("a product of two values that both depend on data is not linear")
    _require_affine(context, indices)


def _matmul(context: Context) -> Form:
    _one_varying(context, (0, 1))
    ranks = context.rank(0), context.rank(1)
    if min(ranks) < 2:
        if ranks[1] == 1 and context.form(0).axis not in (None, ranks[0] - 1):
            return Form(Degree.AFFINE, context.form(0).axis)
        raise context.fail("a matrix product with a vector on the left is not followed")
    if context.form(0).axis == ranks[0] - 1 or context.form(1).axis == ranks[1] - 2:
        raise context.fail("it sums over the samples of a batch")
    return Form(Degree.AFFINE, _common_axis(context, (0, 1), max(ranks)))


def _gemm(context: Context) -> Form:
    _one_varying(context, (0, 1))
    _require_affine(context, _present(context))
    attributes = attributes_of(context.node)
    rows = 1 if attributes.get("transA", 0) else 0
    columns = 0 if attributes.get("transB", 0) else 1
    axes = []
    for index, kept in ((0, rows), (1, columns)):
        axis = context.form(index).axis
        if axis is not None and axis != kept:
            raise context.fail("it sums over the samples of a batch")
        axes += [index] if axis is not None else []
    if len(_present(context)) > 2:
        moved = _moved(context, 2, 2)
        axes += [moved] if moved is not None else []
    if len(set(axes)) > 1:
        raise context.fail("samples of a batch lie on different axes, so that they mix")
    return Form(Degree.AFFINE, axes[0] if axes else None)


def _einsum(context: Context) -> Form:
    indices = _present(context)
    _one_varying(context, indices)
    equation = str(attributes_of(context.node)["equation"]).replace(" ", "")
    terms, arrow, output = equation.partition("->")
    labels = terms.split(",")
    if "." in equation or not arrow or any(len(set(label)) != len(label) for label in labels):
        raise context.fail("an equation with an ellipsis, a diagonal or no output is not followed")
    carriers = {labels[index][axis] for index in indices if (axis := context.form(index).axis) is not None}
    if len(carriers) > 1 or not carriers <= set(output):
        raise context.fail("it sums over the samples of a batch, or mixes them")
    return Form(Degree.AFFINE, output.index(carriers.pop()) if carriers else None)


def _axes(context: Context, rank: int) -> list[int] | None:
    attributes = attributes_of(context.node)
    axes = attributes.get("axes")
    if axes is None:
        axes = context.integers(1)
    return None if axes is None else [axis % rank for axis in axes]


def _reduce(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    if form.degree > Degree.AFFINE:
        raise context.fail("it sums quotients with different denominators")
    attributes = attributes_of(context.node)
    axes = _axes(context, rank)
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return form
        axes = list(range(rank))
    if form.axis in axes:
        raise context.fail("it sums over the samples of a batch")
    if form.axis is None or attributes.get("keepdims", 1):
        return form
    return Form(form.degree, form.axis - sum(axis < form.axis for axis in axes))


def _reshape(context: Context) -> Form:
    """Reshape, Flatten, Squeeze, Unsqueeze: what stands before the samples' axis must stay before it."""
    form = context.only_first()
    if form.axis is None:
        return form
    before = context.shape(context.node.input[0])
    after = context.shape(context.node.output[0])
    carriers = [axis for axis, length in enumerate(after) if length.batch]
    if len(carriers) != 1 or prod(a.factor for a in after[: carriers[0]]) != prod(
        a.factor for a in before[: form.axis]
    ):
        raise context.fail("the samples of a batch do not stay in order on one axis")
    return Form(form.degree, carriers[0])


def _transpose(context: Context) -> Form:
    form = context.only_first()
    order = attributes_of(context.node).get("perm") or list(range(context.rank(0)))[::-1]
    return form if form.axis is None else Form(form.degree, list(order).index(form.axis))


def _mixed_degree(context: Context, indices: Sequence[int]) -> Degree:
    degree = max(context.form(index).degree for index in indices)
    same = all(context.form(index).degree == degree for index in indices)
    return degree if same or degree <= Degree.AFFINE else Degree.QUOTIENT


def _concat(context: Context) -> Form:
    indices = _present(context)
    rank = context.rank(0)
    axis = _common_axis(context, indices, rank)
    if axis is not None and attributes_of(context.node)["axis"] % rank == axis:
        raise context.fail("it joins samples along the batch")
    return Form(_mixed_degree(context, indices), axis)


def _split(context: Context) -> Form:
    form = context.only_first()
    if form.axis is not None and attributes_of(context.node).get("axis", 0) % context.rank(0) == form.axis:
        raise context.fail("it splits the batch")
    return form


def _slice(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    starts, ends = context.integers(1), context.integers(2)
    if starts is None or ends is None:  # opset 9: attributes
        raise context.fail("a Slice without inputs for its bounds is not followed")
    axes = context.integers(3) or list(range(len(starts)))
    steps = context.integers(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # "to the end" is written as the largest number; any other end may be short of some batch
        if axis % rank == form.axis and (start, step, end >= 2**31 - 1) != (0, 1, True):
            raise context.fail("it takes part of the batch")
    return form


def _gather(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    axis = attributes_of(context.node).get("axis", 0) % rank
    if form.axis is None:
        return form
    if axis == form.axis or context.form(1).axis is not None:
        raise context.fail("it picks samples out of the batch")
    return Form(form.degree, form.axis if form.axis < axis else form.axis + context.rank(1) - 1)


def _pick_elements(context: Context) -> Form:
    """GatherElements, and ScatterElements (whose updates may vary): along an axis that is not the batch."""
    node, rank = context.node, context.rank(0)
    if context.form(1).degree is not Degree.CONSTANT:
        raise context.fail("the indices depend on data")
    attributes = attributes_of(node)
    if attributes.get("reduction", "none") != "none":
        raise context.fail("a scatter that adds or multiplies is not followed")
    data = [index for index in _present(context) if index != 1]
    axes = {context.form(index).axis for index in (*data, 1)} - {None}
    axis = axes.pop() if len(axes) == 1 else None
    if axes or axis == attributes.get("axis", 0) % rank:
        raise context.fail("it picks samples out of the batch")
    return Form(_mixed_degree(context, data), axis)


def _stretch(context: Context) -> Form:
    """Expand and Tile: the batch axis keeps its length and its order."""
    form = context.only_first()
    output = context.shape(context.node.output[0])
    if form.axis is None:
        carriers = [axis for axis, length in enumerate(output) if length.batch]
        return Form(form.degree, carriers[0] if len(carriers) == 1 else None)
    axis = form.axis + len(output) - context.rank(0)
    if output[axis] != context.shape(context.node.input[0])[form.axis]:
        raise context.fail("it repeats the batch")
    return Form(form.degree, axis)


def _affine_grid(context: Context) -> Form:
    form = context.only_first()
    if form.axis != 0:
        raise context.fail("the samples do not lie on axis 0")
    _require_affine(context, (0,))
    return form


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "Neg"), _same),
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean"), _sum),
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Expand", "Tile"), _stretch),
    **dict.fromkeys(("GatherElements", "ScatterElements"), _pick_elements),
    "Cast": _cast,
    "Dropout": _dropout,
    "Mul": _multiply,
    "Div": _divide,
    "Reciprocal": _reciprocal,
    "Where": _where,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "AffineGrid": _affine_grid,
}
"""Operator -> rule; what is not here ends a proof."""

LINEAR_OPS = frozenset(RULES)


class Prover:
    """Applies the rules to one graph."""

    def __init__(self, view: GraphView, shapes: Mapping[str, Template], evaluator: Evaluator) -> None:
        self._view, self._shapes, self._evaluator = view, shapes, evaluator

    def source(self, tensor: str) -> Form:
        """The form of a tensor where a cut goes through: affine in itself, samples on its one batch axis."""
        axes = [axis for axis, length in enumerate(self._shapes.get(tensor, ())) if length.batch]
        if len(axes) != 1:
            raise Obstacle(
                tensor, self._op_type(tensor), "the samples of a batch are mixed: no single axis carries them"
            )
        return Form(Degree.AFFINE, axes[0])

    def constant(self, tensor: str) -> Form:
        """The form of a tensor that varies with no data."""
        axes = [axis for axis, length in enumerate(self._shapes.get(tensor, ())) if length.batch]
        if len(axes) > 1:
            raise Obstacle(tensor, self._op_type(tensor), "two axes of it carry the batch")
        return Form(Degree.CONSTANT, axes[0] if axes else None)

    def step(self, index: int, forms: Mapping[str, Form]) -> Form:
        """The form of node ``index``'s outputs, given its varying inputs' forms.

        Raises:
            Obstacle: no rule, or the rule says no.
        """
        node = self._view.nodes[index]
        rule = RULES.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            raise Obstacle(node.output[0], node.op_type, "the operator is not known to be linear")
        inputs = tuple(
            None if not name else forms[name] if name in forms else self.constant(name) for name in node.input
        )
        for position, name in enumerate(node.input):
            is_shape = position == 1 and node.op_type in (*SHAPED_BY_SECOND, "AffineGrid")
            if name and name not in forms and not is_shape and self._evaluator.depends_on_batch_size(name):
                raise Obstacle(node.output[0], node.op_type, f"{name!r} is computed from the batch size")
        form = rule(Context(node, inputs, self._shapes, self._evaluator))
        for output in filter(None, node.output):
            shape = self._shapes.get(output)
            if shape is None or form.axis is None or not shape[form.axis].batch:
                raise Obstacle(output, node.op_type, "the samples' axis is lost")
        return form

    def hopeless(self, index: int) -> Obstacle | None:
        """Why node ``index`` can be part of no proof; None where some degrees of its inputs would pass."""
        reason: Obstacle | None = None
        names = self._view.varying_inputs(self._view.nodes[index])
        for special in (None, *names):  # all affine, or one of them a reciprocal
            try:
                forms = {name: self.source(name) for name in names}
                if special is not None:
                    forms[special] = replace(forms[special], degree=Degree.RECIPROCAL)
                self.step(index, forms)
                return None
            except Obstacle as obstacle:
                reason = reason or obstacle
        return reason

    def prove(self, sources: Sequence[str], nodes: Sequence[int], grid: str) -> dict[str, Form]:
        """The forms of all tensors from ``sources`` through ``nodes`` (ascending), ``grid`` among them.

        Raises:
            Obstacle: where the proof ends.
        """
        forms = {name: self.source(name) for name in sources}
        for index in nodes:
            form = self.step(index, forms)
            forms.update((name, form) for name in self._view.nodes[index].output if name and name not in forms)
        if forms[grid].axis != 0:
            raise Obstacle(grid, self._op_type(grid), "the samples do not lie on axis 0")
        return forms

    def _op_type(self, tensor: str) -> str:
        index = self._view.producer.get(tensor)
        return "" if index is None else self._view.nodes[index].op_type
