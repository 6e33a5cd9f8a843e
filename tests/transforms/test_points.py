"""Thin plate spline and piecewise affine against scipy and scikit-image, and invalid points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import Delaunay
from skimage.transform import PiecewiseAffineTransform, ProjectiveTransform

from stn_infer.errors import UsageError
from stn_infer.transforms import PiecewiseAffine, Projective, ThinPlateSpline
from tests.support.grids import grid_of, targets

Points = NDArray[np.float64]


def scattered(seed: int, count: int) -> Points:
    """The four corners and ``count`` random points inside, all far apart."""
    rng = np.random.default_rng(seed)
    points = [np.array(corner, dtype=float) for corner in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    while len(points) < count + 4:
        candidate = rng.uniform(-0.9, 0.9, 2)
        if min(np.linalg.norm(candidate - point) for point in points) > 0.2:
            points.append(candidate)
    return np.array(points)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("points", [(2, 2), (4, 4), (2, 10), scattered(0, 6), scattered(1, 20)])
def test_thin_plate_spline_agrees_with_scipy(points: tuple[int, int] | Points, corners: bool) -> None:
    family = ThinPlateSpline(points)
    control = family.target_points().numpy()
    sources = control + np.random.default_rng(2).normal(0, 0.2, control.shape)
    grid = grid_of(family, torch.from_numpy(sources.reshape(-1)), (32, 20), corners)
    oracle = RBFInterpolator(control, sources, kernel="thin_plate_spline", degree=1)
    np.testing.assert_allclose(grid.numpy(), oracle(targets((32, 20), corners).T.numpy()).T, atol=1e-10)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("points", [(2, 2, 2), (2, 3, 4), np.random.default_rng(0).uniform(-1, 1, (12, 3))])
def test_thin_plate_spline_of_volumes_agrees_with_scipy(points: tuple[int, ...] | Points, corners: bool) -> None:
    family = ThinPlateSpline(points)
    control = family.target_points().numpy()
    sources = control + np.random.default_rng(2).normal(0, 0.2, control.shape)
    grid = grid_of(family, torch.from_numpy(sources.reshape(-1)), (5, 6, 7), corners)
    oracle = RBFInterpolator(control, sources, kernel="linear", degree=1)  # U(r) = r
    np.testing.assert_allclose(grid.numpy(), oracle(targets((5, 6, 7), corners).T.numpy()).T, atol=1e-10)


@pytest.mark.parametrize("make", [ThinPlateSpline, PiecewiseAffine])
def test_control_points_map_to_their_sources(make: type) -> None:
    family = make((3, 5))  # a 3 x 5 lattice lies on the pixels of a 3 x 5 grid of corners
    sources = torch.randn(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = grid_of(family, sources.reshape(-1), (3, 5), True)
    torch.testing.assert_close(grid.T, sources, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_piecewise_affine_agrees_with_scikit_image(seed: int) -> None:
    control = scattered(seed, 8)
    sources = control + np.random.default_rng(seed).normal(0, 0.1, control.shape)
    family = PiecewiseAffine(control, triangles=Delaunay(control).simplices)
    grid = grid_of(family, torch.from_numpy(sources.reshape(-1)), (17, 23), False)
    oracle = PiecewiseAffineTransform.from_estimate(control, sources)
    np.testing.assert_allclose(grid.numpy().T, oracle(targets((17, 23), False).T.numpy()), atol=1e-12)


def test_piecewise_affine_depends_on_three_points_per_pixel() -> None:
    basis = PiecewiseAffine((3, 4)).basis((20, 30), False)
    assert int((basis != 0).sum(0).max()) == 3
    assert float(basis.min()) > -1e-12
    torch.testing.assert_close(basis.sum(0), torch.ones(600, dtype=torch.float64), atol=1e-14, rtol=0)


def test_piecewise_affine_extends_the_nearest_triangle_outside_the_mesh() -> None:
    family = PiecewiseAffine([(-0.5, -0.5), (0.5, -0.5), (0.0, 0.5)], triangles=[(0, 1, 2)])
    grid = grid_of(family, family.identity(), (8, 8), True)
    torch.testing.assert_close(grid, targets((8, 8), True), atol=1e-12, rtol=0)


@pytest.mark.parametrize("corners", [False, True])
def test_projective_agrees_with_scikit_image(corners: bool) -> None:
    homography = np.array([[1.1, 0.2, -0.1], [-0.3, 0.8, 0.2], [0.15, -0.25, 1.0]])
    grid = grid_of(Projective(8), torch.from_numpy(homography.reshape(-1)[:8]), (9, 13), corners)
    oracle = ProjectiveTransform(matrix=homography)
    np.testing.assert_allclose(grid.numpy().T, oracle(targets((9, 13), corners).T.numpy()), atol=1e-12)


@pytest.mark.parametrize("make", [ThinPlateSpline, PiecewiseAffine])
@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((1, 5), "at least 2 rows and 2 columns"),
        ([(0, 0), (1, 1)], "at least 3"),
        ([(0, 0), (1, 1), (2, 2), (-1, -1)], "are collinear; add a point off the line"),
        ([(0, 0), (1, 0), (0, 1), (1, 0)], "points 1 and 3 are equal"),
        ([(0, 0), (1, 0), (float("nan"), 1)], "finite"),
        ("none", "control points are"),
        ([(0, 0, 1), (1, 0, 1), (0, 1)], "control points are"),
        ([(0, 0, 1, 1)] * 5, "control points are"),
    ],
)
def test_invalid_points_are_rejected(make: type, points: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(points)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((2, 1, 5), "at least 2 planes, 2 rows and 2 columns, not 2 x 1 x 5"),
        ([(0, 0, 0), (1, 0, 0), (0, 1, 0)], "at least 4 control points"),
        ([(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)], "are coplanar; add a point off the plane"),
    ],
)
def test_invalid_points_of_volumes_are_rejected(points: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ThinPlateSpline(points)


def test_a_mesh_is_for_images_only() -> None:
    with pytest.raises(UsageError, match=r"control points are \(rows, cols\) or a list of \(x, y\), not"):
        PiecewiseAffine((2, 2, 2))


def test_thin_plate_spline_rejects_points_that_are_too_close() -> None:
    family = ThinPlateSpline([(-1, -1), (1, -1), (0, 1), (0, 1 - 1e-8)])
    with pytest.raises(UsageError, match="too close together"):
        family.basis((8, 8), False)


@pytest.mark.parametrize(
    ("triangles", "message"),
    [
        (None, "needs triangles"),
        ([], "at least one"),
        ([(0, 1, 9)], "not one of the 4 points"),
        ([(0, 1, 2)], "zero area"),
    ],
)
def test_invalid_triangles_are_rejected(triangles: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PiecewiseAffine([(-1, 0), (0, 0), (1, 0), (0, 1)], triangles=triangles)
