"""Percentiles of measured times, by a definition that needs no interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Below this a tail is a handful of calls, and a p90 of them is not repeatable.
FEWEST_FOR_P90 = 64


def nearest_rank(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least ``percent`` % of all do not exceed.

    Raises:
        ValueError: no samples, or ``percent`` outside (0, 100].
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"expected samples and a percentage in (0, 100], given {len(samples)} and {percent}")
    return sorted(samples)[math.ceil(percent / 100 * len(samples)) - 1]


def median(samples: Sequence[float]) -> float:
    """The 50th percentile by nearest rank."""
    return nearest_rank(samples, 50)


def p90(samples: Sequence[float]) -> float | None:
    """The 90th percentile; None with fewer than :data:`FEWEST_FOR_P90` samples."""
    return nearest_rank(samples, 90) if len(samples) >= FEWEST_FOR_P90 else None
