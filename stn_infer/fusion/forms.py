"""What a tensor is in the values of a cut, and one node under proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import onnx

from stn_infer.fusion.dataflow import NotLinear
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.shapes import SymbolicShape


class Degree(IntEnum):
    """What a tensor is in the cut's values, element by element."""

    CONSTANT = 0
    AFFINE = 1
    RECIPROCAL = 2  # constant / affine
    QUOTIENT = 3  # affine / affine


@dataclass(frozen=True)
class Form:
    """A tensor's degree, and the axis that carries the samples (None: it is one for all of them)."""

    degree: Degree
    axis: int | None


@dataclass(frozen=True)
class Context:
    """One node under proof: its inputs' forms (None: left out), and what is known of the tensors."""

    node: onnx.NodeProto
    forms: tuple[Form | None, ...]
    shapes: Mapping[str, SymbolicShape]
    dtypes: Mapping[str, str]
    evaluator: Evaluator

    def fail(self, reason: str) -> NotLinear:
        return NotLinear(self.node.output[0], self.node.op_type, reason)

    def shape(self, name: str) -> SymbolicShape:
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
        values = self.evaluator.constant(self.node.input[index], self.evaluator.settings[0])
        return [int(value) for value in np.asarray(values).ravel()]

    def only_first(self) -> Form:
        """The form of input 0, all others being constant."""
        if any(form is not None and form.degree is not Degree.CONSTANT for form in self.forms[1:]):
            raise self.fail("an index or shape depends on data")
        return self.form(0)


Rule = Callable[[Context], Form]

FLOATS = frozenset({"float", "float16", "bfloat16", "double"})


def present(context: Context) -> list[int]:
    """The inputs that are not left out."""
    return [index for index, form in enumerate(context.forms) if form is not None]


def moved_axis(context: Context, index: int, output_rank: int) -> int | None:
    """Input ``index``'s samples' axis in an output of another rank, broadcast."""
    axis = context.form(index).axis
    return None if axis is None else axis + output_rank - context.rank(index)


def common_axis(context: Context, indices: Sequence[int], output_rank: int) -> int | None:
    """The samples' axis after broadcasting; all operands must agree on it."""
    axes = {axis for axis in (moved_axis(context, index, output_rank) for index in indices) if axis is not None}
    if len(axes) > 1:
        raise context.fail("samples of a batch lie on different axes, so that they mix")
    return axes.pop() if axes else None


def require_affine(context: Context, indices: Sequence[int]) -> None:
    """Refuse quotients."""
    for index in indices:
        if context.form(index).degree > Degree.AFFINE:
            raise context.fail("it mixes quotients with different denominators")


def mixed_degree(context: Context, indices: Sequence[int]) -> Degree:
    """The degree of a tensor whose elements come from several."""
    degree = max(context.form(index).degree for index in indices)
    same = all(context.form(index).degree == degree for index in indices)
    return degree if same or degree <= Degree.AFFINE else Degree.QUOTIENT


def elementwise(context: Context, degree: Degree) -> Form:
    """The form of an operator that works element by element, broadcasting."""
    indices = present(context)
    rank = max(context.rank(index) for index in indices)
    return Form(degree, common_axis(context, indices, rank))
