"""Grid sampling in float64 numpy: what every runtime's sampler is held to, and how far float32 may be from it.

The definition is that of ONNX's GridSample and of ``torch.nn.functional.grid_sample``. Coordinates that are not finite
lie outside: zeros padding gives 0, the others read index 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array

Doubles = NDArray[np.float64]
Rounding = Literal["half to even", "half up", "down"]

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")
UNIT = 2.0**-24
"""float32's unit roundoff: the relative error of one operation."""

_CUBIC = -0.75
_SPELLINGS = {"linear": "bilinear", "cubic": "bicubic"}
_ROUND: dict[Rounding, Callable[[Doubles], Doubles]] = {
    "half to even": np.rint,
    "half up": lambda at: np.floor(at + 0.5),
    "down": np.floor,
}


@dataclass(frozen=True)
class Sampler:
    """How a grid is read.

    Attributes:
        mode: bilinear, nearest or bicubic.
        padding_mode: zeros, border or reflection.
        align_corners: whether -1 and 1 are the outermost pixels' centers or their outer edges.
        rounding: of nearest; every runtime should round half to even, the others serve to name a mistake.
    """

    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    rounding: Rounding = "half to even"

    @classmethod
    def of(cls, mode: str, padding_mode: str, align_corners: bool) -> Sampler:
        """From attributes, in either spelling of the modes."""
        return cls(_SPELLINGS.get(mode, mode), padding_mode, bool(align_corners))

    def __str__(self) -> str:
        return f"{self.mode}, {self.padding_mode}, align_corners={self.align_corners}"

    def pixels(self, grid: Array, size: Sequence[int]) -> Array:
        """Coordinates [..., D] in [-1, 1] as fractional pixel indices, x first, in their own type."""
        sizes = np.array(tuple(size)[::-1], grid.dtype)
        return np.asarray((grid + 1) / 2 * (sizes - 1) if self.align_corners else ((grid + 1) * sizes - 1) / 2)

    def normalized(self, pixels: Array, size: Sequence[int]) -> Doubles:
        """The grid whose points lie at pixel indices [..., D]: :meth:`pixels` backwards, in float64."""
        sizes = np.array(tuple(size)[::-1], np.float64)
        if self.align_corners:
            return np.asarray(2 * pixels / np.maximum(sizes - 1, 1) - 1)
        return np.asarray((2 * pixels + 1) / sizes - 1)

    def sample(self, image: Array, grid: Array) -> Doubles:
        """``image`` [N, C, *in] read at ``grid`` [N, *out, D] in float64: [N, C, *out]."""
        with np.errstate(invalid="ignore", over="ignore"):
            pixels = self.pixels(grid.astype(np.float64), image.shape[2:])
        return self.sample_at(image, pixels)

    def sample_at(self, image: Array, pixels: Array) -> Doubles:
        """``image`` [N, C, *in] read at pixel indices [N, *out, D], x first, in float64: [N, C, *out]."""
        image = image.astype(np.float64)
        batch, channels, *size = image.shape
        out = pixels.shape[1:-1]
        points = int(np.prod(out))
        result = np.zeros((batch, channels, points))
        if not result.size or not all(size):
            return result.reshape(batch, channels, *out)
        flat = image.reshape(batch, channels, -1)
        axes = [
            self._taps(pixels[..., -1 - axis].reshape(batch, points).astype(np.float64), length)
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

    def _taps(self, at: Doubles, length: int) -> list[tuple[Doubles, Doubles]]:
        """What is read along one axis at pixel indices ``at``: index (maybe outside) and weight of each tap."""
        at = np.where(np.isfinite(at), at, -8.0 if self.padding_mode == "zeros" else 0.0)
        at = np.clip(at, -(2.0**51), 2.0**51)  # beyond, neighbors can't be told apart
        if self.mode == "bicubic":  # each tap is padded by itself
            first = np.floor(at)
            t = at - first
            return [(self._padded(first + i, length), _keys(np.abs(t - i))) for i in (-1, 0, 1, 2)]
        at = self._padded(at, length)
        if self.mode == "nearest":
            return [(_ROUND[self.rounding](at), np.ones_like(at))]
        first = np.floor(at)
        return [(first, first + 1 - at), (first + 1, at - first)]

    def _padded(self, at: Doubles, length: int) -> Doubles:
        if self.padding_mode == "zeros":
            return at
        if self.padding_mode == "reflection":
            low, high = (0.0, length - 1.0) if self.align_corners else (-0.5, length - 0.5)
            if high == low:
                return np.zeros_like(at)
            # a triangle wave of period 2 (high - low)
            phase = np.mod(at - low, 2 * (high - low))
            at = low + np.minimum(phase, 2 * (high - low) - phase)
        return np.clip(at, 0, length - 1)

    def variants(self, rank: int) -> dict[str, Sampler]:
        """What one mistake would make of this sampler, by how a message names it."""
        found = {
            f"{mode} sampling instead of {self.mode}": replace(self, mode=mode)
            for mode in MODES
            if mode != self.mode and not (rank == 3 and mode == "bicubic")
        }
        found |= {
            f"{padding} padding instead of {self.padding_mode}": replace(self, padding_mode=padding)
            for padding in PADDING_MODES
            if padding != self.padding_mode
        }
        other = not self.align_corners
        found[f"align_corners={other} instead of {self.align_corners}"] = replace(self, align_corners=other)
        if self.mode == "nearest":
            found["rounding half up instead of half to even"] = replace(self, rounding="half up")
            found["rounding down instead of to the nearest pixel"] = replace(self, rounding="down")
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
    """How far float32 arithmetic may put a sampling point from where it belongs, along each axis, in pixels.

    The usual forward error bound (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): a sum of K products is
    off by at most (K + 1) u times the sum of their magnitudes, whatever its order; u = 2^-24. A few operations more
    turn it into a pixel index.

    Args:
        grid: the exact grid [N, *out, D], float64.
        size: the image's spatial size.
        terms: sum over k of |theta basis|, [N, *out, D]; None where the runtime was given the grid itself.
        count: K.
        denominator: of a projective grid: [N, *out, 2], the third row's value and its sum of magnitudes.

    Returns:
        [N, *out, D]; infinite where nothing can be promised.
    """
    scale = np.array(tuple(size)[::-1], np.float64) / 2
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        off = 6 * UNIT * (np.abs(grid) + 1)
        # an affine kernel may make the rows x and y itself, with three roundings more
        sum_off = (count + 5) * UNIT
        if terms is not None and denominator is None:
            off = off + sum_off * terms
        elif terms is not None and denominator is not None:
            w, w_terms = np.abs(denominator[..., :1]), denominator[..., 1:]
            w_off = sum_off * w_terms
            off = off + (sum_off * terms + np.abs(grid) * w_off) / np.maximum(w - w_off, 0.0)
        bound = off * scale
    return np.where(np.isfinite(bound), bound, np.inf)
