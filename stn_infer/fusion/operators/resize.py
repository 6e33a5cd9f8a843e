"""ONNX's Resize in float64: one matrix [out, in] per axis.

Source: the ONNX operator (opset 19). Where the text leaves a choice, the results are onnxruntime's: an axis with scale
1 is copied, and nearest neighbors are found from coordinates in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array, along
from stn_infer.fusion.operators.inputs import Attributes, Operator, first, integers, optional
from stn_infer.sampling import CUBIC, cubic_weight

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized: its lengths, its scale (float32), and the part of it that is cropped."""

    before: int
    after: int
    scale: np.float32
    start: float = 0.0
    end: float = 1.0


def _coordinates(how: str, axis: _Axis, kind: type[Any]) -> NDArray[Any]:
    """The position in the input of each output element, computed in ``kind``."""
    x: NDArray[Any] = np.arange(axis.after).astype(kind)
    scale, half = kind(axis.scale), kind(0.5)
    before, after = kind(axis.before), kind(axis.after)
    if how == "asymmetric":
        return np.asarray(x / scale)
    if how == "half_pixel" or (how == "pytorch_half_pixel" and axis.after > 1):
        return np.asarray((x + half) / scale - half)
    if how == "pytorch_half_pixel":
        return np.zeros_like(x)
    if how == "half_pixel_symmetric":
        adjustment = after / (scale * before)
        offset = before / kind(2) * (kind(1) - adjustment)
        return np.asarray(float(offset) + (x.astype(np.float64) + 0.5) / float(scale) - 0.5).astype(kind)
    if how == "align_corners":
        return np.asarray(0 * x if axis.after == 1 else x * (before - kind(1)) / (after - kind(1)))
    if how == "tf_half_pixel_for_nn":
        return np.asarray((x + half) / scale)
    if how == "tf_crop_and_resize":
        start, end, last = kind(axis.start), kind(axis.end), before - kind(1)
        if axis.after > 1:
            return np.asarray(start * last + x * (end - start) * last / (after - kind(1)))
        return np.full_like(x, half * (start + end) * last)
    raise ValueError(f"the coordinate mode {how!r} is not known")


def _positions(how: str, axis: _Axis, kind: type[Any] = np.float64) -> NDArray[Any]:
    if axis.scale == 1 and axis.before == axis.after:
        return np.arange(axis.after).astype(kind)
    return _coordinates(how, axis, kind)


def _nearest(x: NDArray[Any], mode: str) -> NDArray[np.int64]:
    if mode == "floor":
        found = np.floor(x)
    elif mode == "ceil":
        found = np.ceil(x)
    elif mode == "round_prefer_ceil":
        found = np.floor(x + x.dtype.type(0.5))
    elif mode == "round_prefer_floor":
        # A position that rounding put slightly above the middle is still in the middle.
        found = np.ceil(x.astype(np.float64) - 0.5 - 1e-6)
    else:
        raise ValueError(f"the nearest mode {mode!r} is not known")
    return np.asarray(found.astype(np.int64))


def _triangle(distance: Float64) -> Float64:
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(distance)))


def _kernel_matrix(
    axis: _Axis, x: Float64, kernel: Callable[[Float64], Float64], radius: int, stretch: float, exclude: bool
) -> Float64:
    """Weights of the input elements around each position; taps outside the axis repeat its ends, or are excluded.

    Args:
        axis: the axis.
        x: positions.
        kernel: the weight at a distance.
        radius: the kernel's.
        stretch: at least 1: how much wider the kernel is (antialiasing).
        exclude: whether taps outside are excluded.
    """
    reach = int(np.ceil(radius * stretch)) + 1
    taps = np.floor(x).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    weights = kernel((taps - x[:, None]) / stretch)
    inside = (taps >= 0) & (taps < axis.before)
    if exclude:
        weights = np.where(inside, weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((axis.after, axis.before))
    np.add.at(matrix, (np.arange(axis.after)[:, None], np.clip(taps, 0, axis.before - 1)), weights)
    return matrix


def _matrix(attributes: Attributes, axis: _Axis) -> Float64:
    mode, how = str(attributes.get("mode", "nearest")), str(attributes["coordinate_transformation_mode"])
    if mode == "nearest":
        nearest = _nearest(_positions(how, axis, np.float32), str(attributes.get("nearest_mode", "round_prefer_floor")))
        matrix = np.zeros((axis.after, axis.before))
        matrix[np.arange(axis.after), np.clip(nearest, 0, axis.before - 1)] = 1
        return matrix
    x = _positions(how, axis)
    antialias = bool(attributes.get("antialias", 0))
    stretch = max(1.0, 1.0 / float(axis.scale)) if antialias else 1.0
    exclude = bool(attributes.get("exclude_outside", 0))
    if mode == "linear":
        x = x if antialias else np.clip(x, 0, axis.before - 1)
        return _kernel_matrix(axis, x, _triangle, 1, stretch, exclude)
    if mode == "cubic":
        kernel = partial(cubic_weight, a=float(attributes.get("cubic_coeff_a", CUBIC)))
        return _kernel_matrix(axis, x, kernel, 2, stretch, exclude)
    raise ValueError(f"the mode {mode!r} is not known")


def _axes(attributes: Attributes, inputs: Sequence[Array | None], shape: Sequence[int]) -> list[_Axis]:
    """How each axis of a tensor of this shape is resized."""
    rank = len(shape)
    named = [axis % rank for axis in attributes.get("axes") or range(rank)]
    regions, factors, sizes = optional(inputs, 1), optional(inputs, 2), integers({}, inputs, 3, "sizes")
    found = [_Axis(length, length, np.float32(1)) for length in shape]
    cropped = attributes["coordinate_transformation_mode"] == "tf_crop_and_resize"
    ends = [(0.0, 1.0)] * len(named)
    if cropped and regions is not None and regions.size:
        ends = [(float(regions[i]), float(regions[i + len(named)])) for i in range(len(named))]
    before = np.array([shape[axis] for axis in named], np.float32)
    if sizes:
        wanted = np.array(sizes, np.float32)
        scales = wanted / before
        policy = attributes.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scales = np.full_like(scales, scales.min() if policy == "not_larger" else scales.max())
            wanted = np.floor(scales * before + np.float32(0.5))
    elif factors is not None and factors.size:
        scales = np.asarray(factors, np.float32)
        wanted = np.floor(before * scales)
    else:
        raise ValueError("neither a scale nor a size is given")
    for axis, after, scale, (start, end) in zip(named, wanted, scales, ends, strict=True):
        found[axis] = _Axis(shape[axis], int(after), np.float32(scale), start, end)
    return found


def _resize(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    data = first(inputs)
    values = {"coordinate_transformation_mode": "half_pixel", **attributes}
    how = str(values["coordinate_transformation_mode"])
    result, outside = data, np.zeros([1] * data.ndim, bool)
    for number, axis in enumerate(_axes(values, inputs, data.shape)):
        if axis.scale == 1 and axis.before == axis.after and (axis.start, axis.end) == (0, 1):
            continue
        result = along(result, number, _matrix(values, axis))
        if how == "tf_crop_and_resize":
            x = _positions(how, axis, np.float32)
            beyond = (x < 0) | (x > axis.before - 1)
            outside = outside | beyond.reshape([-1 if other == number else 1 for other in range(data.ndim)])
    if outside.any():
        result = np.where(outside, float(attributes.get("extrapolation_value", 0.0)), result)
    return [result]


RESIZE: dict[str, Operator] = {"Resize": _resize}
"""Operator -> function."""
