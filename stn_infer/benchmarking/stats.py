"""Statistics of latency samples: nearest-rank percentiles, outliers, modes, and bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Percentile to the fewest samples that it needs: with fewer it depends on a handful of calls and is not repeatable.
FLOORS: dict[float, int] = {50: 1, 90: 64, 95: 130, 99: 662, 99.9: 6636}

#: Fewer rounds than this have no 95 % interval: even the range of five medians covers only 94 %.
FEWEST_ROUNDS = 6
CONFIDENCE = 0.95

_OUTLIER_MADS = 5.0
_LEAST_DEVIATION = 0.01  # of the median: a clock's resolution is not spread
_BLOCKS = 16
_RESAMPLES = 2000

Numbers = NDArray[np.float64]


def nearest_rank(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least ``percent`` % of all do not exceed.

    Raises:
        ValueError: no samples, or ``percent`` outside (0, 100].
    """
    if not len(samples) or not 0 < percent <= 100:
        raise ValueError(f"expected samples and a percentage in (0, 100], given {len(samples)} and {percent}")
    return sorted(samples)[math.ceil(percent / 100 * len(samples)) - 1]


def median(samples: Sequence[float]) -> float:
    """The 50th percentile by nearest rank."""
    return nearest_rank(samples, 50)


def percentiles(samples: Sequence[float]) -> dict[float, float]:
    """Those of :data:`FLOORS` that there are enough samples for."""
    ordered = sorted(samples)
    return {
        percent: ordered[math.ceil(percent / 100 * len(ordered)) - 1]
        for percent, fewest in FLOORS.items()
        if len(ordered) >= fewest
    }


def count_outliers(samples: Sequence[float]) -> int:
    """How many lie more than five scaled median absolute deviations from the median; they are counted, not removed.

    The deviation is taken as at least 1 % of the median: a clock's resolution makes no outliers.
    """
    values = np.asarray(samples, np.float64)
    if not values.size:
        return 0
    middle = float(np.median(values))
    deviation = max(1.4826 * float(np.median(np.abs(values - middle))), _LEAST_DEVIATION * middle)
    return int((np.abs(values - middle) > _OUTLIER_MADS * deviation).sum())


def two_modes(samples: Sequence[float]) -> tuple[float, float] | None:
    """The medians of two groups of samples, where there are two: each a fifth of all, with a gap between them.

    The gap must be wider than each group's inner 80 % and than 10 % of the lower group's median.
    """
    values = np.sort(np.asarray(samples, np.float64))
    fewest = max(4, len(values) // 5)
    if len(values) < 2 * fewest + 1:
        return None
    gaps = np.diff(values)[fewest - 1 : len(values) - fewest]
    if not gaps.size:
        return None
    cut = int(gaps.argmax()) + fewest
    low, high = values[:cut], values[cut:]
    gap = float(values[cut] - values[cut - 1])
    widths = [float(np.quantile(group, 0.9) - np.quantile(group, 0.1)) for group in (low, high)]
    if gap <= max(*widths, 0.1 * float(np.median(low))):
        return None
    return float(np.median(low)), float(np.median(high))


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds at :data:`CONFIDENCE`; None for both where there are too few rounds."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_one(self) -> bool:
        """Whether a ratio's whole interval lies on one side of 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def paired_ratio(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """time of ``a`` / time of ``b``, both measured in the same rounds: what a round does to both cancels.

    The value is the geometric mean over the rounds of the ratio of medians. The interval is a bootstrap in two levels:
    rounds are drawn with replacement, and in each the blocks of consecutive samples of both. With few rounds such
    percentiles are too narrow; they are expanded as Hesterberg (2015, "What Teachers Should Know About the
    Bootstrap", section 4.4) proposes, so that they have the reach of a t interval.

    Args:
        a, b: the samples of each round, the same number of rounds.
        seed: of the resampling.
    """
    return _ratio(a, b, seed, paired=True)


def unpaired_ratio(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """As :func:`paired_ratio` for rounds that have nothing to do with each other, such as those of two runs."""
    return _ratio(a, b, seed, paired=False)


def ratio_of_ratios(
    a: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]],
    b: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]],
    seed: int = 0,
) -> Interval:
    """(a[0] / a[1]) / (b[0] / b[1]), each paired within its run: how a ratio moved from run ``b`` to run ``a``."""
    generator = np.random.default_rng(seed)
    first, second = (_LogRatio(*run) for run in (a, b))
    draws = first.draw(generator, paired=True) - second.draw(generator, paired=True)
    return _interval(first.value - second.value, draws, min(first.rounds, second.rounds))


def _ratio(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int, paired: bool) -> Interval:
    both = _LogRatio(a, b)
    rounds = min(len(a), len(b))
    if rounds < FEWEST_ROUNDS:
        return Interval(math.exp(both.value), None, None)
    return _interval(both.value, both.draw(np.random.default_rng(seed), paired), rounds)


class _LogRatio:
    """The logarithm of a ratio of times, and draws of it from the bootstrap."""

    def __init__(self, a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> None:
        self._a, self._b = [_blocks(samples) for samples in a], [_blocks(samples) for samples in b]
        self.rounds = min(len(a), len(b))
        middle = [float(np.mean([math.log(median(samples)) for samples in side])) for side in (a, b)]
        self.value = middle[0] - middle[1]

    def draw(self, generator: np.random.Generator, paired: bool) -> Numbers:
        a, b = (_resampled(side, generator) for side in (self._a, self._b))  # [rounds, resamples]
        rows = generator.integers(0, len(a), (len(a), _RESAMPLES))
        others = rows if paired else generator.integers(0, len(b), (len(b), _RESAMPLES))
        drawn = [np.take_along_axis(side, index, 0).mean(axis=0) for side, index in ((a, rows), (b, others))]
        return np.asarray(drawn[0] - drawn[1])


def _blocks(samples: Sequence[float]) -> Numbers:
    """The logarithms of the medians of up to 16 blocks of consecutive samples: neighbors are alike, blocks hardly."""
    parts = np.array_split(np.asarray(samples, np.float64), min(_BLOCKS, len(samples)))
    return np.log([np.median(part) for part in parts])


def _resampled(rounds: Sequence[Numbers], generator: np.random.Generator) -> Numbers:
    drawn = []
    for blocks in rounds:
        chosen = generator.integers(0, len(blocks), (_RESAMPLES, len(blocks)))
        drawn.append(np.median(blocks[chosen], axis=1))
    return np.asarray(drawn)


def _interval(value: float, draws: Numbers, rounds: int) -> Interval:
    if rounds < FEWEST_ROUNDS:
        return Interval(math.exp(value), None, None)
    tail = _expanded_tail(rounds)
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    return Interval(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)))


def _expanded_tail(rounds: int) -> float:
    """The share cut off at each end: Phi(-sqrt(n / (n - 1)) * t), t being Student's quantile for n - 1."""
    from statistics import NormalDist

    t = _student(rounds - 1)
    return NormalDist().cdf(-math.sqrt(rounds / (rounds - 1)) * t)


def _student(degrees: int) -> float:
    """Student's t at 97.5 %, for 5 degrees of freedom and more: Abramowitz and Stegun 26.7.5, good to 0.005."""
    z = 1.959963984540054
    terms: tuple[Any, ...] = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))
