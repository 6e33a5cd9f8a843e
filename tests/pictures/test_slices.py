"""Slices of volumes, and where the surface of a sampled box crosses them."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.arrays import Array
from stn_infer.pictures.slices import PLANES, crossing, cut, edges, middle, seen_from


def box(low: Array, high: Array, turn: Array | None = None, size: tuple[int, int, int] = (3, 4, 5)) -> Array:
    """Points [*size, 3], (x, y, z), that fill the box from ``low`` to ``high``, turned about the origin."""
    depth, height, width = (np.linspace(0, 1, length) for length in size)
    z, y, x = np.meshgrid(depth, height, width, indexing="ij")
    points = low + np.stack([x, y, z], axis=-1) * (high - low)
    return points if turn is None else points @ turn.T


LOW, HIGH = np.array([1.0, 2.0, 3.0]), np.array([5.0, 7.0, 9.0])


def test_a_slice_shows_the_voxels_of_its_plane() -> None:
    volume = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # [C, D, H, W]
    np.testing.assert_array_equal(cut(volume, 2, 1), volume[:, 1])
    np.testing.assert_array_equal(cut(volume, 1, 2), volume[:, :, 2])
    np.testing.assert_array_equal(cut(volume, 0, 4), volume[..., 4].transpose(0, 2, 1))
    sizes = (5, 4, 3)
    for across, horizontal, vertical in PLANES:
        assert cut(volume, across, 0).shape == (2, sizes[vertical], sizes[horizontal])


@pytest.mark.parametrize("across", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 8])
def test_a_box_along_the_axes_is_crossed_in_its_rectangle(across: int, count: int) -> None:
    rest = [axis for axis in range(3) if axis != across]
    inside = (LOW[across] + HIGH[across]) / 2 + 0.1
    segments = crossing(box(LOW, HIGH), across, inside, count)
    assert len(segments) and np.allclose(segments[..., across], inside)
    np.testing.assert_allclose(segments[..., rest].min(axis=(0, 1)), LOW[rest])
    np.testing.assert_allclose(segments[..., rest].max(axis=(0, 1)), HIGH[rest])
    length = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=-1).sum()
    np.testing.assert_allclose(length, 2 * (HIGH - LOW)[rest].sum())
    for outside in (LOW[across] - 0.1, HIGH[across] + 0.1):
        assert not len(crossing(box(LOW, HIGH), across, outside, count))


def test_a_turned_box_is_crossed_in_a_turned_rectangle() -> None:
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    segments = crossing(box(LOW, HIGH, turn), 2, 6.0, 2)
    upright = segments @ turn
    np.testing.assert_allclose(upright[..., :2].min(axis=(0, 1)), LOW[:2])
    np.testing.assert_allclose(upright[..., :2].max(axis=(0, 1)), HIGH[:2])


def test_every_end_of_a_segment_is_the_end_of_another() -> None:
    """The line around a box is closed, also where a plane goes through corners."""
    rng = np.random.default_rng(0)
    turned = box(LOW, HIGH, np.linalg.qr(rng.standard_normal((3, 3)))[0])
    for position in (*rng.uniform(turned[..., 1].min(), turned[..., 1].max(), 20), turned[0, 0, 0, 1]):
        segments = crossing(turned, 1, float(position), 3)
        segments = segments[np.linalg.norm(segments[:, 1] - segments[:, 0], axis=-1) > 1e-9]
        ends = segments.reshape(-1, 3)
        near = np.linalg.norm(ends[:, None] - ends[None], axis=-1) < 1e-6
        assert (near.sum(axis=1) % 2 == 0).all()


def test_points_that_are_not_finite_leave_a_gap() -> None:
    points = box(LOW, HIGH)
    whole = len(crossing(points, 2, 6.0, 8))
    points[0, 0, 0] = np.nan
    assert 0 < len(crossing(points, 2, 6.0, 8)) < whole
    assert len(crossing(np.full((2, 2, 2, 3), np.nan), 0, 0.0, 2)) == 0


def test_edges_run_along_every_axis() -> None:
    found = edges(box(LOW, HIGH), 2)
    assert len(found) == 12
    spans = np.array([np.abs(edge[-1] - edge[0]) for edge in found])
    assert (np.sort(spans, axis=1)[:, :2] == 0).all()
    np.testing.assert_allclose(sorted(spans.max(axis=1)), np.repeat(HIGH - LOW, 4))


def test_the_slices_go_through_the_middle_of_the_box_or_the_nearest_voxel() -> None:
    assert middle((3, 4, 5)) == (1, 2, 2)
    assert seen_from(box(LOW, HIGH), (20, 20, 20)) == (3, 5, 6)  # x: 1 + 4 / 2; y: 2 + 5 * 2 / 3; z: 3 + 6 / 2
    assert seen_from(box(LOW + 50, HIGH + 50), (20, 21, 22)) == (21, 20, 19)
    assert seen_from(np.full((3, 3, 3, 3), np.nan), (10, 10, 10)) == (4, 4, 4)
