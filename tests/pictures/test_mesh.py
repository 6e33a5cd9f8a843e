"""The lines of a mesh: the exact image of a line under a homography, on both sides of the horizon."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from stn_infer.pictures.mesh import counts_for, inner_indices, outline_indices, pieces

BOX = (np.array([-50.0, -50.0]), np.array([150.0, 150.0]))


def distance(points: NDArray[np.float64], line: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each of ``points`` [P, 2] to the polyline [L, 2]."""
    first, last = line[:-1], line[1:]
    step = last - first
    share = ((points[:, None] - first) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-30)
    nearest = first + share.clip(0, 1)[..., None] * step
    found: NDArray[np.float64] = np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)
    return found


def homography(seed: int) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    matrix = np.array([[40.0, 5, 40], [-5, 40, 50], [0, 0, 1]])
    matrix[2, :2] = random.uniform(-2, 2, 2)
    return matrix


def line_of(matrix: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [count, 2] and denominators along the output's row y = 0.3."""
    x = np.linspace(-1, 1, count)
    across = matrix @ np.stack([x, np.full(count, 0.3), np.ones(count)])
    return (across[:2] / across[2]).T, across[2]


@pytest.mark.parametrize("seed", range(12))
def test_pieces_are_all_of_the_exact_line_and_nothing_else(seed: int) -> None:
    matrix = homography(seed)
    drawn = pieces(*line_of(matrix, 9), BOX)
    exact, w = line_of(matrix, 20001)
    inside = ((exact >= BOX[0]) & (exact <= BOX[1])).all(axis=1)
    for sign in (True, False):
        same = [line for line, positive in drawn if positive == sign]
        there = exact[inside & ((w > 0) == sign)]
        if len(there):
            gaps = np.stack([distance(there, line) for line in same])
            assert gaps.min(axis=0).max() < 1e-6
        for line in same:
            dense = np.concatenate([np.linspace(*pair, 50) for pair in pairwise(line)])
            apart = np.linalg.norm(dense[:, None] - there[::20], axis=-1).min(axis=1)
            assert apart.max() < 2.0, "a part of a line where nothing is sampled"


def test_a_point_on_the_horizon_does_not_end_its_neighbors_lines() -> None:
    """Points x / x of w = x = -1, 0, 1 (y constant): two rays, which leave the box on either side."""
    line, w = np.array([[10.0, 10], [np.nan, np.nan], [90.0, 10]]), np.array([-1.0, 0.0, 1.0])
    (first, one), (last, other) = pieces(line, w, BOX)
    assert (one, other) == (False, True)
    np.testing.assert_allclose(first, [[10, 10], [-50, 10]])
    np.testing.assert_allclose(last, [[150, 10], [90, 10]])


def test_points_that_are_not_finite_interrupt_a_line() -> None:
    line = np.array([[0.0, 0], [10, 0], [np.inf, 0], [30, 0], [40, 0], [np.nan, 1], [60, 0]])
    found = pieces(line, None, BOX)
    assert [part.tolist() for part, _ in found] == [[[0, 0], [10, 0]], [[30, 0], [40, 0]]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([[0, 0], [1e30, 0]], [[0, 0], [150, 0]]),
        ([[-1e6, 20], [1e6, 20]], [[-50, 20], [150, 20]]),
        ([[-100, 0], [-60, 0]], None),
        ([[200, -200], [200, 200]], None),
    ],
)
def test_lines_are_cut_at_the_box(line: list[list[float]], expected: list[list[float]] | None) -> None:
    found = pieces(np.array(line, np.float64), None, BOX)
    assert len(found) == (expected is not None)
    for part, _ in found:
        np.testing.assert_allclose(part, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 9), (1, 4), (4, 1), (1, 1), (28, 28)])
def test_the_outline_goes_around_once_and_the_rest_is_inside(size: tuple[int, int]) -> None:
    rows, columns = outline_indices(size)
    edge = set(zip(rows.tolist(), columns.tolist(), strict=True))
    height, width = size
    every = {(row, column) for row in range(height) for column in range(width)}
    assert edge == {(r, c) for r, c in every if r in (0, height - 1) or c in (0, width - 1)}
    assert (rows[0], columns[0]) == (rows[-1], columns[-1]) == (0, 0)
    assert (np.abs(np.diff(rows)) + np.abs(np.diff(columns)) <= 1).all()
    inner = list(inner_indices(size, (8, 8)))
    assert all(len(set(r.tolist())) == 1 or len(set(c.tolist())) == 1 for r, c in inner)
    assert len(inner) == min(6, max(height - 2, 0)) + min(6, max(width - 2, 0))


def test_a_small_mesh_has_fewer_lines() -> None:
    x, y = np.meshgrid(np.linspace(0, 70, 20), np.linspace(0, 25, 10))
    points = np.stack([x, y], axis=-1)
    assert counts_for(points, 10) == (3, 8)
    assert counts_for(points / 10, 10) == (2, 2)
    points[3] = np.nan
    assert counts_for(points, 10) == (2, 8)
