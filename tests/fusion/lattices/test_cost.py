"""Estimated times of plain operators, against what onnxruntime needs (measured on an idle EPYC, one thread)."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.fusion.lattices.cost import basis_cost, lattice_cost, sparse_basis
from stn_infer.fusion.measure import ThetaMap


def mesh(side: int) -> ThetaMap:
    """9 x 9 points: each pixel is a sum of three of them."""
    basis = np.zeros((81, side * side))
    pixels = np.arange(side * side)
    for step in (0, 1, 9):
        basis[pixels % 71 + step, pixels] = 1 / 3
    return ThetaMap("basis", basis, np.eye(162), np.zeros(162), 2, (side, side))


@pytest.mark.parametrize(("side", "basis_us", "lattice_us"), [(128, 94, 816), (64, 29, 204)])
def test_a_mesh_of_9_by_9_points(side: int, basis_us: float, lattice_us: float) -> None:
    """A factor of two would not matter; the basis of 1.3 or 5 MiB was once taken to be four times as slow as it is."""
    dense = mesh(side)
    sparse = sparse_basis(dense)
    assert sparse is not None and len(sparse.index) == 3
    assert 0.5 < basis_cost(dense, 1) / 1000 / basis_us < 2
    assert 0.5 < lattice_cost(sparse, 2, 1) / 1000 / lattice_us < 2


def test_a_basis_beyond_the_caches_is_slower() -> None:
    shape = (256, 256)
    large = ThetaMap("basis", np.zeros((45, 256 * 256)), np.eye(90), np.zeros(90), 2, shape)
    small = ThetaMap("basis", np.zeros((20, 256 * 256)), np.eye(40), np.zeros(40), 2, shape)
    assert basis_cost(large, 1) > 4 * basis_cost(small, 1)
