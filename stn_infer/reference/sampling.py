"""Grid sampling in float64 numpy: the reference for every runtime's sampler, and a bound on float32's coordinates.

The definition is that of ONNX's GridSample and of ``torch.nn.functional.grid_sample``. Non-finite coordinates lie
outside the image: zeros padding gives 0, the other padding modes read index 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.samplers import MODES, PADDING_MODES, Rounding, SamplerSpec

Doubles = NDArray[np.float64]

UNIT = 2.0**-24
"""float32's unit roundoff: the relative error of one operation."""

_CUBIC = -0.75
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
        return [(_padded(spec, first + i, length), _keys(np.abs(t - i))) for i in (-1, 0, 1, 2)]
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


def mistakes(spec: SamplerSpec, rank: int) -> dict[str, SamplerSpec]:
    """Variants of a sampler of images or volumes (``rank`` 2 or 3) with one mistake each, by the mistake's name."""
    found = {
        f"{mode} sampling instead of {spec.mode}": replace(spec, mode=mode)
        for mode in MODES
        if mode != spec.mode and not (rank == 3 and mode == "bicubic")
    }
    found |= {
        f"{padding} padding instead of {spec.padding_mode}": replace(spec, padding_mode=padding)
        for padding in PADDING_MODES
        if padding != spec.padding_mode
    }
    other = not spec.align_corners
    found[f"align_corners={other} instead of {spec.align_corners}"] = replace(spec, align_corners=other)
    if spec.mode == "nearest":
        found["rounding half up instead of half to even"] = replace(spec, rounding="half up")
        found["rounding down instead of to the nearest pixel"] = replace(spec, rounding="down")
    return found


def _keys(distance: Doubles) -> Doubles:
    """Keys' cubic convolution kernel (1981) with a = -0.75, at distances up to 2."""
    a, d = _CUBIC, distance
    return np.where(
        d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, np.where(d < 2, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a, 0.0)
    )


def coordinate_bound(
    grid: Array,
    size: Sequence[int],
    terms: Array | None = None,
    count: int = 0,
    denominator: Array | None = None,
) -> Doubles:
    """Bound the error of a sampling point computed in float32, along each axis, in pixels.

    The bound is the standard forward error bound (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): the
    error of a sum of K products is at most (K + 1) u times the sum of their magnitudes, in any order; u = 2^-24. A few
    more operations turn the sum into a pixel index.

    Args:
        grid: the exact grid [N, *out, D], float64.
        size: the image's spatial size.
        terms: sum over k of |theta basis|, [N, *out, D]; None if the runtime was given the grid itself.
        count: K.
        denominator: for a projective grid: [N, *out, 2], the third row's value and its sum of magnitudes.

    Returns:
        [N, *out, D]; infinite where no bound holds.
    """
    scale = np.array(tuple(size)[::-1], np.float64) / 2
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        off = 6 * UNIT * (np.abs(grid) + 1)
        # an affine kernel may compute the rows x and y itself, with three more roundings
        sum_off = (count + 5) * UNIT
        if terms is not None and denominator is None:
            off = off + sum_off * terms
        elif terms is not None and denominator is not None:
            w, w_terms = np.abs(denominator[..., :1]), denominator[..., 1:]
            w_off = sum_off * w_terms
            off = off + (sum_off * terms + np.abs(grid) * w_off) / np.maximum(w - w_off, 0.0)
        bound = off * scale
    return np.where(np.isfinite(bound), bound, np.inf)
