"""The proof's rules for operators that move, select, repeat or convert elements."""

from __future__ import annotations

from math import prod

from onnx import TensorProto

from stn_infer.fusion.forms import FLOATS, Context, Degree, Form, Rule, common_axis, elementwise, mixed_degree, present
from stn_infer.proto.traversal import attributes_of


def _same(context: Context) -> Form:
    return context.only_first()


def _cast(context: Context) -> Form:
    """Casts between floats: rounding to half precision is not part of the map, which stays in float32."""
    source = context.dtypes.get(context.node.input[0], "unknown")
    if context.node.op_type == "CastLike":
        target = context.dtypes.get(context.node.input[1], "unknown")
    else:
        target = str(TensorProto.DataType.Name(attributes_of(context.node)["to"])).lower()
    for kind in (source, target):
        if kind not in FLOATS:
            raise context.fail(f"it rounds to {kind}" if kind == target else f"it converts from {kind}")
    return context.form(0)


def _dropout(context: Context) -> Form:
    form = context.only_first()
    if len(context.node.input) > 2 and context.integers(2) != [0]:
        raise context.fail("it drops values at random")
    return form


def _where(context: Context) -> Form:
    if context.form(0).degree is not Degree.CONSTANT:
        raise context.fail("the condition depends on data, so the map is piecewise")
    degree = max(context.form(1).degree, context.form(2).degree)
    if degree > Degree.AFFINE:
        degree = Degree.QUOTIENT
    return elementwise(context, degree)


def _reshape(context: Context) -> Form:
    """Reshape, Flatten, Squeeze, Unsqueeze: the elements before the batch axis must stay before it."""
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


def _concat(context: Context) -> Form:
    indices = present(context)
    rank = context.rank(0)
    axis = common_axis(context, indices, rank)
    if axis is not None and attributes_of(context.node)["axis"] % rank == axis:
        raise context.fail("it joins samples along the batch")
    return Form(mixed_degree(context, indices), axis)


def _split(context: Context) -> Form:
    form = context.only_first()
    if form.axis is not None and attributes_of(context.node).get("axis", 0) % context.rank(0) == form.axis:
        raise context.fail("it splits the batch")
    return form


def _slice(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    starts, ends = context.integers(1), context.integers(2)
    if starts is None or ends is None:  # opset 9: attributes
        raise context.fail("a Slice without inputs for its bounds is not supported")
    axes = context.integers(3) or list(range(len(starts)))
    steps = context.integers(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # The largest number means "to the end"; any other end may cut off part of a larger batch.
        if axis % rank == form.axis and (start, step, end >= 2**31 - 1) != (0, 1, True):
            raise context.fail("it takes part of the batch")
    return form


def _gather(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    axis = attributes_of(context.node).get("axis", 0) % rank
    if form.axis is None:
        return form
    if axis == form.axis or context.form(1).axis is not None:
        raise context.fail("it selects samples from the batch")
    return Form(form.degree, form.axis if form.axis < axis else form.axis + context.rank(1) - 1)


def _gather_nd(context: Context) -> Form:
    """GatherND, by indices that are the same for every sample, or that begin with the sample's number."""
    form, node = context.only_first(), context.node
    batch = int(attributes_of(node).get("batch_dims", 0))
    if context.evaluator.depends_on_open_sizes(node.input[1]):
        if context.evaluator.sample_index(node.input[1]) is None or (form.axis, batch) != (0, 0):
            raise context.fail("the indices are computed from the batch size")
        return form
    indices, axis = context.shape(node.input[1]), context.form(1).axis
    indexed = indices[-1].factor
    if form.axis is None:
        return Form(form.degree, axis)
    if form.axis < batch:
        if axis not in (None, form.axis):
            raise context.fail("the samples of a batch lie on different axes, so they are mixed")
        return form
    if form.axis < batch + indexed or axis is not None:
        raise context.fail("it selects samples from the batch")
    return Form(form.degree, len(indices) - 1 + form.axis - batch - indexed)


def _compress(context: Context) -> Form:
    """Compress by a constant condition, along an axis other than the batch axis."""
    form, axis = context.only_first(), attributes_of(context.node).get("axis")
    if form.axis is not None and (axis is None or axis % context.rank(0) == form.axis):
        raise context.fail("it selects samples from the batch")
    return form


def _triangle(context: Context) -> Form:
    form = context.only_first()
    if form.axis is not None and form.axis >= context.rank(0) - 2:
        raise context.fail("it selects samples from the batch")
    if form.degree > Degree.AFFINE:
        raise context.fail("it replaces quotients by zeros")
    return form


def _require_sum(context: Context) -> None:
    """A scatter that replaces elements or adds to them is linear; one that takes products or extremes is not."""
    reduction = attributes_of(context.node).get("reduction", "none")
    if reduction not in ("none", "add"):
        raise context.fail(f"a scatter with the reduction {reduction!r} is not linear")
    if reduction == "add" and any(context.form(index).degree > Degree.AFFINE for index in (0, 2)):
        raise context.fail("a sum of quotients has no common denominator")


def _pick_elements(context: Context) -> Form:
    """GatherElements and ScatterElements (whose updates may vary), along an axis other than the batch axis."""
    node, rank = context.node, context.rank(0)
    if context.form(1).degree is not Degree.CONSTANT:
        raise context.fail("the indices depend on data")
    attributes = attributes_of(node)
    _require_sum(context)
    data = [index for index in present(context) if index != 1]
    axes = {context.form(index).axis for index in (*data, 1)} - {None}
    axis = axes.pop() if len(axes) == 1 else None
    if axes or axis == attributes.get("axis", 0) % rank:
        raise context.fail("it selects samples from the batch")
    return Form(mixed_degree(context, data), axis)


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


def _scatter_nd(context: Context) -> Form:
    """ScatterND, by indices that are the same for every sample, or that begin with the sample's number."""
    node = context.node
    if context.form(1).degree is not Degree.CONSTANT:
        raise context.fail("the indices depend on data")
    _require_sum(context)
    degree = mixed_degree(context, (0, 2))
    data, updates = context.form(0).axis, context.form(2).axis
    if context.evaluator.depends_on_open_sizes(node.input[1]):
        if context.evaluator.sample_index(node.input[1]) is None or data != 0 or updates not in (None, 0):
            raise context.fail("the indices are computed from the batch size")
        return Form(degree, 0)
    indices = context.shape(node.input[1])
    indexed = indices[-1].factor
    expected = None if data is None else len(indices) - 1 + data - indexed
    if (data is not None and data < indexed) or updates not in (None, expected):
        raise context.fail("it selects samples from the batch")
    return Form(degree, data)


def _pad(context: Context) -> Form:
    form, rank = context.only_first(), context.rank(0)
    if form.degree > Degree.AFFINE:
        raise context.fail("it pads a quotient with constants")
    pads = context.integers(1) or []
    axes = [axis % rank for axis in context.integers(3) or range(rank)]
    sizes = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if form.axis is not None and any(sizes.get(form.axis, (0, 0))):
        raise context.fail("it pads the batch axis")
    return form


LAYOUT: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "Neg"), _same),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Expand", "Tile"), _stretch),
    **dict.fromkeys(("GatherElements", "ScatterElements"), _pick_elements),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "ScatterND": _scatter_nd,
    "Pad": _pad,
    "Dropout": _dropout,
    "Where": _where,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Compress": _compress,
    "Trilu": _triangle,
}
"""Operator -> rule."""
