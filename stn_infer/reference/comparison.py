"""Compare grids and warped images with the reference's: grids in pixels, warped images in two tiers.

The comparison of outputs, and the policies on scale, noise and non-finite values, are in :mod:`stn_infer.deviation`.

A warped image is continuous in its sampling grid, except with ``nearest``, which jumps halfway between pixels. So it
is judged in two tiers:

- *interior*: every value must equal the float64 sampler's, up to the effect of float32 coordinates: the coordinate's
  error bound times the steepest slope of the image, plus the rounding of the weighted sum. No errors are averaged.
- *band*: output points whose exact coordinate is within that bound of a jump may read the pixel on the other side
  (a flip), but no third pixel.

Statistics tell whether flips are rounding noise or a mistake. Noise pushes up and down with equal probability, and at
an exact tie it crosses in at most half of the cases. All points of a row often have the same coordinate and flip
together, so each distinct coordinate counts once. With n distinct flips, of which m went up, m is tested against the
binomial distribution B(n, 1/2), two-sided. Of b distinct coordinates in the band, the number that flipped is tested
against B(b, 1/2), one-sided. Either test rejects below a probability of 1e-6, so that a hundred thousand correct runs
raise less than one false alarm. Rounding half up, where the definition says half to even, flips every second tie upward
and is detected with 21 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import comb

import numpy as np

from stn_infer.arrays import Array
from stn_infer.deviation import Level, largest_error
from stn_infer.reference.sampling import UNIT
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import Doubles, sample_at

# Rounding may flip a nearest sampler's pixel, which may change that sample's outputs by any amount.
_FLIPPED_SHARE = 0.02


@dataclass(frozen=True)
class Expected:
    """The outputs that every variant must return for ``inputs``.

    Attributes:
        inputs: one array per input, [N, ...], float32.
        outputs: one array per output, in the reference's type.
        may_flip: whether a sampler of the model is ``nearest``.
        scales: one per output, see :meth:`stn_infer.deviation.Level.scale`; empty: the scales of these outputs alone.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    may_flip: bool
    scales: tuple[float, ...] = ()

    def error(self, outputs: Sequence[Array]) -> float:
        """The largest error of ``outputs`` over its scale; infinite if an output is missing or a shape differs.

        Outputs that the reference does not have (theta) are ignored. With a nearest sampler, the worst 2 % of the
        samples are ignored too.
        """
        if len(outputs) < len(self.outputs):
            return float("inf")
        worst = 0.0
        scales = self.scales or [Level.of(expected).scale() for expected in self.outputs]
        for expected, actual, scale in zip(self.outputs, outputs, scales, strict=False):
            if expected.shape != actual.shape:
                return float("inf")
            error = largest_error(expected, actual)
            if error and self.may_flip and expected.ndim:
                each = sorted(map(largest_error, expected, actual))
                error = each[len(each) - 1 - int(len(each) * _FLIPPED_SHARE)]
            worst = max(worst, error / scale)
        return worst


SIGNIFICANCE = 1e-6
"""The probability below which a pattern of flips is not due to chance."""
FAR = 4.0
"""Distances are not measured for normalized coordinates beyond this, which lie well outside the image."""
_DEFINED = 1e5  # coordinates beyond are not compared, because runtimes differ there
_HALF_UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def grid_distance(sampler: SamplerSpec, expected: Array, actual: Array, size: Sequence[int]) -> tuple[float, float]:
    """The largest distance of a point, and the largest distance of one of the output's corners, in input pixels.

    A point's distance is the largest along an axis, a corner's is Euclidean. Coordinates beyond ``FAR`` are ignored.

    Args:
        sampler: how the grids are read.
        expected: the reference grid [N, *out, D].
        actual: the grid to judge, of the same shape.
        size: the spatial size of the sampled image.
    """
    wanted = sampler.pixels(expected.astype(np.float64), size)
    found = sampler.pixels(actual.astype(np.float64), size)
    near = np.isfinite(wanted) & (np.abs(expected) <= FAR)
    with np.errstate(invalid="ignore"):
        distance = np.where(near, np.abs(found - wanted), 0.0)
    distance = np.where(np.isnan(distance), np.inf, distance)
    if not distance.size:
        return 0.0, 0.0
    ends = [sorted({0, length - 1}) for length in distance.shape[1:-1]]
    corners = distance[(slice(None), *np.ix_(*ends))]
    return float(distance.max()), float(np.sqrt((corners**2).sum(axis=-1)).max())


