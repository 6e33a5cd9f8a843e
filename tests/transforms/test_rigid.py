"""Rigid and similarity against scipy's rotations; composition, inverse, sides of different lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from stn_infer.errors import UsageError
from stn_infer.transforms import Affine, Rigid, Similarity
from tests.support.grids import grid_of, targets

angles = st.floats(-7, 7)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.tuples(angles, angles, angles), st.floats(0.2, 3))
@settings(max_examples=25, deadline=None)
def test_rotations_of_volumes_are_scipys_fixed_axis_euler_angles(turn: tuple[float, ...], scale: float) -> None:
    rotation = Rotation.from_euler("xyz", turn).as_matrix()
    shift = np.array([0.1, -0.2, 0.3])
    size = (3, 4, 5)
    wanted = rotation @ targets(size, False).numpy() + shift[:, None]
    grid = grid_of(Rigid(3), doubles(*turn, *shift), size, False)
    np.testing.assert_allclose(grid.numpy(), wanted, atol=1e-12)
    wanted = scale * rotation @ targets(size, False).numpy() + shift[:, None]
    grid = grid_of(Similarity(3), doubles(scale, *turn, *shift), size, False)
    np.testing.assert_allclose(grid.numpy(), wanted, atol=1e-12)


@given(angles, angles)
@settings(max_examples=25, deadline=None)
def test_rotations_of_images_compose(first: float, second: float) -> None:
    family = Rigid()
    inner = grid_of(family, doubles(first, 0, 0), (4, 5), True)
    cos, sin = math.cos(second), math.sin(second)
    outer = torch.stack([cos * inner[0] - sin * inner[1], sin * inner[0] + cos * inner[1]])
    both = grid_of(family, doubles(first + second, 0, 0), (4, 5), True)
    torch.testing.assert_close(both, outer, atol=1e-12, rtol=0)


def test_a_quarter_turn_maps_x_to_y() -> None:
    x, y = targets((3, 3), True)
    grid = grid_of(Rigid(), doubles(math.pi / 2, 0.25, -0.5), (3, 3), True)
    torch.testing.assert_close(grid, torch.stack([-y + 0.25, x - 0.5]), atol=1e-15, rtol=0)


@pytest.mark.parametrize("corners", [False, True])
def test_extent_makes_distances_of_the_content_those_of_the_image(corners: bool) -> None:
    extent = (7.0, 3.0, 5.0)
    family, lengths = Similarity(3, extent), doubles(*extent)[:, None]
    sources = grid_of(family, doubles(0.8, 0.4, -1.1, 2.0, 0, 0, 0), (3, 4, 5), corners) * lengths
    points = targets((3, 4, 5), corners) * lengths
    torch.testing.assert_close(torch.pdist(sources.T), 0.8 * torch.pdist(points.T), atol=1e-9, rtol=0)


def test_the_grid_is_the_affine_one_of_its_matrix() -> None:
    cos, sin = 0.7 * math.cos(0.3), 0.7 * math.sin(0.3)
    grid = grid_of(Similarity(2, (2.0, 1.0)), doubles(0.7, 0.3, 0.1, 0.2), (5, 6), False)
    wanted = grid_of(Affine(), doubles(cos, -sin / 2, 0.1, sin * 2, cos, 0.2), (5, 6), False)
    torch.testing.assert_close(grid, wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("extent", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan")), "ab", 3])
def test_invalid_extents_are_rejected(extent: object) -> None:
    with pytest.raises(UsageError, match="extent of Rigid is 2 positive lengths"):
        Rigid(2, extent)  # type: ignore[arg-type]
