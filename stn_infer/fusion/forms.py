"""The form of a tensor as a function of a cut's values, and the context in which one node is examined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import onnx

from stn_infer.fusion.dataflow import NotLinear, Product
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.monomials import Term
from stn_infer.fusion.shapes import SymbolicShape


class Degree(IntEnum):
    """How each element of a tensor depends on the cut's values, or on products of them."""

    CONSTANT = 0
    AFFINE = 1
    RECIPROCAL = 2  # constant / affine
    QUOTIENT = 3  # affine / affine
    CLAMPED = 4  # affine, limited from below by a constant: a denominator


@dataclass(frozen=True)
class Form:
    """A tensor's degree, its batch axis (None: all samples share the tensor), and the products in which it is affine.

    Each term is a product of tensors of the cut; the prover adds the terms to the forms that rules return. The clamp of
    a CLAMPED form is (its output, its operator), added by the prover too.
    """

    degree: Degree
    axis: int | None
    terms: frozenset[Term] = frozenset()
    clamp: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Context:
    """One node under proof: the forms of its inputs (None: input omitted), and what is known about the tensors.

    ``products``: whether products of varying tensors are allowed.
    """

    node: onnx.NodeProto
    forms: tuple[Form | None, ...]
    shapes: Mapping[str, SymbolicShape]
    dtypes: Mapping[str, str]
    evaluator: Evaluator
    products: bool = False

    def fail(self, reason: str) -> NotLinear:
        return NotLinear(self.node.output[0], self.node.op_type, reason)

    def require_products(self) -> None:
        """Raises Product unless products of varying tensors are allowed."""
        if not self.products:
            reason = "a product of two values that both depend on data is not linear"
            raise Product(self.node.output[0], self.node.op_type, reason)

    def shape(self, name: str) -> SymbolicShape:
        if name not in self.shapes:
            raise self.fail(f"the shape of {name!r} does not follow a simple rule")
        return self.shapes[name]

    def form(self, index: int) -> Form:
        form = self.forms[index] if index < len(self.forms) else None
        if form is None:
            raise self.fail(f"input {index} is missing")
        return form

    def rank(self, index: int) -> int:
        return len(self.shape(self.node.input[index]))

    def integers(self, index: int) -> list[int] | None:
        """Values of a constant integer input. None if it is omitted."""
        if index >= len(self.node.input) or not self.node.input[index]:
            return None
        if self.form(index).degree is not Degree.CONSTANT:
            raise self.fail(f"{self.node.input[index]!r} depends on data")
        values = self.evaluator.constant(self.node.input[index], self.evaluator.settings[0])
        return [int(value) for value in np.asarray(values).ravel()]

    def only_first(self) -> Form:
        """The form of input 0; requires all other inputs to be constant."""
        if any(form is not None and form.degree is not Degree.CONSTANT for form in self.forms[1:]):
            raise self.fail("an index or shape depends on data")
        return self.form(0)


Rule = Callable[[Context], Form]

FLOATS = frozenset({"float", "float16", "bfloat16", "double"})


def present(context: Context) -> list[int]:
    """Indices of the inputs that are not omitted."""
    return [index for index, form in enumerate(context.forms) if form is not None]


def moved_axis(context: Context, index: int, output_rank: int) -> int | None:
    """The batch axis of input ``index`` after broadcasting to an output of another rank."""
    axis = context.form(index).axis
    return None if axis is None else axis + output_rank - context.rank(index)


def common_axis(context: Context, indices: Sequence[int], output_rank: int) -> int | None:
    """The batch axis after broadcasting; all operands must agree on it."""
    axes = {axis for axis in (moved_axis(context, index, output_rank) for index in indices) if axis is not None}
    if len(axes) > 1:
        raise context.fail("the samples of a batch lie on different axes, so they are mixed")
    return axes.pop() if axes else None


def require_affine(context: Context, indices: Sequence[int]) -> None:
    """Raises NotLinear if an input is a quotient."""
    for index in indices:
        if context.form(index).degree > Degree.AFFINE:
            raise context.fail("it mixes quotients with different denominators")


def mixed_degree(context: Context, indices: Sequence[int]) -> Degree:
    """The degree of a tensor whose elements come from several inputs."""
    degree = max(context.form(index).degree for index in indices)
    same = all(context.form(index).degree == degree for index in indices)
    return degree if same or degree <= Degree.AFFINE else Degree.QUOTIENT


def elementwise(context: Context, degree: Degree) -> Form:
    """The form of the output of a broadcasting elementwise operator."""
    indices = present(context)
    rank = max(context.rank(index) for index in indices)
    return Form(degree, common_axis(context, indices, rank))
