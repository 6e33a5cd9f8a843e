"""How grids and warped images differ from the reference's: grids in pixels, warped images in two tiers.

Outputs, and the policies on scale, noise and what is not finite, are in :mod:`stn_infer.deviation`.

A warped image is continuous in its sampling grid but for ``nearest``, which jumps half way between two pixels. So it is
judged in two tiers:

- *interior*: every value must be the float64 sampler's, up to what float32 coordinates can move it: the coordinate's
  error bound times the steepest slope of the image, plus the rounding of the weighted sum. Nothing is averaged.
- *band*: output points whose exact coordinate is within that bound of a jump may read the pixel on the other side
  (a flip), and no third one.

Flips are rounding noise or a mistake, and statistics tell which. Noise is as likely to push up as down, and at an exact
tie it crosses in half of the cases at most. One coordinate often serves a whole row of points, all of which flip
together; so each distinct coordinate counts once. With n distinct flips of which m went up, m is held to the binomial
distribution B(n, 1/2); of b distinct coordinates in the band, the number that flipped is held to B(b, 1/2) from above.
Either is rejected below a probability of 1e-6, so that a hundred thousand right runs raise less than one alarm;
rounding half up, where the definition says half to even, flips every second tie upwards and is found with 21 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import comb

import numpy as np

from stn_infer.arrays import Array
from stn_infer.deviation import Level, largest_error
from stn_infer.reference.sampling import UNIT, Doubles, sample_at
from stn_infer.samplers import SamplerSpec

# Rounding may flip a nearest sampler's pixel, which changes that sample's outputs at will.
_FLIPPED_SHARE = 0.02


@dataclass(frozen=True)
class Expected:
    """What every variant must give for ``inputs``.

    Attributes:
        inputs: one array an input, [N, ...], float32.
        outputs: one array an output, in the reference's type.
        may_flip: whether a sampler of the model is ``nearest``.
        scales: one an output, see :meth:`stn_infer.deviation.Level.scale`; empty: of these outputs alone.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    may_flip: bool
    scales: tuple[float, ...] = ()

    def error(self, outputs: Sequence[Array]) -> float:
        """The largest error of ``outputs`` over its scale; infinite where shapes differ.

        With a nearest sampler, the worst 2 % of the samples are skipped, and so are more outputs than the reference
        has (theta).
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
"""The probability below which a pattern of flips is no chance."""
FAR = 4.0
"""Coordinates beyond this sample outside whatever their last digits are: distances are not told there."""
_DEFINED = 1e5  # coordinates beyond are not compared: runtimes differ there
_HALF_UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def grid_distance(sampler: SamplerSpec, expected: Array, actual: Array, size: Sequence[int]) -> tuple[float, float]:
    """(largest distance of a point, largest distance of one of the output's corners) of two grids, in input pixels.

    A point's distance is taken along each axis, a corner's is Euclid's. Points outside by more than the image's size
    are passed over.
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
        points: output points compared.
        flipped: how many of them flipped.
        coordinates: distinct coordinates in the band around ties.
        up, down: distinct coordinates at which a flip read the higher and the lower pixel.
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
        """Why these flips are no rounding noise; None where they may be."""
        count = self.up + self.down
        if 2 * _tail(max(self.up, self.down), count) < SIGNIFICANCE:
            way, most = ("up", self.up) if self.up > self.down else ("down", self.down)
            return f"{most} of {count} ties are rounded {way} against the definition, which rounding noise does not do"
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
    """A warped image against the float64 sampler at the same grid.

    Attributes:
        max_error: the largest absolute difference outside flips.
        excess: the largest ratio of a difference to what float32 may do there; more than 1 fails.
        wrong: output points beyond it.
        flips: with mode nearest.
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
        """What is wrong, in a few words; None where nothing is."""
        if self.wrong:
            return f"{self.wrong} of {self.flips.points} points are wrong, by up to {self.max_error:.1e}" + (
                f", {self.excess:.0f} times what float32 explains" if np.isfinite(self.excess) else ""
            )
        return self.flips.problem()


def compare_warp(
    actual: Array, image: Array, grid: Array, bound: Array, sampler: SamplerSpec, dtype: str = "float32"
) -> WarpDeviation:
    """Judge ``actual`` in two tiers; see the module's text.

    Args:
        actual: [N, C, *out], what the runtime made.
        image: [N, C, *in], what it sampled.
        grid: [N, *out, D], float64: where it should sample.
        bound: [N, *out, D]: how far it may be off, in pixels.
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
    """What float32 may make of a value: [N, 1, *out]."""
    values = image.astype(np.float64)
    peak = np.abs(values).reshape(len(values), -1).max(axis=1)  # [N]
    spread = (-1, *[1] * (bound.ndim - 1))
    if sampler.mode == "nearest":
        return np.zeros((len(values), *[1] * (bound.ndim - 1)))
    # the slope of a cubic interpolation is less than four times the steepest step
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
    """Which of the points that are off are flips [N, *out], and their statistics."""
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
    # only one axis at a tie, inside the image: what lies outside is folded back, and its direction with it
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
