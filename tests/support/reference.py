"""The reference sampler: slow, obvious, float64 numpy. Everything that samples is compared with it.

It follows the ONNX operators GridSample and AffineGrid. Where those leave open what happens, as for coordinates that
are not finite, it is what this project defines: such a sample lies outside (zeros padding gives 0, the other two read
index 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float64 = NDArray[np.float64]

CUBIC_A = -0.75
"""The free coefficient of the cubic convolution kernel (Keys 1981); ONNX and PyTorch take -0.75."""

MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}
"""Both spellings of a mode: up to opset 19 (and PyTorch's), and from opset 20 on."""

PADDING_MODES = ("zeros", "border", "reflection")


def grid_sample(
    input: Array, grid: Array, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> Float64:
    """Sample ``input`` where ``grid`` says.

    Args:
        input: [N, C, H, W] or [N, C, D, H, W].
        grid: [N, *out, 2] as (x, y), or [N, *out, 3] as (x, y, z); -1 and 1 are the borders.
        mode: nearest, bilinear/linear or bicubic/cubic.
        padding_mode: zeros, border or reflection.
        align_corners: whether -1 and 1 are the centers of the border pixels, or their outer edges.

    Returns:
        [N, C, *out].
    """
    input, grid = np.asarray(input, np.float64), np.asarray(grid, np.float64)
    batch, channels, *sizes = input.shape
    rank = len(sizes)
    assert grid.shape[0] == batch and grid.shape[-1] == rank and padding_mode in PADDING_MODES
    out = grid.shape[1:-1]
    points = int(np.prod(out))
    # One array [N, P] of pixel coordinates an axis, in the input's axis order: the grid has x, the last axis, first.
    with np.errstate(invalid="ignore", over="ignore"):
        coordinates = [
            unnormalize(grid[..., rank - 1 - axis].reshape(batch, points), size, align_corners)
            for axis, size in enumerate(sizes)
        ]
    coordinates = [np.where(np.isfinite(at), at, _outside(padding_mode)) for at in coordinates]
    result = np.zeros((batch, channels, points))
    axes = [_taps(at, size, mode, padding_mode, align_corners) for at, size in zip(coordinates, sizes, strict=True)]
    for taps in product(*axes):
        weight = np.prod([weight for _, weight in taps], axis=0)
        result += weight[:, None] * _read(input, [index for index, _ in taps])
    return result.reshape(batch, channels, *out)


def unnormalize(x: Float64, size: int, align_corners: bool) -> Float64:
    """Pixel coordinates of normalized ones: 0 is the center of the first pixel, ``size - 1`` that of the last."""
    return (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2


def pad(at: Float64, size: int, padding_mode: str, align_corners: bool) -> Float64:
    """Pixel coordinates brought into the image; with zeros they stay where they are."""
    if padding_mode == "zeros":
        return at
    if padding_mode == "reflection":
        at = fold(at, 0, size - 1) if align_corners else fold(at, -0.5, size - 0.5)
    return np.clip(at, 0, size - 1)


def fold(at: Float64, low: float, high: float) -> Float64:
    """``at`` reflected at ``low`` and ``high`` until it lies between them; 0 where they are the same."""
    span = high - low
    if span == 0:
        return np.zeros_like(at)
    distance = np.abs(at - low)
    turns, rest = np.divmod(distance, span)
    return np.where(turns % 2 == 0, low + rest, high - rest)


def affine_grid(theta: Array, size: Sequence[int], align_corners: bool = False) -> Float64:
    """The grid [N, *size, D] of affine ``theta`` [N, D, D + 1] (paper, eq. 1), (x, y) or (x, y, z)."""
    axes = [centers(length, align_corners) for length in size]
    mesh = np.meshgrid(*axes, indexing="ij")[::-1]
    target = np.stack([*mesh, np.ones_like(mesh[0])], axis=-1)  # [*size, D + 1]
    return np.einsum("ndk,...k->n...d", np.asarray(theta, np.float64), target)


def centers(size: int, align_corners: bool) -> Float64:
    """The normalized coordinates of pixel centers; the only one is 0."""
    if align_corners:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(size)
    return (2 * np.arange(size, dtype=np.float64) + 1) / size - 1


def spatial_grid(
    theta: Array,
    basis: Array,
    output_size: Sequence[int],
    projective: bool = False,
    w_min: float | None = None,
    offset: Sequence[float] = (),
) -> Float64:
    """The grid [N, *output_size, D] of ``theta`` [N, D, K] and ``basis`` [K, P].

    Projective: theta is [N, D + 1, K], and its last row, at least ``w_min``, divides the others; ``offset`` is added
    after.
    """
    points = np.einsum("ndk,kp->ndp", np.asarray(theta, np.float64), np.asarray(basis, np.float64))
    if projective:
        with np.errstate(divide="ignore", invalid="ignore"):
            w = points[:, -1:] if w_min is None else np.maximum(points[:, -1:], w_min)  # NaN stays NaN
            points = points[:, :-1] / w + (np.array(offset)[:, None] if len(offset) else 0.0)
    return np.moveaxis(points, 1, 2).reshape(len(theta), *output_size, points.shape[1])


def _outside(padding_mode: str) -> float:
    """The pixel coordinate that stands for one that is not finite: beyond every tap, or the first pixel."""
    return -10.0 if padding_mode == "zeros" else 0.0


def _taps(at: Float64, size: int, mode: str, padding_mode: str, align_corners: bool) -> list[tuple[Float64, Float64]]:
    """The indices that one axis reads at pixel coordinates ``at``, with their weights."""
    if MODES[mode] == "cubic":  # pads each of its taps
        base = np.floor(at)
        return [
            (pad(base + tap, size, padding_mode, align_corners), _cubic(np.abs(at - base - tap)))
            for tap in (-1, 0, 1, 2)
        ]
    at = pad(at, size, padding_mode, align_corners)
    if MODES[mode] == "nearest":
        return [(np.rint(at), np.ones_like(at))]  # half to even
    base = np.floor(at)
    return [(base, 1 - (at - base)), (base + 1, at - base)]


def _cubic(distance: Float64) -> Float64:
    """Keys' kernel: a cubic up to distance 1, another up to 2."""
    a, d = CUBIC_A, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, far)


def _read(input: Float64, indices: list[Float64]) -> Float64:
    """``input`` [N, C, *S] at one index [N, P] an axis, as [N, C, P]; 0 where an index lies outside."""
    sizes = input.shape[2:]
    inside = np.ones(indices[0].shape, bool)
    for index, size in zip(indices, sizes, strict=True):
        inside &= (index >= 0) & (index < size)
    if 0 in input.shape:
        return np.zeros((*input.shape[:2], indices[0].shape[1]))
    flat = np.ravel_multi_index([np.where(inside, index, 0).astype(np.int64) for index in indices], sizes)  # [N, P]
    values = np.take_along_axis(input.reshape(*input.shape[:2], -1), flat[:, None], axis=2)
    return np.where(inside[:, None], values, 0.0)
