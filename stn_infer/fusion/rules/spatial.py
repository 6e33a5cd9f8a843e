"""The proof's rules for operators on images: resizing, convolution, average pooling, sampling at constant points."""

from __future__ import annotations

from stn_infer.fusion.forms import Context, Degree, Form, Rule, common_axis, require_affine
from stn_infer.proto.traversal import attributes_of


def _constant_beside(context: Context, reason: str) -> Form:
    """The form of input 0, which must be affine; all other inputs must be constant."""
    if any(form is not None and form.degree is not Degree.CONSTANT for form in context.forms[1:]):
        raise context.fail(reason)
    require_affine(context, (0,))
    return context.form(0)


def _window(context: Context) -> Form:
    """Convolutions and poolings treat the samples on axis 0 alike, and mix the others."""
    form = _constant_beside(context, "its weights depend on data")
    if form.axis not in (None, 0):
        raise context.fail("the samples do not lie on axis 0, so they are mixed")
    return form


def _pool(context: Context) -> Form:
    form = _constant_beside(context, "its weights depend on data")
    if form.axis not in (None, 0, 1):
        raise context.fail("it sums over the samples of a batch")
    return form


def _resize(context: Context) -> Form:
    """Every mode is linear at constant scales; the batch axis must keep its samples in order."""
    form = _constant_beside(context, "its size, scale or region depends on data")
    if form.axis is None:
        return form
    node = context.node
    attributes = attributes_of(node)
    axes = [axis % context.rank(0) for axis in attributes.get("axes") or range(context.rank(0))]
    cropped = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    kept = context.shape(node.output[0])[form.axis] == context.shape(node.input[0])[form.axis]
    if not kept or (cropped and form.axis in axes):
        raise context.fail("it resizes the batch axis")
    return form


def _sample(context: Context) -> Form:
    """GridSample is linear in the image, for each mode and padding mode, and not in the grid."""
    if context.form(1).degree is not Degree.CONSTANT:
        raise context.fail("it samples at points that depend on data")
    require_affine(context, (0,))
    axis = common_axis(context, (0, 1), context.rank(0)) if context.rank(0) == context.rank(1) else None
    if axis not in (None, 0) or axis != context.form(0).axis:
        raise context.fail("the samples of a batch lie on different axes, so they are mixed")
    return Form(context.form(0).degree, axis)


def _normalize(context: Context) -> Form:
    """BatchNormalization with constant statistics: a scale and a shift per channel."""
    if attributes_of(context.node).get("training_mode", 0):
        raise context.fail("it computes statistics over the batch")
    form = _constant_beside(context, "its statistics depend on data")
    if form.axis == 1:
        raise context.fail("the samples do not lie on axis 0, so they are mixed")
    return form


SPATIAL: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "AveragePool", "DepthToSpace", "SpaceToDepth"), _window),
    "GlobalAveragePool": _pool,
    "Resize": _resize,
    "GridSample": _sample,
    "BatchNormalization": _normalize,
}
"""Operator -> rule."""
