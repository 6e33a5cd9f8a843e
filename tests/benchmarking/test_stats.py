"""Percentiles by definition."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_infer.benchmarking.stats import FLOORS, median, nearest_rank, percentiles


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_nearest_rank_is_the_smallest_sample_that_covers_the_share(samples: list[float], percent: float) -> None:
    value = nearest_rank(samples, percent)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= percent / 100 * len(samples) - 1e-9
    assert sum(sample < value for sample in samples) < percent / 100 * len(samples)


def test_known_percentiles() -> None:
    samples = random.Random(0).sample(range(1, 101), 100)
    assert (nearest_rank(samples, 90), nearest_rank(samples, 100), nearest_rank(samples, 0.5)) == (90, 100, 1)
    assert median([3.0, 1.0, 2.0]) == statistics.median([3.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="expected samples"):
        nearest_rank([], 50)


def test_a_p90_needs_enough_samples() -> None:
    assert 90 not in percentiles([1.0] * (FLOORS[90] - 1))
    assert percentiles([1.0] * FLOORS[90])[90] == 1.0
