"""Projective grids over any basis, with a bounded denominator: the CPU kernels against the float64 reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stn_infer import plugin
from stn_infer.errors import ModelError
from tests.support import reference
from tests.support.plugin_cases import from_bits, to_bits, warp

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

SIZE, OUTPUT_SIZE = (7, 9, 5), (5, 11, 6)
OFFSET = (-0.3, 0.2, 0.45)


def case(rank: int, columns: int, batch: int = 2) -> tuple[Array, Array, Array]:
    """An image, theta [N, D + 1, K] whose w lies in 0.4 .. 1.6, and a basis [K, P] whose last row is 1."""
    rng = np.random.default_rng(columns)
    basis = rng.uniform(-1, 1, (columns, int(np.prod(OUTPUT_SIZE[:rank]))))
    basis[-1] = 1
    theta = rng.uniform(-0.8, 0.8, (batch, rank + 1, columns))
    theta[:, rank] *= 0.6 / 0.8 / max(columns - 1, 1)
    theta[:, rank, -1] = 1
    return rng.standard_normal((batch, 3, *SIZE[:rank])), theta.astype(np.float32), basis.astype(np.float32)


@pytest.mark.parametrize("w_min", [None, 0.9, -np.inf])
@pytest.mark.parametrize(("rank", "columns"), [(2, 1), (2, 3), (2, 5), (3, 4), (3, 7)])
def test_any_basis(isa: str, rank: int, columns: int, w_min: float | None) -> None:
    image, theta, basis = case(rank, columns)
    grid = reference.spatial_grid(theta, basis, OUTPUT_SIZE[:rank], projective=True, w_min=w_min)
    modes = ("bilinear", "bicubic") if rank == 2 else ("bilinear",)
    for mode, padding_mode, align_corners in product(modes, ("zeros", "border", "reflection"), (False, True)):
        settings = (mode, padding_mode, align_corners)
        answer = warp("projective", image, theta, basis, OUTPUT_SIZE[:rank], *settings, w_min=w_min)
        np.testing.assert_allclose(answer, reference.grid_sample(image, grid, *settings), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_clamped_denominator_of_any_sign(isa: str, rank: int) -> None:
    """Points behind the camera: w runs from -1 to 1, and is at least 0.5."""
    image, theta, basis = case(rank, 4)
    theta[:, rank] = 0
    theta[:, rank, 0] = 1
    grid = reference.spatial_grid(theta, basis, OUTPUT_SIZE[:rank], projective=True, w_min=0.5, offset=OFFSET[:rank])
    assert (theta[:, rank] @ basis).min() < 0
    answer = warp("projective", image, theta, basis, OUTPUT_SIZE[:rank], w_min=0.5, offset=OFFSET[:rank])
    np.testing.assert_allclose(answer, reference.grid_sample(image, grid), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-5), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_dtypes_and_layouts(isa: str, dtype: str, tolerance: float, layout: str) -> None:
    for rank in (2, 3):
        image, theta, basis = case(rank, 5)
        image = from_bits(to_bits(image, dtype), dtype)
        expected = reference.grid_sample(
            image, reference.spatial_grid(theta, basis, OUTPUT_SIZE[:rank], projective=True, w_min=0.8)
        )
        answer = warp(
            "projective", image, theta, basis, OUTPUT_SIZE[:rank], dtype=dtype, w_min=0.8,
            input_layout=layout, output_layout=layout,
        )  # fmt: skip
        np.testing.assert_allclose(answer, expected, atol=tolerance, rtol=tolerance)


def test_pixel_centers_of_a_volume_need_no_basis(isa: str) -> None:
    rng = np.random.default_rng(0)
    image, size = rng.standard_normal((2, 3, *SIZE)), OUTPUT_SIZE
    theta = (np.eye(4)[None] + 0.1 * rng.standard_normal((2, 4, 4))).astype(np.float32)
    mesh = np.meshgrid(*[reference.centers(length, False) for length in size], indexing="ij")[::-1]
    basis = np.stack([axis.ravel() for axis in mesh] + [np.ones(mesh[0].size)])
    expected = reference.grid_sample(image, reference.spatial_grid(theta, basis, size, projective=True))
    np.testing.assert_allclose(warp("projective", image, theta, None, size), expected, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_denominators_that_are_not_finite(isa: str, rank: int) -> None:
    """w NaN stays NaN, w = 0 gives inf or NaN: outside; a bound turns 0 into itself; w = inf gives coordinate 0."""
    image = np.arange(1.0, 1 + 3**rank).reshape(1, 1, *[3] * rank)
    size = (4, 5, 3)[:rank]
    basis = np.ones((1, int(np.prod(size))), np.float32)
    theta = np.full((1, rank + 1, 1), 0.5, np.float32)
    for w, w_min, expected in (
        (np.nan, None, 0.0),
        (np.nan, 0.5, 0.0),
        (0.0, None, 0.0),
        (-0.0, None, 0.0),
        (np.inf, 0.5, (1 + 3**rank) / 2),
        (0.0, 1e6, (1 + 3**rank) / 2),
        (-1.0, np.inf, (1 + 3**rank) / 2),
    ):
        theta[0, rank] = w
        answer = warp("projective", image, theta, basis, size, w_min=w_min)
        np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_bad_bounds_and_rows_are_refused() -> None:
    image, theta, basis = case(2, 5)
    with pytest.raises(ModelError, match="not supported"):
        warp("projective", image, theta, basis, OUTPUT_SIZE[:2], w_min=float("nan"))
    with pytest.raises(ModelError, match="not supported"):
        warp("projective", image, theta, basis, OUTPUT_SIZE[:2], offset=(0.0, float("inf")))
    with pytest.raises(ModelError, match="inconsistent"):
        warp("projective", image, theta, None, OUTPUT_SIZE[:2])
