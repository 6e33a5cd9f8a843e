"""Common operators in numpy, in the precision of their inputs; onnx's reference operators cover the others.

The pass evaluates a grid's nodes in float64, about a hundred times for a large model. These operators take
microseconds, whereas setting up a reference operator takes a fraction of a millisecond. Operators that repeat values
return views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.fusion.basis import canonical_basis, map_points

Attributes = Mapping[str, Any]
Operator = Callable[[Attributes, Sequence[Array | None]], list[Array]]


def _present(inputs: Sequence[Array | None]) -> list[Array]:
    return [value for value in inputs if value is not None]


def _first(inputs: Sequence[Array | None]) -> Array:
    value = inputs[0]
    assert value is not None
    return value


def _optional(inputs: Sequence[Array | None], index: int) -> Array | None:
    return inputs[index] if index < len(inputs) else None


def _integers(attributes: Attributes, inputs: Sequence[Array | None], index: int, name: str) -> list[int] | None:
    """Returns a list of integers that is an attribute in older opsets and an input in newer ones."""
    value = attributes.get(name)
    if value is None:
        value = _optional(inputs, index)
    return None if value is None else [int(item) for item in np.asarray(value).ravel()]


def _binary(compute: Callable[..., Any]) -> Operator:
    return lambda attributes, inputs: [np.asarray(compute(*_present(inputs)))]


def _divide(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    top, bottom = _present(inputs)
    if top.dtype.kind in "iu":
        return [np.asarray(np.trunc(top / bottom)).astype(top.dtype)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return [np.asarray(top / bottom)]


def _total(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    values = _present(inputs)
    total = values[0]
    for value in values[1:]:
        total = total + value
    return [np.asarray(total)]


def _mean(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [_total(attributes, inputs)[0] / len(_present(inputs))]


def _gemm(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    left, right = _present(inputs)[:2]
    left = left.T if attributes.get("transA", 0) else left
    right = right.T if attributes.get("transB", 0) else right
    product = attributes.get("alpha", 1.0) * (left @ right)
    bias = _optional(inputs, 2)
    return [product if bias is None else product + attributes.get("beta", 1.0) * bias]


def _einsum(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.asarray(np.einsum(str(attributes["equation"]).replace(" ", ""), *_present(inputs), optimize=True))]


def _transpose(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.transpose(_first(inputs), attributes.get("perm"))]


def _reshape(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, shape = _present(inputs)
    sizes = [int(size) for size in shape]
    if not attributes.get("allowzero", 0):
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return [data.reshape(sizes)]


def _flatten(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, axis = _first(inputs), attributes.get("axis", 1)
    axis += data.ndim if axis < 0 else 0
    return [data.reshape(int(np.prod(data.shape[:axis])), -1)]


def _squeeze(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    axes = _integers(attributes, inputs, 1, "axes")
    return [np.squeeze(_first(inputs), None if axes is None else tuple(axes))]


def _unsqueeze(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.expand_dims(_first(inputs), tuple(_integers(attributes, inputs, 1, "axes") or ()))]


def _expand(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, shape = _present(inputs)
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(int(size) for size in shape)))]


def _tile(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, repeats = _present(inputs)
    if all(count == 1 or size == 1 for count, size in zip(repeats, data.shape, strict=True)):
        return [np.broadcast_to(data, [int(c) * size for c, size in zip(repeats, data.shape, strict=True)])]
    return [np.tile(data, [int(count) for count in repeats])]


def _concat(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.concatenate(_present(inputs), axis=attributes["axis"])]


def _split(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data, axis = _first(inputs), attributes.get("axis", 0)
    sizes = _integers(attributes, inputs, 1, "split")
    if sizes is None:
        # The last part may be smaller.
        parts, length = attributes["num_outputs"], data.shape[axis]
        size = -(-length // parts)
        sizes = [size] * (parts - 1) + [length - size * (parts - 1)]
    return list(np.split(data, np.cumsum(sizes)[:-1], axis=axis))


def _slice(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data = _first(inputs)
    starts = _integers(attributes, inputs, 1, "starts") or []
    ends = _integers(attributes, inputs, 2, "ends") or []
    axes = _integers(attributes, inputs, 3, "axes") or list(range(len(starts)))
    steps = _integers({}, inputs, 4, "steps") or [1] * len(starts)
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
    data, indices = _present(inputs)
    return [np.take(data, indices.astype(np.int64), axis=attributes.get("axis", 0))]


def _reduce(compute: Callable[..., Any]) -> Operator:
    def run(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
        axes = _integers(attributes, inputs, 1, "axes")
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return [_first(inputs)]
        keep = bool(attributes.get("keepdims", 1))
        return [np.asarray(compute(_first(inputs), axis=tuple(axes) if axes else None, keepdims=keep))]

    return run


def _cast_like(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    """Casts between floats keep the input's precision."""
    data, target = _present(inputs)
    kept = target.dtype.kind == "f" and data.dtype.kind == "f"
    return [data if kept else data.astype(target.dtype)]


def _where(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    condition, left, right = _present(inputs)
    return [np.where(condition, left, right)]


def _scatter_nd(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    if attributes.get("reduction", "none") != "none":
        raise ValueError("ScatterND with a reduction is not supported")
    data, indices, updates = _present(inputs)
    result = np.array(data)
    result[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))] = updates
    return [result]


def _pad(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data = _first(inputs)
    pads = _integers(attributes, inputs, 1, "pads") or []
    axes = _integers({}, inputs, 3, "axes") or list(range(data.ndim))
    if min(pads, default=0) < 0:
        raise ValueError("negative padding is not supported")
    widths = [(0, 0)] * data.ndim
    for number, axis in enumerate(axes):
        widths[axis] = (pads[number], pads[number + len(axes)])
    mode = str(attributes.get("mode", "constant"))
    if mode == "constant":
        value = _optional(inputs, 2)
        return [np.pad(data, widths, constant_values=0 if value is None else value.item())]
    known: dict[str, Any] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
    return [np.pad(data, widths, mode=known[mode])]


def _affine_grid(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    """AffineGrid in the inputs' precision; the reference operator computes in float32."""
    theta, size = _present(inputs)
    output_size = [int(length) for length in size[2:]]
    mesh = canonical_basis(output_size, bool(attributes.get("align_corners", 0)))
    return [map_points(theta, mesh, output_size)]


OPERATORS: dict[str, Operator] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Neg": _binary(np.negative),
    "MatMul": _binary(np.matmul),
    "Equal": _binary(np.equal),
    "Range": _binary(np.arange),
    "Div": _divide,
    "Sum": _total,
    "Mean": _mean,
    "Identity": lambda attributes, inputs: [_first(inputs)],
    "CastLike": _cast_like,
    "Dropout": lambda attributes, inputs: [_first(inputs)],
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
    "ScatterND": _scatter_nd,
    "Pad": _pad,
    "AffineGrid": _affine_grid,
    "Inverse": _binary(np.linalg.inv),
}
"""Operator -> function; it raises an exception for cases that it does not support."""