@dataclass(frozen=True)
class Flips:
    """Nearest samples that read the pixel on the other side of a tie.

    Attributes:
        points: the number of output points compared.
        flipped: the number of them that flipped.
        coordinates: the number of distinct coordinates in the band around ties.
        up: the number of distinct coordinates at which a flip read the higher pixel.
        down: the number of distinct coordinates at which a flip read the lower pixel.
    """

    points: int = 0
    flipped: int = 0
    coordinates: int = 0
    up: int = 0
    down: int = 0

    def __add__(self, other: Flips) -> Flips:
        return Flips(
            self.points + other.points,
            self.flipped + other.flipped,
            self.coordinates + other.coordinates,
            self.up + other.up,
            self.down + other.down,
        )

    def problem(self) -> str | None:
        """Why these flips cannot be rounding noise; None if they can."""
        count = self.up + self.down
        if 2 * _tail(max(self.up, self.down), count) < SIGNIFICANCE:
            way, most = ("up", self.up) if self.up > self.down else ("down", self.down)
            return f"{most} of {count} flips at ties round {way}, which rounding noise does not explain"
        if _tail(count, self.coordinates) < SIGNIFICANCE:
            return f"{count} of {self.coordinates} coordinates at a tie flipped, expected at most half of them"
        return None


def _tail(successes: int, trials: int) -> float:
    """P(X >= successes) for X ~ B(trials, 1/2)."""
    if trials > 1000:  # normal approximation, with the continuity correction
        from statistics import NormalDist

        return 1 - NormalDist(trials / 2, trials**0.5 / 2).cdf(successes - 0.5)
    return float(sum(comb(trials, k) for k in range(successes, trials + 1)) / 2**trials)


@dataclass(frozen=True)
class WarpDeviation:
    """The deviation of a warped image from the float64 sampler's at the same grid.

    Attributes:
        max_error: the largest absolute difference, flips excluded.
        excess: the largest ratio of a difference to what float32 explains there; more than 1 fails.
        wrong: the number of output points with a larger difference than float32 explains.
        flips: the flips, with mode nearest.
    """

    max_error: float
    excess: float
    wrong: int
    flips: Flips

    def __add__(self, other: WarpDeviation) -> WarpDeviation:
        return WarpDeviation(
            max(self.max_error, other.max_error),
            max(self.excess, other.excess),
            self.wrong + other.wrong,
            self.flips + other.flips,
        )

    def problem(self) -> str | None:
        """What is wrong, as part of a message; None if the warped image is right."""
        if self.wrong:
            return f"{self.wrong} of {self.flips.points} points are wrong, by up to {self.max_error:.1e}" + (
                f", {self.excess:.0f} times what float32 explains" if np.isfinite(self.excess) else ""
            )
        return self.flips.problem()


def compare_warp(
    actual: Array, image: Array, grid: Array, bound: Array, sampler: SamplerSpec, dtype: str = "float32"
) -> WarpDeviation:
    """Judge the warped image ``actual`` in two tiers; see the module's docstring.

    Args:
        actual: [N, C, *out], the runtime's result.
        image: [N, C, *in], the image that it sampled.
        grid: [N, *out, D], float64, the exact grid.
        bound: [N, *out, D], the bound on float32's error of a point, in pixels.
        sampler: how it should sample.
        dtype: the image's type in the runtime.
    """
    if actual.shape != (*image.shape[:2], *grid.shape[1:-1]):
        return WarpDeviation(np.inf, np.inf, max(int(actual.size), 1), Flips(points=int(actual.size)))
    points = int(np.prod(actual.shape)) // max(actual.shape[1], 1)
    if not actual.size:
        return WarpDeviation(0.0, 0.0, 0, Flips())
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = sampler.pixels(grid.astype(np.float64), image.shape[2:])
        defined = (np.isfinite(pixels) & (np.abs(grid) <= _DEFINED) & np.isfinite(bound)).all(axis=-1)  # [N, *out]
    sound = np.isfinite(image.reshape(len(image), -1)).all(axis=1)
    defined = np.asarray(defined & sound.reshape(-1, *[1] * (grid.ndim - 2)))
    image = np.where(np.isfinite(image), image, 0.0)
    expected = sample_at(sampler, image, pixels)
    unit = _HALF_UNITS.get(dtype, UNIT)
    allowed = _allowed(image, bound, sampler) + 1.01 * unit * np.abs(expected) + (1e-7 if dtype == "float16" else 0)
    with np.errstate(invalid="ignore"):
        error = np.abs(actual.astype(np.float64) - expected)
    error = np.where(defined[:, None], np.where(np.isnan(error), np.inf, error), 0.0)
    off = np.asarray((error > allowed).any(axis=1))  # [N, *out]
    flips = Flips(points=points)
    if sampler.mode == "nearest":
        flipped, flips = _flips(actual, image, pixels, bound, sampler, off, defined, unit)
        off &= ~flipped
        error = np.where(flipped[:, None], 0.0, error)
    excess = float((error / np.maximum(allowed, 1e-30)).max())
    return WarpDeviation(float(error.max()), excess if off.any() else min(excess, 1.0), int(off.sum()), flips)


