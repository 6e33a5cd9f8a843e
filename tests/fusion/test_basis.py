"""The basis, and the grid computed from it."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.fusion.basis import Basis, Kind, canonical_basis, map_points
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
