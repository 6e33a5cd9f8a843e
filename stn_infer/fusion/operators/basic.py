"""Arithmetic, layout and selection in numpy, in the precision of the inputs.

Operators that repeat values return views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.fusion.basis import canonical_basis, map_points
from stn_infer.fusion.operators.inputs import Attributes, Operator, first, integers, optional, present


def _binary(compute: Callable[..., Any]) -> Operator:
    return lambda attributes, inputs: [np.asarray(compute(*present(inputs)))]


def _divide(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    top, bottom = present(inputs)
    if top.dtype.kind in "iu":
        return [np.asarray(np.trunc(top / bottom)).astype(top.dtype)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return [np.asarray(top / bottom)]


def _total(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    values = present(inputs)
    total = values[0]
    for value in values[1:]:
        total = total + value
    return [np.asarray(total)]


def _mean(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [_total(attributes, inputs)[0] / len(present(inputs))]


def _gemm(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    left, right = present(inputs)[:2]
    left = left.T if attributes.get("transA", 0) else left
    right = right.T if attributes.get("transB", 0) else right
    product = attributes.get("alpha", 1.0) * (left @ right)
    bias = optional(inputs, 2)
    return [product if bias is None else product + attributes.get("beta", 1.0) * bias]


def _einsum(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.asarray(np.einsum(str(attributes["equation"]).replace(" ", ""), *present(inputs), optimize=True))]


def _transpose(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.transpose(first(inputs), attributes.get("perm"))]


def _reshape(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, shape = present(inputs)
    sizes = [int(size) for size in shape]
    if not attributes.get("allowzero", 0):
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return [data.reshape(sizes)]


def _flatten(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, axis = first(inputs), attributes.get("axis", 1)
    axis += data.ndim if axis < 0 else 0
    return [data.reshape(int(np.prod(data.shape[:axis])), -1)]


def _squeeze(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    axes = integers(attributes, inputs, 1, "axes")
    return [np.squeeze(first(inputs), None if axes is None else tuple(axes))]


def _unsqueeze(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.expand_dims(first(inputs), tuple(integers(attributes, inputs, 1, "axes") or ()))]


def _expand(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, shape = present(inputs)
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(int(size) for size in shape)))]


def _tile(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, repeats = present(inputs)
    if all(count == 1 or size == 1 for count, size in zip(repeats, data.shape, strict=True)):
        return [np.broadcast_to(data, [int(c) * size for c, size in zip(repeats, data.shape, strict=True)])]
    return [np.tile(data, [int(count) for count in repeats])]


def _concat(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.concatenate(present(inputs), axis=attributes["axis"])]


def _split(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, axis = first(inputs), attributes.get("axis", 0)
    sizes = integers(attributes, inputs, 1, "split")
    if sizes is None:
        # The last part may be smaller.
        parts, length = attributes["num_outputs"], data.shape[axis]
        size = -(-length // parts)
        sizes = [size] * (parts - 1) + [length - size * (parts - 1)]
    return list(np.split(data, np.cumsum(sizes)[:-1], axis=axis))


def _slice(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data = first(inputs)
    starts = integers(attributes, inputs, 1, "starts") or []
    ends = integers(attributes, inputs, 2, "ends") or []
    axes = integers(attributes, inputs, 3, "axes") or list(range(len(starts)))
    steps = integers({}, inputs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = data.shape[axis]
        start += length if start < 0 else 0
        end += length if end < 0 else 0
        if step > 0:
            index[axis] = slice(min(max(start, 0), length), min(max(end, 0), length), step)
        else:
            stop = min(max(end, -1), length - 1)
            index[axis] = slice(min(max(start, 0), length - 1), None if stop < 0 else stop, step)
    return [data[tuple(index)]]


def _gather(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, indices = present(inputs)
    return [np.take(data, indices.astype(np.int64), axis=attributes.get("axis", 0))]


def _reduce(compute: Callable[..., Any]) -> Operator:
    def run(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
        axes = integers(attributes, inputs, 1, "axes")
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return [first(inputs)]
        keep = bool(attributes.get("keepdims", 1))
        return [np.asarray(compute(first(inputs), axis=tuple(axes) if axes else None, keepdims=keep))]

    return run


def _cast_like(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    """Casts between floats keep the input's precision."""
    data, target = present(inputs)
    kept = target.dtype.kind == "f" and data.dtype.kind == "f"
    return [data if kept else data.astype(target.dtype)]


