"""Coarse lattices and cubic B-splines against PyTorch's interpolation and scipy's splines, and invalid lattices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline, NdBSpline

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import CoarseLattice, CubicBSpline, TensorProduct
from tests.support.grids import grid_of, targets

SIZE = (9, 7, 8)


def random(family: TensorProduct, seed: int = 0) -> torch.Tensor:
    return torch.randn(family.num_parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(
    ("points", "interpolation"), [((3, 4), "bilinear"), ((2, 5), "bicubic"), ((2, 3, 4), "bilinear")]
)
def test_a_coarse_lattice_is_torchs_interpolation(points: tuple[int, ...], interpolation: str, offsets: bool) -> None:
    family = CoarseLattice(points, interpolation, offsets)  # type: ignore[arg-type]
    size, parameters = SIZE[: family.rank], random(family)
    mode = "trilinear" if family.rank == 3 else interpolation
    wanted = F.interpolate(parameters.reshape(1, family.rank, *points), size, mode=mode, align_corners=True)[0]
    wanted = wanted.flatten(1) + targets(size, True) * offsets
    torch.testing.assert_close(grid_of(family, parameters, size, True), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("points", [(4, 6), (4, 5, 7)])
def test_a_cubic_b_spline_is_scipys(points: tuple[int, ...], corners: bool) -> None:
    family = CubicBSpline(points)
    size, parameters = SIZE[: family.rank], random(family)
    knots = tuple(2 * (np.arange(count + 4) - 3) / (count - 3) - 1 for count in points)
    coefficients = np.moveaxis(parameters.reshape(family.rank, *points).numpy(), 0, -1)
    oracle = NdBSpline(knots, coefficients, 3)
    wanted = oracle(targets(size, corners).numpy().T[:, ::-1])
    np.testing.assert_allclose(grid_of(family, parameters, size, corners).numpy().T, wanted, atol=1e-12)


def test_a_b_spline_has_two_continuous_derivatives() -> None:
    (matrix, _) = CubicBSpline((7, 4)).axis_matrices((4001, 5), True)
    third = np.abs(np.diff(matrix.numpy(), n=3, axis=0)).max() * 2000**3
    jumps = np.abs(np.diff(matrix.numpy(), n=2, axis=0)).max(axis=0) * 2000**2
    assert third < 4 * 2.0**3 * 8  # the third derivative is bounded: the second one does not jump
    assert jumps.max() > 1


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_lattice_that_moves_as_a_whole_moves_the_grid(
    rows: int, cols: int, seed: int, corners: bool, offsets: bool
) -> None:
    shift = torch.randn(2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    families: list[TensorProduct] = [
        CoarseLattice((rows, cols), interpolation, offsets) for interpolation in ("bilinear", "bicubic")
    ]
    for family in [*families, CubicBSpline((rows + 2, cols + 2), offsets)]:
        parameters = family.identity() + random(family, seed)
        moved = (parameters.reshape(2, -1) + shift).flatten()
        wanted = grid_of(family, parameters, (5, 6), corners) + shift
        torch.testing.assert_close(grid_of(family, moved, (5, 6), corners), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", [CoarseLattice((3, 5)), CubicBSpline((5, 4)), CubicBSpline((4, 4, 5))])
def test_an_affine_map_of_the_points_is_that_map(family: TensorProduct) -> None:
    rank = family.rank
    matrix = torch.randn(rank, rank + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    points = family.identity().reshape(rank, -1)
    parameters = (matrix[:, :rank] @ points + matrix[:, rank:]).flatten()
    wanted = matrix[:, :rank] @ targets(SIZE[:rank], False) + matrix[:, rank:]
    torch.testing.assert_close(grid_of(family, parameters, SIZE[:rank], False), wanted, atol=1e-12, rtol=0)


def test_offsets_are_positions_less_the_identity() -> None:
    for absolute in (CoarseLattice((3, 4)), CubicBSpline((4, 4, 5))):
        offset = type(absolute)(absolute.points, offsets=True)
        moves = random(offset)
        wanted = grid_of(absolute, absolute.identity() + moves, SIZE[: offset.rank], False)
        torch.testing.assert_close(grid_of(offset, moves, SIZE[: offset.rank], False), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("corners", [False, True])
def test_bicubic_offsets_start_at_the_exact_identity(corners: bool) -> None:
    """A = -0.75 does not reproduce a ramp, so the identity is a column of its own."""
    family = CoarseLattice((4, 3), "bicubic", offsets=True)
    grid = grid_of(family, family.identity(), (11, 10), corners)
    torch.testing.assert_close(grid, targets((11, 10), corners), atol=1e-14, rtol=0)
    positions = CoarseLattice((4, 3), "bicubic")
    error = grid_of(positions, positions.identity(), (11, 10), corners) - targets((11, 10), corners)
    assert 0.01 < float(error.abs().max()) < 0.2


def test_thousands_of_points_need_no_dense_basis() -> None:
    """The dense basis of this lattice would take 2 GB."""
    layer = SpatialTransformer(None, CoarseLattice((45, 31)), (712, 488), align_corners=True)
    assert sum(buffer.numel() for buffer in layer.buffers()) < 60_000
    coarse = torch.randn(1, 2, 45, 31, generator=torch.Generator().manual_seed(0))
    grid = layer.grid(layer.theta(coarse.flatten(1)))
    wanted = F.interpolate(coarse, (712, 488), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(grid, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [CoarseLattice, CubicBSpline])
@pytest.mark.parametrize("points", [(1, 5), (3,), (4, 4, 4, 4), "ab", 5, (4, float("nan"))])
def test_invalid_lattices_are_rejected(make: type, points: object) -> None:
    with pytest.raises(UsageError, match=f"points of {make.__name__} are "):
        make(points)


def test_unknown_interpolations_are_rejected() -> None:
    with pytest.raises(UsageError, match="interpolation of CoarseLattice is bilinear or bicubic, not 'cubic'"):
        CoarseLattice((3, 3), "cubic")  # type: ignore[arg-type]


def test_the_weights_are_a_partition_of_unity() -> None:
    for family, corners in itertools.product(
        [CoarseLattice((2, 6)), CoarseLattice((3, 4), "bicubic"), CubicBSpline((4, 9))], [False, True]
    ):
        for matrix in family.axis_matrices((11, 1), corners):
            torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64), atol=1e-14, rtol=0)
    spline = BSpline.basis_element(np.arange(5.0))  # the weight of the middle point of five, at its own knot
    assert float(CubicBSpline((5, 4)).axis_matrices((5, 1), True)[0][2, 2]) == pytest.approx(float(spline(2.0)))
