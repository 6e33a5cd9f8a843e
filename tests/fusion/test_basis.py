"""The basis, and the grid computed from it."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.fusion.basis import Basis, Kind, basis_of, canonical_basis, map_points
from stn_infer.reference.calls import grid_and_bound
from stn_infer.reference.taps import theta_for
from tests.support import reference


@pytest.mark.parametrize("size", [(4, 6), (2, 3, 5)])
def test_an_affine_grid_is_its_definition(size: tuple[int, ...]) -> None:
    theta = np.random.default_rng(0).normal(size=(3, len(size), len(size) + 1))
    expected = reference.affine_grid(theta, size)
    np.testing.assert_allclose(map_points(theta, canonical_basis(size), size), expected, atol=1e-12)
    stored = Basis("affine", canonical_basis(size).astype(np.float32), size)
    np.testing.assert_allclose(stored.exact().grid(theta), expected, atol=1e-12)


def test_a_projective_grid_divides_by_the_third_row() -> None:
    theta = np.random.default_rng(1).normal(size=(2, 3, 3)) + 3 * np.eye(3)
    mapped = map_points(theta, canonical_basis((4, 5)), (4, 5))
    grid = Basis("projective", canonical_basis((4, 5)), (4, 5)).grid(theta)
    assert grid.shape == (2, 4, 5, 2)
    np.testing.assert_allclose(grid * mapped[..., 2:], mapped[..., :2], atol=1e-12)


@pytest.mark.parametrize(("kind", "off"), [("basis", 0.0), ("affine", 1e-3)])
def test_rows_that_are_not_the_mesh_are_not_replaced(kind: Kind, off: float) -> None:
    rows = (canonical_basis((4, 5)) + off).astype(np.float32)
    np.testing.assert_array_equal(Basis(kind, rows, (4, 5)).exact().rows, rows.astype(np.float64))


def test_a_quotient_over_any_basis_is_read_back() -> None:
    """In 3-D, with a clamped denominator and an offset; the theta of a given grid keeps clear of the clamp."""
    generator = np.random.default_rng(2)
    rows = np.concatenate([canonical_basis((2, 3, 4)), generator.standard_normal((1, 24))])
    theta = generator.standard_normal((2, 4, 5))
    attributes = {"w_min": 1.5, "offset": [0.5, -1.0, 0.25]}
    basis = basis_of("projective", [rows], (2, 3, 4), attributes)
    points = theta @ rows
    grid = points[:, :3] / np.maximum(points[:, 3:], 1.5) + np.array([[0.5], [-1.0], [0.25]])
    np.testing.assert_allclose(basis.grid(theta).reshape(2, 24, 3), grid.transpose(0, 2, 1), atol=1e-12)
    wanted = Basis("basis", rows, (2, 3, 4)).grid(theta[:, :3])
    found = theta_for(basis, wanted)
    assert found is not None
    np.testing.assert_allclose(basis.grid(found), wanted, atol=1e-5)
    bound = grid_and_bound(basis, theta.astype(np.float32), (5, 5, 5))[1]
    assert np.isfinite(bound).all() and bound.max() < 1e-3


def test_a_least_finite_bound_is_no_clamp() -> None:
    rows = canonical_basis((2, 2))
    assert basis_of("projective", [rows], (2, 2), {"w_min": float(np.finfo(np.float32).min)}) == Basis(
        "projective", rows, (2, 2)
    )
