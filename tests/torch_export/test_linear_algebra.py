"""Inverse, solve and determinant against float64, beside LAPACK in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stn_infer.torch_export.linear_algebra import (
    LARGEST,
    determinant,
    inverse_ex,
    signed_log_determinant,
    solve_ex,
    takes_vectors,
)

COUNT = 32
EPSILON = float(np.finfo(np.float32).eps)


def matrices(size: int, decades: float, seed: int, scale: float = 1.0) -> Tensor:
    """Matrices [COUNT, n, n] in float32 whose singular values spread over ``decades`` powers of 10."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((COUNT, size, size)))[0] for _ in range(2))
    values = 10.0 ** -(decades * generator.random((COUNT, size)))
    values[:, 0] = 1
    return torch.from_numpy((scale * (left * values[:, None]) @ right).astype(np.float32))


def errors(found: Tensor, exact: Tensor) -> Tensor:
    """The largest error of each result over its magnitude, [COUNT]."""
    axes = tuple(range(1, exact.ndim))
    magnitude, off = exact.abs(), (found.double() - exact).abs()
    return off.amax(axes) / magnitude.amax(axes) if axes else off / magnitude


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, LARGEST),
    decades=st.sampled_from([0.0, 1.0, 3.0, 5.0]),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1.0, 1e-12, 1e12, 700.0]),
    columns=st.integers(1, 3),
)
def test_the_error_is_rounding_times_the_condition_number(
    size: int, decades: float, seed: int, scale: float, columns: int
) -> None:
    matrix = matrices(size, decades, seed, scale)
    right = torch.randn(COUNT, size, columns, generator=torch.Generator().manual_seed(seed))
    limit = 2 * size * EPSILON * torch.linalg.cond(matrix.double())
    inverse, info = inverse_ex(matrix)
    assert (errors(inverse, torch.linalg.inv(matrix.double())) <= limit).all()
    assert info.dtype == torch.int32 and not info.any()
    assert (errors(solve_ex(matrix, right)[0], torch.linalg.solve(matrix.double(), right.double())) <= limit).all()
    if scale in (1.0, 700.0):  # the others overflow float32
        assert (errors(determinant(matrix), torch.linalg.det(matrix.double())) <= limit).all()
    sign, size_of = signed_log_determinant(matrix)
    wanted_sign, wanted = torch.linalg.slogdet(matrix.double())
    assert torch.equal(sign.double(), wanted_sign)
    assert ((size_of.double() - wanted).abs() <= limit + 4 * EPSILON * (1 + wanted.abs())).all()


@pytest.mark.parametrize("size", range(2, LARGEST + 1))
def test_as_exact_as_lapack_on_the_whole(size: int) -> None:
    matrix = torch.cat([matrices(size, 3, seed) for seed in range(10)])
    right = torch.randn(len(matrix), size, 1, generator=torch.Generator().manual_seed(0))
    double, exact = matrix.double(), right.double()
    pairs = (
        (inverse_ex(matrix)[0], torch.linalg.inv(matrix), torch.linalg.inv(double)),
        (solve_ex(matrix, right)[0], torch.linalg.solve(matrix, right), torch.linalg.solve(double, exact)),
        (determinant(matrix), torch.linalg.det(matrix), torch.linalg.det(double)),
    )
    for ours, lapack, wanted in pairs:
        assert errors(ours, wanted).median() <= 1.5 * errors(lapack, wanted).median()


def test_a_cofactor_formula_would_not_be_as_exact() -> None:
    """Two small singular values: the determinant of cofactors cancels, elimination does not."""
    left, right = matrices(3, 0, 1), matrices(3, 0, 2)
    matrix = left @ torch.diag(torch.tensor([1.0, 2e-4, 1e-4])) @ right
    exact = torch.linalg.inv(matrix.double())
    assert errors(inverse_ex(matrix)[0], exact).max() < 5e-3
    a, b, c = matrix.unbind(-2)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    assert errors(rows / (a * rows[..., 0]).sum(-1)[:, None, None], exact).max() > 0.03


def test_rows_of_very_different_size() -> None:
    """A camera's matrix, and one whose entries span 40 powers of 10, which a common scale would lose."""
    camera = torch.tensor([[1200.0, 0, 960], [0, 1200, 540], [0, 0, 1]])
    wide = torch.tensor([[1e20, 1.0, 0], [1, 1e-20, 1], [0, 1, 1e-15]])
    for matrix in (camera, wide):
        torch.testing.assert_close(inverse_ex(matrix)[0], torch.linalg.inv(matrix), rtol=1e-5, atol=0)


def test_a_zero_pivot_is_passed_by_a_swap() -> None:
    matrix = torch.tensor([[0.0, 2, 0], [0, 0, 3], [4, 0, 0]])
    torch.testing.assert_close(inverse_ex(matrix)[0], torch.linalg.inv(matrix))
    assert float(determinant(matrix)) == 24
    assert float(determinant(matrix[[1, 0, 2]])) == -24


def test_singular_matrices_give_no_finite_inverse_and_say_where() -> None:
    matrix = torch.tensor([[[1.0, 2], [2, 4]], [[0, 0], [0, 0]], [[1, 0], [0, 1]]])
    inverse, info = inverse_ex(matrix)
    assert info.tolist() == torch.linalg.inv_ex(matrix).info.tolist() == [2, 1, 0]
    assert not torch.isfinite(inverse[:2]).any() and torch.equal(inverse[2], torch.eye(2))
    assert determinant(matrix).tolist() == [0, 0, 1]
    sign, size = signed_log_determinant(matrix)
    assert sign.tolist() == [0, 0, 1] and size.tolist() == [-torch.inf, -torch.inf, 0]
    with pytest.raises(RuntimeError, match="singular"):
        torch.linalg.inv(matrix)


@pytest.mark.parametrize(
    ("matrix", "right", "left"),
    [
        ((5, 3, 3), (5, 3), True),  # vectors
        ((3, 3), (3,), True),
        ((5, 3, 3), (3,), True),
        ((5, 3, 3), (3, 2), True),  # the same right-hand side for all
        ((3, 3), (5, 3, 2), True),
        ((5, 1, 3, 3), (4, 3, 2), True),
        ((5, 3, 3), (5, 2, 3), False),
        ((0, 3, 3), (0, 3, 2), True),
    ],
)
def test_solve_takes_what_torch_takes(matrix: tuple[int, ...], right: tuple[int, ...], left: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(matrix, generator=generator) + 3 * torch.eye(3)
    sides = torch.randn(right, generator=generator)
    found, info = solve_ex(given, sides, left)
    torch.testing.assert_close(found, torch.linalg.solve(given, sides, left=left))
    assert info.shape == torch.linalg.solve_ex(given, sides, left=left).info.shape
    assert takes_vectors(given, sides) == (len(right) == 1 or right == matrix[:-1])
