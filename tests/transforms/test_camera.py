"""Cameras against the pinhole model in float64: voxels, plane sweeps and points behind the camera."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Camera, plane_points, voxel_centers

IMAGE = (6, 9)
INTRINSICS = torch.tensor([[8.0, 0, 4], [0, 7, 2.5], [0, 0, 1]], dtype=torch.float64)


def pose(angle: float, *shift: float) -> Tensor:
    """[3, 4]: a rotation about y, and a translation."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float64)
    return torch.cat([turn, torch.tensor(shift, dtype=torch.float64)[:, None]], 1)


def pixels_read(layer: SpatialTransformer, matrix: Tensor, corners: bool) -> Tensor:
    """[P, 2]: x and y of the pixels that a layer reads."""
    grid = layer.double().grid(layer.theta(matrix.reshape(1, 12)))[0].reshape(-1, 2)
    lengths = torch.tensor(IMAGE[::-1], dtype=torch.float64)
    return (grid + 1) / 2 * (lengths - 1) if corners else ((grid + 1) * lengths - 1) / 2


@pytest.mark.parametrize("corners", [False, True])
def test_voxels_are_read_where_they_project_to(corners: bool) -> None:
    points = voxel_centers((2, 3, 4), (-1, -0.5, 1), (1, 0.5, 3))
    assert points[:, 0, 0, 0].tolist() == pytest.approx([-0.75, -1 / 3, 1.5])
    assert points[:, 1, 2, 3].tolist() == pytest.approx([0.75, 1 / 3, 2.5])
    matrix = INTRINSICS @ pose(0.3, 0.1, -0.2, 0.4)
    family = Camera(points, IMAGE, matrix)
    layer = SpatialTransformer(None, family, family.size, align_corners=corners)
    found = pixels_read(layer, matrix, corners)
    for place, (x, y) in zip(points.flatten(1).T.tolist(), found.tolist(), strict=True):
        u, v, w = (sum(a * b for a, b in zip(row, [*place, 1.0], strict=True)) for row in matrix.tolist())
        assert (x, y) == pytest.approx((u / w, v / w), abs=1e-12)
    images = torch.rand(2, 3, *IMAGE)
    assert layer.float()(images, matrix.reshape(1, 12).repeat(2, 1).float()).unflatten(2, (2, 3)).shape == (
        2,
        3,
        2,
        3,
        4,
    )


@pytest.mark.parametrize("corners", [False, True])
def test_a_plane_sweep_is_a_homography_per_plane(corners: bool) -> None:
    depths, other = (1.0, 2.5), pose(0.2, 0.3, 0.1, -0.05)
    family = Camera(plane_points(INTRINSICS, depths, (4, 5)), IMAGE, torch.eye(3, 4))
    layer = SpatialTransformer(None, family, (8, 5), align_corners=corners)
    found = pixels_read(layer, INTRINSICS @ other, corners).reshape(2, 4, 5, 2)
    v, u = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    reference = torch.stack([u, v, torch.ones_like(u)]).double().flatten(1)
    for depth, plane in zip(depths, found, strict=True):
        normal = torch.tensor([[0.0, 0.0, 1 / depth]], dtype=torch.float64)
        homography = INTRINSICS @ (other[:, :3] + other[:, 3:] @ normal) @ INTRINSICS.inverse()
        mapped = homography @ reference
        torch.testing.assert_close(plane.reshape(-1, 2).T, mapped[:2] / mapped[2:])


def test_the_reference_camera_sees_its_own_image_in_every_plane() -> None:
    initial = torch.cat([INTRINSICS, torch.zeros(3, 1)], 1)
    family = Camera(plane_points(INTRINSICS, [1.0, 3.0], IMAGE), IMAGE, initial)
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(54, 12))
    images = torch.rand(2, 1, *IMAGE)
    for order in ("xy", "yx"):
        warped = SpatialTransformer(head, family, family.size, order=order)(images)  # type: ignore[arg-type]
        torch.testing.assert_close(
            warped.unflatten(2, (2, 6)), images[:, :, None].repeat(1, 1, 2, 1, 1), atol=1e-5, rtol=0
        )


def test_points_behind_the_camera_are_outside_of_the_image() -> None:
    family = Camera(torch.tensor([[0.2, 0.2], [0.1, 0.1], [2.0, -2.0]]), IMAGE, torch.eye(3, 4))
    matrix = (INTRINSICS @ pose(0, 0, 0, 0)).reshape(1, 12).float()
    image = torch.ones(1, 1, *IMAGE)
    assert SpatialTransformer(None, family, family.size)(image, matrix).flatten().tolist() == pytest.approx([1, 0])
    free = Camera(family.points, IMAGE, torch.eye(3, 4), w_min=None)
    assert SpatialTransformer(None, free, free.size)(image, matrix).flatten().tolist() == pytest.approx([1, 1])


def test_an_image_of_one_row() -> None:
    family = Camera(torch.zeros(3, 1), (1, 9), torch.eye(3, 4))
    matrix = torch.tensor([[0.0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1]])
    for corners in (False, True):
        layer = SpatialTransformer(None, family, (1, 1), align_corners=corners)
        assert layer(torch.arange(9.0).reshape(1, 1, 1, 9), matrix).item() == pytest.approx(4)


def test_arguments_that_do_not_fit_are_one_line() -> None:
    points, matrix = torch.zeros(3, 4), torch.eye(3, 4)
    for wrong in (torch.zeros(4, 4), torch.zeros(3), torch.zeros(3, 0)):
        with pytest.raises(UsageError, match=r"points of a Camera are \[3, ...\]"):
            Camera(wrong, IMAGE, matrix)
    with pytest.raises(UsageError, match=r"initial matrix of a Camera is \[3, 4\], not \[3, 3\]"):
        Camera(points, IMAGE, torch.eye(3))
    with pytest.raises(UsageError, match="NaN or infinity"):
        Camera(points, IMAGE, matrix * math.nan)
    with pytest.raises(UsageError, match="a depth above zero, or None, not 0"):
        Camera(points, IMAGE, matrix, 0.0)
    with pytest.raises(UsageError, match="image_size of Camera has 2 axes"):
        Camera(points, (6, 9, 1), matrix)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"output_size of this Camera is \(1, 4\).*not \(4, 1\)"):
        SpatialTransformer(None, Camera(points, IMAGE, matrix), (4, 1))
    with pytest.raises(UsageError, match="two corners"):
        voxel_centers((2, 3), (0, 0, 0), (1, 1, 1))
    with pytest.raises(UsageError, match="are finite"):
        voxel_centers((2, 3, 4), (0, 0, 0), (1, 1, np.inf))
    with pytest.raises(UsageError, match="at least one depth"):
        plane_points(INTRINSICS, [], IMAGE)
    with pytest.raises(UsageError, match="no inverse"):
        plane_points(torch.zeros(3, 3), [1.0], IMAGE)
