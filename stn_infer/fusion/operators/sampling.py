"""ONNX's GridSample in the precision of its inputs, for images and volumes.

Source: the ONNX operator (opset 20); the results are PyTorch's ``grid_sample`` and onnxruntime's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.fusion.operators.inputs import Attributes, Operator, present
from stn_infer.samplers import SamplerSpec

Taps = tuple[NDArray[np.int64], NDArray[np.float64]]


def _reflected(x: Array, size: int, corners: bool) -> Array:
    """Positions reflected at the ends of an axis: at the outermost centers (``corners``), or half a pixel beyond."""
    low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
    if high <= low:
        return np.zeros_like(x)
    x = np.abs(x - low)
    turns, rest = np.divmod(x, high - low)
    return np.where(turns % 2 == 0, rest + low, high - rest)


def _taps(x: NDArray[np.float64], size: int, spec: SamplerSpec) -> Taps:
    """The elements [T, ...] of an axis that are read at each position [...], and their weights."""
    if spec.padding_mode == "border" and spec.mode != "bicubic":
        x = np.clip(x, 0, size - 1)
    elif spec.padding_mode == "reflection" and spec.mode != "bicubic":
        x = np.clip(_reflected(x, size, spec.align_corners), 0, size - 1)
    if spec.mode == "nearest":
        taps, weights = np.rint(x)[None], np.ones((1, *x.shape))
    elif spec.mode == "bilinear":
        low = np.floor(x)
        taps, weights = np.stack([low, low + 1]), np.stack([low + 1 - x, x - low])
    else:
        low, a = np.floor(x), -0.75
        taps = low + np.arange(-1, 3).reshape(4, *[1] * x.ndim)
        t = np.abs(x - taps)
        inner = ((a + 2) * t - (a + 3)) * t * t + 1
        weights = np.where(t <= 1, inner, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a)
        if spec.padding_mode == "reflection":
            taps = _reflected(taps, size, spec.align_corners)
    if spec.padding_mode == "zeros":
        weights = np.where((taps >= 0) & (taps < size), weights, 0.0)
    return np.clip(taps, 0, size - 1).astype(np.int64), weights


def _grid_sample(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    image, grid = present(inputs)
    spec = SamplerSpec.of(
        str(attributes.get("mode", "linear")),
        str(attributes.get("padding_mode", "zeros")),
        bool(attributes.get("align_corners", 0)),
    )
    sizes, output = image.shape[2:], grid.shape[1:-1]
    pixels = spec.pixels(grid.astype(np.float64), sizes).reshape(len(grid), -1, len(sizes))
    axes = [_taps(pixels[..., len(sizes) - 1 - axis], size, spec) for axis, size in enumerate(sizes)]
    values = np.zeros((*image.shape[:2], prod(output)), np.result_type(image.dtype, np.float64))
    samples = np.arange(len(image))[:, None]
    for chosen in product(*(range(len(taps)) for taps, _ in axes)):
        index = [taps[number] for (taps, _), number in zip(axes, chosen, strict=True)]
        weight = np.prod([weights[number] for (_, weights), number in zip(axes, chosen, strict=True)], axis=0)
        read = image[(samples, slice(None), *index)]  # [N, P, C]
        values += (read * weight[..., None]).transpose(0, 2, 1)
    return [values.reshape(*image.shape[:2], *output)]


SAMPLING: dict[str, Operator] = {"GridSample": _grid_sample}
"""Operator -> function."""
