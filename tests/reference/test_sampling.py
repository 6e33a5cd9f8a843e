"""The package's float64 sampler against the test suite's own, and the error bound on float32 coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stn_infer.reference.sampling import UNIT, coordinate_bound, mistakes
from stn_infer.samplers import MODES, PADDING_MODES, SamplerSpec
from stn_infer.sampling import sample, sample_at
from tests.support import reference

SIZES = [(5, 7), (1, 5), (1, 1), (3, 4, 5), (2, 1, 6)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_equals_the_test_reference(size: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool) -> None:
    rng = np.random.default_rng(5)
    image = rng.normal(size=(2, 3, *size))
    grid = rng.uniform(-3, 3, size=(2, *[3, 20, 2][: len(size)], len(size)))
    grid.reshape(-1)[:6] = [np.nan, np.inf, -np.inf, 1e3, -1.0, 1.0]
    with np.errstate(invalid="ignore"):
        expected = reference.grid_sample(image, grid, mode, padding_mode, align_corners)
        found = sample(SamplerSpec(mode, padding_mode, align_corners), image, grid)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_far_coordinates_stay_defined(mode: str) -> None:
    image, grid = np.ones((1, 1, 3, 4)), np.array([[[[1e30, -1e30], [-1e300, 1e300]]]])
    for padding_mode in PADDING_MODES:
        expected = 0 if padding_mode == "zeros" else 1
        np.testing.assert_allclose(sample(SamplerSpec(mode, padding_mode), image, grid), expected, atol=1e-12)


def test_ties_by_rounding() -> None:
    image = np.arange(6.0).reshape(1, 1, 1, 6)
    pixels = np.stack([np.array([0.5, 1.5, 2.5, 3.25]), np.zeros(4)], -1)[None, None]
    for rounding, expected in (("half to even", [0, 2, 2, 3]), ("half up", [1, 2, 3, 3]), ("down", [0, 1, 2, 3])):
        sampler = SamplerSpec("nearest", rounding=rounding)  # type: ignore[arg-type]
        assert sample_at(sampler, image, pixels).ravel().tolist() == expected


def test_float32_stays_within_the_bound_and_float16_does_not() -> None:
    rng, size = np.random.default_rng(1), (40, 1000)
    theta = rng.normal(size=(50, 2, 3)).astype(np.float32)
    basis = reference.affine_grid(np.eye(2, 3)[None], (16, 16))[0].reshape(-1, 2)
    rows = np.concatenate([basis.T, np.ones((1, 256))]).astype(np.float32)
    exact = np.moveaxis(theta.astype(np.float64) @ rows.astype(np.float64), 1, 2).reshape(50, 16, 16, 2)
    terms = np.moveaxis(np.abs(theta).astype(np.float64) @ np.abs(rows), 1, 2).reshape(50, 16, 16, 2)
    bound = coordinate_bound(exact, size, terms, 3)
    single = np.moveaxis(theta @ rows, 1, 2).reshape(50, 16, 16, 2)
    wanted, found = (SamplerSpec().pixels(grid, size) for grid in (exact, single))
    assert (np.abs(found - wanted) <= bound).all()
    half = SamplerSpec().pixels(exact.astype(np.float16).astype(np.float64), size)
    assert np.mean(np.abs(half - wanted) > bound) > 0.9
    assert bound.max() < 1000 * 100 * UNIT


def test_a_projective_bound_is_infinite_where_w_may_be_zero() -> None:
    grid, terms = np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    denominator = np.array([[[[1.0, 1.0], [1e-9, 1.0]]]])
    bound = coordinate_bound(grid, (8, 8), terms, 3, denominator)
    assert np.isfinite(bound[0, 0, 0]).all() and np.isinf(bound[0, 0, 1]).all()


def test_each_mistake_changes_the_result() -> None:
    rng = np.random.default_rng(2)
    image, grid = rng.normal(size=(1, 1, 6, 6)), rng.uniform(-1.5, 1.5, (1, 9, 9, 2))
    base = SamplerSpec()
    eager = F.grid_sample(torch.from_numpy(image), torch.from_numpy(grid), align_corners=False).numpy()
    np.testing.assert_allclose(sample(base, image, grid), eager, atol=1e-12)
    for name, mistake in mistakes(base, 2).items():
        assert np.abs(sample(mistake, image, grid) - eager).max() > 0.01, name