def _allowed(image: Array, bound: Array, sampler: SamplerSpec) -> Doubles:
    """The difference that float32 explains for a value: [N, 1, *out]."""
    values = image.astype(np.float64)
    peak = np.abs(values).reshape(len(values), -1).max(axis=1)  # [N]
    spread = (-1, *[1] * (bound.ndim - 1))
    if sampler.mode == "nearest":
        return np.zeros((len(values), *[1] * (bound.ndim - 1)))
    # the slope of cubic interpolation is less than four times the steepest step
    factor, operations = (4, 64) if sampler.mode == "bicubic" else (1, 16)
    allowed = np.broadcast_to((operations * UNIT * peak).reshape(spread), (len(values), 1, *bound.shape[1:-1])).copy()
    outside = 1 if sampler.padding_mode == "zeros" else 0
    for axis in range(bound.shape[-1]):
        width = [(0, 0)] * values.ndim
        width[values.ndim - 1 - axis] = (outside, outside)
        steps = np.abs(np.diff(np.pad(values, width), axis=values.ndim - 1 - axis))
        steepest = steps.reshape(len(values), -1).max(axis=1, initial=0.0)  # [N]
        allowed += (
            factor * steepest.reshape(spread) * np.where(np.isfinite(bound[..., axis]), bound[..., axis], 0)[:, None]
        )
    return allowed


def _flips(
    actual: Array,
    image: Array,
    pixels: Doubles,
    bound: Array,
    sampler: SamplerSpec,
    off: Array,
    defined: Array,
    unit: float,
) -> tuple[Array, Flips]:
    """Whether each point out of tolerance is a flip [N, *out], and the statistics of the flips."""
    rank = pixels.shape[-1]
    reach = np.maximum(bound, 1e-12)
    with np.errstate(invalid="ignore"):
        at_tie = (np.abs(pixels - np.floor(pixels) - 0.5) <= reach) & defined[..., None]  # [N, *out, D]
    flipped = np.zeros(off.shape, bool)
    direction = np.zeros(pixels.shape, np.int8)
    suspects = off & at_tie.any(axis=-1)
    if suspects.any():
        for signs in product((1, -1), repeat=rank):
            nudge = np.where(at_tie, np.array(signs) * 2 * reach, 0.0)
            other = sample_at(sampler, image, pixels + nudge)
            with np.errstate(invalid="ignore"):
                same = (np.abs(actual - other) <= 1.01 * unit * np.abs(other)).all(axis=1) & suspects & ~flipped
            flipped |= same
            direction = np.where(same[..., None] & at_tie, np.array(signs, np.int8), direction)
    sizes = np.array(image.shape[2:][::-1], np.float64)
    # only points with one axis at a tie, inside the image: outside, padding may reverse the direction of a flip
    single = at_tie & (at_tie.sum(axis=-1, keepdims=True) == 1) & (pixels > 0) & (pixels < sizes - 1)
    coordinates = up = down = 0
    for axis in range(rank):
        chosen = single[..., axis]
        places = np.round(pixels[..., axis][chosen], 9)
        ways = direction[..., axis][chosen]
        coordinates += len(np.unique(places))
        up += len(np.unique(places[ways > 0]))
        down += len(np.unique(places[ways < 0]))
    return flipped, Flips(int(np.prod(off.shape)), int(flipped.sum()), coordinates, up, down)
