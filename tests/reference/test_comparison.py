"""The two tiers: errors that float32 explains pass, others fail; random flips pass, biased flips fail."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.reference.comparison import Flips, compare_warp, grid_distance
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import sample, sample_at

NEAREST = SamplerSpec("nearest")


def ties(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image of ``count`` + 1 pixels, a grid with a point at every tie, and a bound of a thousandth of a pixel."""
    image = np.random.default_rng(0).normal(size=(1, 1, 1, count + 1))
    pixels = np.stack([np.arange(count) + 0.5, np.zeros(count)], -1)[None, None]
    grid = NEAREST.normalized(pixels, (1, count + 1))
    return image, grid, np.full(grid.shape, 1e-3)


def flipped(count: int, choose: np.ndarray) -> Flips:
    """The flips of a backend that reads the upper pixel at ties where ``choose`` is true, else the lower one."""
    image, grid, bound = ties(count)
    lower = np.arange(count)
    actual = image[..., np.where(choose, lower + 1, lower)]
    found = compare_warp(actual, image, grid, bound, NEAREST)
    assert found.wrong == 0
    return found.flips


def test_random_flips_pass_for_twenty_seeds() -> None:
    for seed in range(20):
        flips = flipped(200, np.random.default_rng(seed).random(200) < 0.5)
        assert flips.problem() is None and flips.coordinates > 190 and flips.flipped > 60


def test_half_up_and_half_down_are_biases() -> None:
    up = flipped(60, np.ones(60, bool))
    assert (up.up, up.down) == (30, 0) or (up.up, up.down) == (29, 0)
    assert "flips at ties round up" in str(up.problem())
    down = flipped(60, np.zeros(60, bool))
    assert down.up == 0 and "flips at ties round down" in str(down.problem())


def test_flipping_every_tie_is_rejected() -> None:
    even = np.arange(60) % 2 == 0  # the definition reads the even pixel, which is the lower one at even positions
    flips = flipped(60, even)
    assert flips.up == pytest.approx(flips.down, abs=1)
    assert "at most half" in str(flips.problem())


def test_a_third_pixel_is_not_a_flip() -> None:
    image, grid, bound = ties(30)
    actual = image[..., np.arange(30)].copy()
    actual[..., 7] = image[..., 9]
    found = compare_warp(actual, image, grid, bound, NEAREST)
    assert found.wrong == 1 and "1 of 30 points are wrong" in str(found.problem())


def test_a_flip_outside_the_band_is_wrong() -> None:
    image, grid, bound = ties(30)
    moved = grid + 0.02 * 2 / 31  # two hundredths of a pixel from the tie, twenty times the bound
    right = sample(NEAREST, image, moved)
    assert compare_warp(right, image, moved, bound, NEAREST).problem() is None
    lower = image[..., np.arange(30)]
    assert compare_warp(lower, image, moved, bound, NEAREST).wrong == 30


def test_points_with_one_coordinate_count_once() -> None:
    """A column of a thousand points with the same coordinate is one event."""
    image = np.random.default_rng(0).normal(size=(1, 1, 1000, 8))
    pixels = np.stack(np.meshgrid(np.array([2.5]), np.arange(1000.0)), -1)[None]  # x, y
    grid = NEAREST.normalized(pixels, (1000, 8))
    found = compare_warp(image[..., 3:4], image, grid, np.full(grid.shape, 1e-3), NEAREST)
    assert (found.flips.flipped, found.flips.coordinates, found.flips.up) == (1000, 1, 1)
    assert found.problem() is None


def test_the_interior_limit_follows_the_slope_of_the_image() -> None:
    rng, sampler = np.random.default_rng(3), SamplerSpec()
    image, pixels = rng.normal(size=(2, 3, 9, 9)), rng.uniform(0, 8, (2, 5, 5, 2))
    grid, bound = sampler.normalized(pixels, (9, 9)), np.full((2, 5, 5, 2), 1e-4)
    near = sample_at(sampler, image, pixels + 0.9e-4)
    assert compare_warp(near, image, grid, bound, sampler).problem() is None
    off = sample_at(sampler, image, pixels + 5e-3)
    assert compare_warp(off, image, grid, bound, sampler).wrong > 10


def test_nan_is_wrong_except_where_the_grid_is_not_finite() -> None:
    image, grid = np.ones((1, 1, 4, 4)), np.zeros((1, 1, 2, 2))
    bound = np.full(grid.shape, 1e-6)
    grid[0, 0, 1] = np.nan
    actual = np.array([[[[1.0, np.nan]]]])
    assert compare_warp(actual, image, grid, bound, SamplerSpec()).problem() is None
    actual[..., 0] = np.nan
    assert compare_warp(actual, image, grid, bound, SamplerSpec()).wrong == 1


def test_distances_of_grids() -> None:
    sampler = SamplerSpec()
    grid = sampler.normalized(np.stack(np.meshgrid(np.arange(8.0), np.arange(4.0)), -1)[None], (4, 8))
    moved = grid + np.array([2 * 0.3 / 8, 2 * 0.4 / 4])
    distance, corner = grid_distance(sampler, grid, moved, (4, 8))
    assert distance == pytest.approx(0.4) and corner == pytest.approx(0.5)
    bent = grid.copy()
    bent[0, 2, 3, 0] += 2 / 8  # one pixel, in the middle
    assert grid_distance(sampler, grid, bent, (4, 8)) == pytest.approx((1.0, 0.0), abs=1e-9)
