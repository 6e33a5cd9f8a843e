"""Grid sampling in float64 numpy.

The definition is that of ONNX's GridSample and of ``torch.nn.functional.grid_sample``. Non-finite coordinates lie
outside the image: zeros padding gives 0, the other padding modes read index 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.samplers import Rounding, SamplerSpec

Doubles = NDArray[np.float64]

#: The coefficient of the cubic kernel, as in PyTorch and ONNX.
CUBIC = -0.75
_ROUND: dict[Rounding, Callable[[Doubles], Doubles]] = {
    "half to even": np.rint,
    "half up": lambda at: np.floor(at + 0.5),
    "down": np.floor,
}


def sample(spec: SamplerSpec, image: Array, grid: Array) -> Doubles:
    """Sample ``image`` [N, C, *in] at ``grid`` [N, *out, D] in float64; returns [N, C, *out]."""
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = spec.pixels(grid.astype(np.float64), image.shape[2:])
    return sample_at(spec, image, pixels)


def sample_at(spec: SamplerSpec, image: Array, pixels: Array) -> Doubles:
    """Sample ``image`` [N, C, *in] at pixel indices [N, *out, D], x first, in float64; returns [N, C, *out]."""
    image = image.astype(np.float64)
    batch, channels, *size = image.shape
    out = pixels.shape[1:-1]
    points = int(np.prod(out))
    result = np.zeros((batch, channels, points))
    if not result.size or not all(size):
        return result.reshape(batch, channels, *out)
    flat = image.reshape(batch, channels, -1)
    axes = [
        _taps(spec, pixels[..., -1 - axis].reshape(batch, points).astype(np.float64), length)
        for axis, length in enumerate(size)
    ]
    for taps in product(*axes):
        offset = np.zeros((batch, points), np.int64)
        weight = np.ones((batch, points))
        for (at, share), length in zip(taps, size, strict=True):
            inside = (at >= 0) & (at <= length - 1)
            offset = offset * length + np.where(inside, at, 0).astype(np.int64)
            weight = weight * np.where(inside, share, 0.0)
        result += weight[:, None] * np.take_along_axis(flat, offset[:, None], axis=2)
    return result.reshape(batch, channels, *out)


def _taps(spec: SamplerSpec, at: Doubles, length: int) -> list[tuple[Doubles, Doubles]]:
    """Index and weight of each tap along one axis at pixel indices ``at``; an index may lie outside the image."""
    at = np.where(np.isfinite(at), at, -8.0 if spec.padding_mode == "zeros" else 0.0)
    at = np.clip(at, -(2.0**51), 2.0**51)  # beyond, float64 cannot hold half pixels
    if spec.mode == "bicubic":  # each tap is padded separately
        first = np.floor(at)
        t = at - first
        return [(_padded(spec, first + i, length), cubic_weight(t - i)) for i in (-1, 0, 1, 2)]
    at = _padded(spec, at, length)
    if spec.mode == "nearest":
        return [(_ROUND[spec.rounding](at), np.ones_like(at))]
    first = np.floor(at)
    return [(first, first + 1 - at), (first + 1, at - first)]


def _padded(spec: SamplerSpec, at: Doubles, length: int) -> Doubles:
    if spec.padding_mode == "zeros":
        return at
    if spec.padding_mode == "reflection":
        low, high = (0.0, length - 1.0) if spec.align_corners else (-0.5, length - 0.5)
        if high == low:
            return np.zeros_like(at)
        # a triangle wave of period 2 (high - low)
        phase = np.mod(at - low, 2 * (high - low))
        at = low + np.minimum(phase, 2 * (high - low) - phase)
    return np.clip(at, 0, length - 1)


def cubic_weight(distance: Doubles, a: float = CUBIC) -> Doubles:
    """Keys' cubic convolution kernel (1981) with the coefficient ``a``."""
    d = np.abs(distance)
    return np.where(
        d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, np.where(d < 2, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a, 0.0)
    )
