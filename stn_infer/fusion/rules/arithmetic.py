"""The proof's rules for arithmetic operators: sums, products, quotients, reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stn_infer.fusion.forms import (
    Context,
    Degree,
    Form,
    Rule,
    common_axis,
    elementwise,
    moved_axis,
    present,
    require_affine,
)
from stn_infer.proto.traversal import attributes_of


def _sum(context: Context) -> Form:
    degrees = [context.form(index).degree for index in present(context)]
    varying = [degree for degree in degrees if degree is not Degree.CONSTANT]
    if len(varying) == 1:
        # (a/b) + c = (a + c b)/b: adding a constant to a reciprocal makes the numerator affine.
        degree = Degree.QUOTIENT if varying[0] is Degree.RECIPROCAL else varying[0]
        return elementwise(context, degree)
    if all(degree is Degree.AFFINE for degree in varying):
        return elementwise(context, Degree.AFFINE)
    raise context.fail("a sum of quotients has no common denominator")


def _multiply(context: Context) -> Form:
    left, right = sorted((context.form(0).degree, context.form(1).degree))
    if left is Degree.CONSTANT:
        return elementwise(context, right)
    if (left, right) == (Degree.AFFINE, Degree.RECIPROCAL):
        return elementwise(context, Degree.QUOTIENT)
    context.require_products()
    if left is not Degree.AFFINE:
        raise context.fail("a product of quotients is not a quotient of affine forms")
    return elementwise(context, right)


def _power(context: Context) -> Form:
    """Small integer powers are products of a value with itself."""
    form, exponent = (
        context.only_first(),
        context.evaluator.constant(context.node.input[1], context.evaluator.settings[0]),
    )
    if exponent.size != 1 or exponent.item() not in (1, 2, 3) or form.degree is not Degree.AFFINE:
        raise context.fail("a power of a value that depends on data is not linear")
    if exponent.item() > 1:
        context.require_products()
    return form


def _divide(context: Context) -> Form:
    top, bottom = context.form(0).degree, context.form(1).degree
    if bottom is Degree.CONSTANT:
        return elementwise(context, top)
    if bottom in (Degree.AFFINE, Degree.CLAMPED) and top in (Degree.CONSTANT, Degree.AFFINE):
        return elementwise(context, Degree.RECIPROCAL if top is Degree.CONSTANT else Degree.QUOTIENT)
    raise context.fail("a quotient of quotients is not a quotient of affine forms")


def _reciprocal(context: Context) -> Form:
    if context.form(0).degree not in (Degree.AFFINE, Degree.CLAMPED):
        raise context.fail("the reciprocal of a quotient is not a quotient of affine forms with a known sign")
    return Form(Degree.RECIPROCAL, context.form(0).axis)


def _clamp(context: Context) -> Form:
    """Max, Clip and Relu of one affine value by constants: a lower bound, which a denominator may have."""
    node, indices = context.node, present(context)
    varying = [index for index in indices if context.form(index).degree is not Degree.CONSTANT]
    if len(varying) != 1 or context.form(varying[0]).degree is not Degree.AFFINE:
        raise context.fail("a clamp, so the map is piecewise")
    if node.op_type == "Clip":
        if varying != [0] or 1 not in indices:
            raise context.fail("a clamp without a constant lower bound, so the map is piecewise")
        if 2 in indices:
            highest = context.evaluator.constant(node.input[2], context.evaluator.settings[0])
            if np.any(highest < np.finfo(np.float32).max):
                raise context.fail("it also limits the denominator from above, so the map is piecewise")
    return elementwise(context, Degree.CLAMPED)


def _require_product(context: Context, indices: Sequence[int]) -> None:
    if sum(context.form(index).degree is not Degree.CONSTANT for index in indices) > 1:
        context.require_products()
    require_affine(context, indices)


def _matmul(context: Context) -> Form:
    _require_product(context, (0, 1))
    ranks = context.rank(0), context.rank(1)
    left, right = context.form(0).axis, context.form(1).axis
    if left == ranks[0] - 1 or right == max(ranks[1] - 2, 0):
        raise context.fail("it sums over the samples of a batch")
    if ranks[1] == 1:
        return Form(Degree.AFFINE, left)
    if ranks[0] == 1:
        return Form(Degree.AFFINE, None if right is None else min(right, ranks[1] - 2))
    return Form(Degree.AFFINE, common_axis(context, (0, 1), max(ranks)))


def _gemm(context: Context) -> Form:
    _require_product(context, (0, 1))
    require_affine(context, present(context))
    attributes = attributes_of(context.node)
    rows = 1 if attributes.get("transA", 0) else 0
    columns = 0 if attributes.get("transB", 0) else 1
    axes = []
    for index, kept in ((0, rows), (1, columns)):
        axis = context.form(index).axis
        if axis is not None and axis != kept:
            raise context.fail("it sums over the samples of a batch")
        axes += [index] if axis is not None else []
    if len(present(context)) > 2:
        moved = moved_axis(context, 2, 2)
        axes += [moved] if moved is not None else []
    if len(set(axes)) > 1:
        raise context.fail("the samples of a batch lie on different axes, so they are mixed")
    return Form(Degree.AFFINE, axes[0] if axes else None)


def _einsum(context: Context) -> Form:
    indices = present(context)
    _require_product(context, indices)
    equation = str(attributes_of(context.node)["equation"]).replace(" ", "")
    terms, arrow, output = equation.partition("->")
    labels = terms.split(",")
    if "." in equation or not arrow or any(len(set(label)) != len(label) for label in labels):
        raise context.fail("an equation with an ellipsis, a diagonal or no output is not supported")
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


def _affine_grid(context: Context) -> Form:
    form = context.only_first()
    if form.axis not in (None, 0):
        raise context.fail("the samples do not lie on axis 0")
    require_affine(context, (0,))
    return form


def _cumulate(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    require_affine(context, (0,))
    axes = context.integers(1)
    if axes is None or form.axis == axes[0] % rank:
        raise context.fail("it sums over the samples of a batch")
    return form


ARITHMETIC: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean"), _sum),
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduce),
    **dict.fromkeys(("Max", "Clip", "Relu"), _clamp),
    "Mul": _multiply,
    "Pow": _power,
    "Div": _divide,
    "Reciprocal": _reciprocal,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "CumSum": _cumulate,
    "AffineGrid": _affine_grid,
}
"""Operator -> rule."""
