"""The one comparator of export, verify, bench, optimize and precision: the error of an array against a reference.

Its policies are the same everywhere:

- *Errors*: the absolute difference of each value, in float64. Two NaNs are equal, and so are two infinities of the same
  sign. The error of any other non-finite value is infinite. Differences below float32's smallest normal number count as
  zero, because runtimes may flush them to zero.
- *Scale*: each output is judged on its own scale, however small. The scale is the largest finite magnitude of the
  reference output over all compared batches. A tolerance is a limit on the largest error over that scale.
- *Noise*: the change of an output that is due to rounding alone. It is measured on the model, never assumed: an output
  of 1e-9 that float32 computes to seven digits is compared to seven digits. A tolerance is raised to ``MARGIN`` times
  the noise over the scale, but to no more than ``CEILING``, so that no runtime must be more exact than float32 can be.
  Where the noise exceeds even that, the output is the remainder of a cancellation and has no scale of its own. An
  output that is zero throughout has none either. Their scale is 1, the magnitude of the features that cancel.
- *Integers* and booleans are labels: the error is the share of values that differ.
- *Flips*: a sampler of mode nearest may turn a rounding error into another pixel. The caller decides how many values or
  samples may flip: :mod:`stn_infer.reference.comparison` by statistics where the grid is known,
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
"""The allowed error over the measured noise; other runtimes sum in another order."""
CEILING = 1e-3
"""The largest tolerance that noise may lead to; a larger one would find no mistakes."""
_TINY = 2.0**-126


def is_float(values: Array) -> bool:
    """Whether ``values`` are floats; numpy treats bfloat16 as a void type."""
    return values.dtype.kind in "fV"


def bfloat16(values: Array) -> Array:
    """``values`` rounded to bfloat16, as float32."""
    import ml_dtypes

    return np.asarray(values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32))


def errors(expected: Array, actual: Array) -> NDArray[np.float64]:
    """The error of each value; for integers and booleans, 1 where they differ."""
    if not is_float(expected):
        return np.asarray(expected != actual, np.float64)
    wanted, found = expected.astype(np.float64), actual.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(found - wanted)
        same = (wanted == found) | (np.isnan(wanted) & np.isnan(found)) | (difference < _TINY)
    return np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))


def largest_error(expected: Array, actual: Array) -> float:
    """The largest of :func:`errors`; for integers and booleans, the share of values that differ."""
    found = errors(expected, actual)
    return float(found.max(initial=0.0) if is_float(expected) or not found.size else found.mean())


@dataclass(frozen=True)
class Level:
    """An output's magnitude and rounding noise, over any number of batches; its scale follows from them.

    Attributes:
        magnitude: the largest finite magnitude in the reference.
        noise: the largest difference that rounding alone makes; 0 where it was not measured.
    """

    magnitude: float = 0.0
    noise: float = 0.0

    @classmethod
    def of(cls, expected: Array, alike: Iterable[Array] = ()) -> Level:
        """Compute the level of one batch; non-finite values are ignored.

        Args:
            expected: the reference output.
            alike: the same output from runs that differ from the reference by rounding alone.
        """
        if not is_float(expected):
            return cls(1.0)
        noises = [_largest(errors(expected, other)) for other in alike if other.shape == expected.shape]
        return cls(_largest(expected), max(noises, default=0.0))

    def __or__(self, other: Level) -> Level:
        return Level(max(self.magnitude, other.magnitude), max(self.noise, other.noise))

    def scale(self, ceiling: float = CEILING) -> float:
        """The value that errors are divided by; see the module's docstring.

        Args:
            ceiling: the share of the magnitude beyond which ``MARGIN`` times the noise leaves the output no scale.
        """
        own = self.magnitude >= _TINY and MARGIN * self.noise <= ceiling * self.magnitude
        return self.magnitude if own else max(self.magnitude, 1.0)

    @property
    def rounding(self) -> float:
        """The noise over the scale."""
        return self.noise / self.scale()


def _largest(values: Array) -> float:
    """The largest finite magnitude; 0 if no value is finite."""
    wide = np.abs(values.astype(np.float64))
    return float(wide.max(initial=0.0, where=np.isfinite(wide)))


def float32_tolerance(default: float, rounding: float) -> float:
    """The larger of ``default`` and what float32 needs: ``MARGIN`` times its rounding, but no more than ``CEILING``."""
    return max(default, min(MARGIN * rounding, CEILING))


@dataclass(frozen=True)
class Deviation:
    """The error of one output against the reference.

    Attributes:
        name: the output's name.
        max_error: the largest error.
        scale: the value that the error is divided by.
        limit: the largest scaled error that was allowed; infinite where no limit was applied.
        flips: the share of values that were excluded, because a nearest sampler may flip them.
    """

    name: str
    max_error: float
    scale: float
    limit: float = float("inf")
    flips: float = 0.0

    @property
    def scaled(self) -> float:
        """The largest error over the scale, which is compared with the tolerance."""
        return self.max_error / self.scale


def compare(name: str, expected: Array, actual: Array, scale: float | None = None) -> Deviation:
    """Compare one output with the reference.

    Args:
        name: the output's name.
        expected: the reference output.
        actual: the output to judge, of the same shape.
        scale: the output's scale over all batches, see :meth:`Level.scale`; None: the scale of this batch alone.

    Raises:
        ModelError: the shapes differ.
    """
    if expected.shape != actual.shape:
        raise ModelError(f"output {name!r} has shape {list(actual.shape)}, expected {list(expected.shape)}")
    scale = Level.of(expected).scale() if scale is None else scale
    return Deviation(name, largest_error(expected, actual), scale)


def worst(deviations: Iterable[Deviation]) -> tuple[Deviation, ...]:
    """The deviation with the largest scaled error for each output."""
    found: dict[str, Deviation] = {}
    for deviation in deviations:
        found[deviation.name] = max(found.get(deviation.name, deviation), deviation, key=lambda item: item.scaled)
    return tuple(found.values())
