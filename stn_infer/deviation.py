"""How far an array is from what it should be: the one comparator of export, verify, bench, optimize and precision.

Its policies, the same everywhere:

- *Errors*: the absolute difference of each value, in float64. NaN where the reference has NaN, and an infinity of the
  same sign where the reference has it, are equal; any other value that is not finite is infinitely wrong. Differences
  below float32's smallest normal number are none: runtimes may flush them to zero.
- *Scale*: an output is judged on its own scale, however small: the largest finite magnitude that the reference has in
  it, over all batches that are compared. A tolerance is on the largest error over that scale.
- *Noise*: what rounding alone moves an output by. It is measured on the model, never assumed: an output of 1e-9 that
  float32 computes to seven digits is held to them. A tolerance is raised to ``MARGIN`` times the noise over the scale,
  and to ``CEILING`` at most, so that no runtime is held to more than float32 can do. Where even that is less than the
  noise, the output is what is left of a difference, and has no scale of its own; nor has one that is zero throughout.
  Their scale is 1, the size of the features that they are the difference of.
- *Whole numbers* and booleans are labels: what counts is the share of values that differ.
- *Flips*: a sampler of mode nearest turns rounding into another pixel, and its user says how many values or samples may
  be flipped: :mod:`stn_infer.reference.comparison` by statistics where the grid is known,
  :mod:`stn_infer.repairs.equivalence` by the share that perturbed grids flip, ``bench`` by a fixed share of samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.errors import ModelError

MARGIN = 4.0
"""Other runtimes sum in another order: what they may be off by, over the noise that was measured."""
CEILING = 1e-3
"""A tolerance beyond this finds nothing, so that noise never raises one further."""
_TINY = 2.0**-126


def is_float(values: Array) -> bool:
    """Whether these are floats; numpy knows bfloat16 as a void type."""
    return values.dtype.kind in "fV"


def bfloat16(values: Array) -> Array:
    """``values`` rounded to bfloat16, as float32."""
    import ml_dtypes

    return np.asarray(values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32))


def errors(expected: Array, actual: Array) -> NDArray[np.float64]:
    """The error of each value; of whole numbers and booleans, 1 where they differ."""
    if not is_float(expected):
        return np.asarray(expected != actual, np.float64)
    wanted, found = expected.astype(np.float64), actual.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(found - wanted)
        same = (wanted == found) | (np.isnan(wanted) & np.isnan(found)) | (difference < _TINY)
    return np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))


def largest_error(expected: Array, actual: Array) -> float:
    """The largest of :func:`errors`; of whole numbers and booleans, the share that differs."""
    found = errors(expected, actual)
    return float(found.max(initial=0.0) if is_float(expected) or not found.size else found.mean())


@dataclass(frozen=True)
class Level:
    """What an output's errors are measured by, over any number of batches.

    Attributes:
        magnitude: the largest finite magnitude in the reference.
        noise: the largest difference that rounding alone makes; 0 where it was not measured.
    """

    magnitude: float = 0.0
    noise: float = 0.0

    @classmethod
    def of(cls, expected: Array, alike: Iterable[Array] = ()) -> Level:
        """From one batch of the reference, and what is as right but for rounding; what is not finite is neither."""
        if not is_float(expected):
            return cls(1.0)
        noises = [_largest(errors(expected, other)) for other in alike if other.shape == expected.shape]
        return cls(_largest(expected), max(noises, default=0.0))

    def __or__(self, other: Level) -> Level:
        return Level(max(self.magnitude, other.magnitude), max(self.noise, other.noise))

    def scale(self, ceiling: float = CEILING) -> float:
        """What an error is divided by; see the module's text.

        Args:
            ceiling: the share of the magnitude beyond which an output is little but noise.
        """
        own = self.magnitude >= _TINY and MARGIN * self.noise <= ceiling * self.magnitude
        return self.magnitude if own else max(self.magnitude, 1.0)

    @property
    def rounding(self) -> float:
        """The noise over the scale."""
        return self.noise / self.scale()


def _largest(values: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    wide = np.abs(values.astype(np.float64))
    return float(wide.max(initial=0.0, where=np.isfinite(wide)))


def float32_tolerance(default: float, rounding: float) -> float:
    """``default``, or what float32 needs where that is more: ``MARGIN`` times its rounding, ``CEILING`` at most."""
    return max(default, min(MARGIN * rounding, CEILING))


@dataclass(frozen=True)
class Deviation:
    """One output against the reference.

    Attributes:
        name: the output's name.
        max_error: the largest error.
        scale: what it is divided by.
        limit: what the scaled error was held to; infinite where it is held to nothing here.
        flips: the share of values that are set aside, since a nearest sampler may flip them.
    """

    name: str
    max_error: float
    scale: float
    limit: float = float("inf")
    flips: float = 0.0

    @property
    def scaled(self) -> float:
        """What is compared with the tolerance."""
        return self.max_error / self.scale


def compare(name: str, expected: Array, actual: Array, scale: float | None = None) -> Deviation:
    """One output against the reference.

    Args:
        name: the output's name.
        expected: what the reference gives.
        actual: what is judged, of the same shape.
        scale: of the output over all batches, see :meth:`Level.scale`; None: of this batch alone.

    Raises:
        ModelError: the shapes differ.
    """
    if expected.shape != actual.shape:
        raise ModelError(f"output {name!r} has shape {list(actual.shape)}, expected {list(expected.shape)}")
    scale = Level.of(expected).scale() if scale is None else scale
    return Deviation(name, largest_error(expected, actual), scale)


def worst(deviations: Iterable[Deviation]) -> tuple[Deviation, ...]:
    """One of each output: the one that is furthest off."""
    found: dict[str, Deviation] = {}
    for deviation in deviations:
        found[deviation.name] = max(found.get(deviation.name, deviation), deviation, key=lambda item: item.scaled)
    return tuple(found.values())