def _where(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    condition, left, right = present(inputs)
    return [np.where(condition, left, right)]


def _gather_nd(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, indices = present(inputs)
    batch = int(attributes.get("batch_dims", 0))
    index = np.moveaxis(indices.astype(np.int64), -1, 0)
    # The leading axes count along with the indices.
    leading = np.ogrid[tuple(slice(length) for length in indices.shape[:batch])] if batch else []
    padded = [axis.reshape(*axis.shape, *[1] * (index.ndim - 1 - batch)) for axis in leading]
    return [data[(*padded, *index)]]


def _elementwise_index(indices: Array, axis: int) -> tuple[Array, ...]:
    """The index of each element of ``indices``, of GatherElements and ScatterElements."""
    places: list[Array] = list(np.ogrid[tuple(slice(length) for length in indices.shape)])
    places[axis] = indices.astype(np.int64)
    return tuple(places)


def _gather_elements(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, indices = present(inputs)
    return [data[_elementwise_index(indices, attributes.get("axis", 0))]]


def _scattered(attributes: Attributes, data: Array, index: tuple[Array, ...], updates: Array) -> list[Array]:
    result = np.array(data)
    reduction = attributes.get("reduction", "none")
    if reduction == "add":
        np.add.at(result, index, updates)
    elif reduction == "none":
        result[index] = updates
    else:
        raise ValueError(f"a scatter with the reduction {reduction!r} is not supported")
    return [result]


def _scatter_elements(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, indices, updates = present(inputs)
    return _scattered(attributes, data, _elementwise_index(indices, attributes.get("axis", 0)), updates)


def _scatter_nd(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, indices, updates = present(inputs)
    return _scattered(attributes, data, tuple(np.moveaxis(indices.astype(np.int64), -1, 0)), updates)


def _compress(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, condition = present(inputs)
    return [np.compress(condition, data, axis=attributes.get("axis"))]


def _triangle(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, offset = first(inputs), optional(inputs, 1)
    keep = np.triu if attributes.get("upper", 1) else np.tril
    return [keep(data, 0 if offset is None else int(offset))]


def _normalize(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    """BatchNormalization with the constant statistics of inference."""
    data, scale, bias, mean, variance = present(inputs)
    shape = (-1, *[1] * (data.ndim - 2))
    factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    return [(data - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)]


def _clip(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, low, high = first(inputs), optional(inputs, 1), optional(inputs, 2)
    data = data if low is None else np.maximum(data, low)
    return [np.asarray(data if high is None else np.minimum(data, high))]


def _extreme(compute: Callable[..., Any]) -> Operator:
    def run(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
        values = present(inputs)
        result = values[0]
        for value in values[1:]:
            result = compute(result, value)
        return [np.asarray(result)]

    return run


def _depth_to_space(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, block = first(inputs), int(attributes["blocksize"])
    batch, channels, height, width = data.shape
    depth = channels // block**2
    if attributes.get("mode", "DCR") == "DCR":
        parts = data.reshape(batch, block, block, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = data.reshape(batch, depth, block, block, height, width).transpose(0, 1, 4, 2, 5, 3)
    return [parts.reshape(batch, depth, height * block, width * block)]


def _space_to_depth(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, block = first(inputs), int(attributes["blocksize"])
    batch, channels, height, width = data.shape
    parts = data.reshape(batch, channels, height // block, block, width // block, block).transpose(0, 3, 5, 1, 2, 4)
    return [parts.reshape(batch, channels * block**2, height // block, width // block)]


def _pad(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data = first(inputs)
    pads = integers(attributes, inputs, 1, "pads") or []
    axes = integers({}, inputs, 3, "axes") or list(range(data.ndim))
    if min(pads, default=0) < 0:
        raise ValueError("negative padding is not supported")
    widths = [(0, 0)] * data.ndim
    for number, axis in enumerate(axes):
        widths[axis] = (pads[number], pads[number + len(axes)])
    mode = str(attributes.get("mode", "constant"))
    if mode == "constant":
        value = optional(inputs, 2)
        return [np.pad(data, widths, constant_values=0 if value is None else value.item())]
    known: dict[str, Any] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
    return [np.pad(data, widths, mode=known[mode])]


def _affine_grid(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    """AffineGrid in the inputs' precision; the reference operator computes in float32."""
    theta, size = present(inputs)
    output_size = [int(length) for length in size[2:]]
    mesh = canonical_basis(output_size, bool(attributes.get("align_corners", 0)))
    return [map_points(theta, mesh, output_size)]


BASIC: dict[str, Operator] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Pow": _binary(np.power),
    "Neg": _binary(np.negative),
    "MatMul": _binary(np.matmul),
    "Equal": _binary(np.equal),
    "Range": _binary(np.arange),
    "Div": _divide,
    "Sum": _total,
    "Mean": _mean,
    "Identity": lambda attributes, inputs: [first(inputs)],
    "CastLike": _cast_like,
    "Dropout": lambda attributes, inputs: [first(inputs)],
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "ReduceSum": _reduce(np.sum),
    "ReduceMean": _reduce(np.mean),
    "Where": _where,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Compress": _compress,
    "Trilu": _triangle,
    "Clip": _clip,
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Relu": lambda attributes, inputs: [np.maximum(first(inputs), 0)],
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "BatchNormalization": _normalize,
    "Pad": _pad,
    "AffineGrid": _affine_grid,
    "Inverse": _binary(np.linalg.inv),
}
"""Operator -> function; it raises an exception for cases that it does not support."""
