"""All transformations: shapes, the identity, and grids that match their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_infer.errors import UsageError
from stn_infer.transforms import (
    Affine,
    Attention,
    CoarseLattice,
    CubicBSpline,
    PiecewiseAffine,
    Projective,
    RationalPolynomial,
    Rigid,
    Similarity,
    ThinPlateSpline,
    Transformation,
    Translation,
)
from tests.support.grids import grid_of, targets

FAMILIES: list[Transformation] = [
    Translation(),
    Translation(3),
    Attention(),
    Attention(3),
    Affine(),
    Affine(3),
    Projective(8),
    Projective(9),
    Projective(rank=3),
    Projective(16, 3, 0.5),
    RationalPolynomial(2),
    RationalPolynomial(2, 3, 0.25),
    PiecewiseAffine((2, 2)),
    PiecewiseAffine((3, 5), offsets=True),
    ThinPlateSpline((2, 2)),
    ThinPlateSpline((4, 4)),
    ThinPlateSpline((3, 5), offsets=True),
    Rigid(),
    Rigid(3, (1.0, 2.0, 3.0)),
    Similarity(2, (13.0, 10.0)),
    Similarity(3),
    ThinPlateSpline((2, 3, 2), offsets=True),
    CoarseLattice((3, 4)),
    CoarseLattice((2, 3, 4), offsets=True),
    CoarseLattice((3, 4), "bicubic", offsets=True),
    CubicBSpline((4, 5)),
    CubicBSpline((4, 5, 4), offsets=True),
]
sizes = st.integers(1, 12)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{type(family).__name__}{family.num_parameters}")
@given(lengths=st.tuples(sizes, sizes, sizes))
@settings(max_examples=15, deadline=None)
def test_identity_gives_the_target_coordinates(
    family: Transformation, corners: bool, lengths: tuple[int, int, int]
) -> None:
    size = lengths[: family.rank]
    grid = grid_of(family, family.identity(), size, corners)
    torch.testing.assert_close(grid, targets(size, corners), atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{type(family).__name__}{family.num_parameters}")
def test_shapes_and_types(family: Transformation) -> None:
    size = (3, 4, 5)[: family.rank]
    matrix, offset = family.affine_map(size, False)
    assert family.features(torch.zeros(2, family.num_parameters)).shape == (2, family.num_features)
    rows = math.prod(family.theta_shape)
    basis = family.basis(size, False)
    assert matrix.shape == (rows, family.num_features)
    assert offset.shape == (rows,)
    assert basis.shape == (family.num_basis, math.prod(size))
    assert family.identity().shape == (family.num_parameters,)
    assert {matrix.dtype, offset.dtype, basis.dtype, family.identity().dtype} == {torch.float64}


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("family", [Affine(), Affine(3), Attention(), Translation(3), Projective(8)])
def test_affine_and_projective_bases_are_pixel_centers_in_both_conventions(
    family: Transformation, corners: bool
) -> None:
    size = (4, 6, 5)[: family.rank]
    basis = family.basis(size, corners)
    torch.testing.assert_close(basis[:-1], targets(size, False), atol=1e-15, rtol=0)
    assert bool((basis[-1] == 1).all())


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_affine_is_the_matrix_times_the_target_coordinates(rank: int, corners: bool) -> None:
    size = (5, 7, 3)[:rank]
    parameters = torch.randn(rank * (rank + 1), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = parameters.reshape(rank, rank + 1)
    wanted = matrix[:, :rank] @ targets(size, corners) + matrix[:, rank:]
    torch.testing.assert_close(grid_of(Affine(rank), parameters, size, corners), wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_attention_scales_and_translates(rank: int, corners: bool) -> None:
    size = (5, 7, 3)[:rank]
    shift = torch.tensor([0.25, -0.5, 0.125], dtype=torch.float64)[:rank]
    wanted = 0.6 * targets(size, corners) + shift[:, None]
    free = grid_of(Attention(rank), torch.cat([torch.tensor([0.6], dtype=torch.float64), shift]), size, corners)
    fixed = grid_of(Attention(rank, scale=0.6), shift, size, corners)
    torch.testing.assert_close(free, wanted, atol=1e-14, rtol=0)
    torch.testing.assert_close(fixed, wanted, atol=1e-14, rtol=0)
    assert Attention(rank, scale=0.6).num_parameters == rank


@pytest.mark.parametrize("corners", [False, True])
@given(st.lists(st.floats(-1, 1), min_size=12, max_size=12))
@settings(max_examples=30, deadline=None)
def test_affine_maps_compose(corners: bool, values: list[float]) -> None:
    first, second = torch.tensor(values, dtype=torch.float64).reshape(2, 2, 3)
    last_row = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    both = (torch.cat([second, last_row]) @ torch.cat([first, last_row]))[:2]
    inner = grid_of(Affine(), first.reshape(-1), (4, 5), corners)
    outer = second[:, :2] @ inner + second[:, 2:]
    torch.testing.assert_close(grid_of(Affine(), both.reshape(-1), (4, 5), corners), outer, atol=1e-13, rtol=0)


@given(st.lists(st.floats(-0.2, 0.2), min_size=18, max_size=18))
@settings(max_examples=30, deadline=None)
def test_homographies_compose(values: list[float]) -> None:
    first, second = torch.eye(3, dtype=torch.float64) + torch.tensor(values, dtype=torch.float64).reshape(2, 3, 3)
    inner = grid_of(Projective(9), first.reshape(-1), (4, 5), False)
    mapped = second @ torch.cat([inner, torch.ones(1, 20, dtype=torch.float64)])
    both = grid_of(Projective(9), (second @ first).reshape(-1), (4, 5), False)
    torch.testing.assert_close(both, mapped[:2] / mapped[2], atol=1e-9, rtol=1e-9)


def test_projective_has_h33_of_1_or_9_parameters_up_to_scale() -> None:
    eight = torch.tensor([1.1, 0.1, 0.2, -0.1, 0.9, -0.3, 0.2, -0.1], dtype=torch.float64)
    nine = torch.cat([eight, torch.ones(1, dtype=torch.float64)])
    wanted = grid_of(Projective(8), eight, (5, 6), True)
    torch.testing.assert_close(grid_of(Projective(9), nine, (5, 6), True), wanted, atol=1e-14, rtol=0)
    torch.testing.assert_close(grid_of(Projective(9), -3 * nine, (5, 6), True), wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("make", [PiecewiseAffine, ThinPlateSpline])
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_offsets_are_absolute_positions_less_the_points(make: type, rows: int, cols: int, seed: int) -> None:
    absolute, offset = make((rows, cols)), make((rows, cols), offsets=True)
    moves = torch.randn(2 * rows * cols, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    grid = grid_of(offset, moves, (5, 6), False)
    wanted = grid_of(absolute, absolute.identity() + moves, (5, 6), False)
    torch.testing.assert_close(grid, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [PiecewiseAffine, ThinPlateSpline])
def test_points_that_move_together_move_the_grid(make: type) -> None:
    family = make((3, 3))
    matrix = torch.tensor([[0.8, 0.3], [-0.2, 1.1]], dtype=torch.float64)
    moved = family.target_points() @ matrix.T + torch.tensor([0.1, -0.4], dtype=torch.float64)
    grid = grid_of(family, moved.reshape(-1), (6, 7), False)
    wanted = matrix @ targets((6, 7), False) + torch.tensor([[0.1], [-0.4]], dtype=torch.float64)
    torch.testing.assert_close(grid, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("size", "family"), [((4,), Affine()), ((4, 5), Affine(3)), ((0, 5), ThinPlateSpline()), ((4, 5, 6), Projective())]
)
def test_output_sizes_that_do_not_match_are_rejected(size: tuple[int, ...], family: Transformation) -> None:
    with pytest.raises(UsageError, match="output_size"):
        family.basis(size, False)


@pytest.mark.parametrize("make", [Translation, Attention, Affine, Rigid, Similarity])
def test_ranks_other_than_2_and_3_are_rejected(make: type) -> None:
    with pytest.raises(UsageError, match="not 4"):
        make(4)


def test_projective_takes_8_or_9_parameters() -> None:
    with pytest.raises(UsageError, match="or 9, not 7"):
        Projective(7)


def test_transformations_compare_by_value() -> None:
    assert ThinPlateSpline((2, 3)) == ThinPlateSpline(torch.tensor(ThinPlateSpline((2, 3)).points).numpy())
    assert len({Affine(), Affine(2), Affine(3), Projective(), Projective(9), PiecewiseAffine()}) == 5
