"""A sampled box in a volume: slices of the volume, and where the box's surface crosses them."""

from __future__ import annotations

from itertools import product

import numpy as np

from stn_infer.arrays import Array

#: The axes x, y and z of points as (across, horizontal, vertical) of the three slices, the first one across z.
PLANES = ((2, 0, 1), (1, 0, 2), (0, 2, 1))
AXES = "xyz"


def cut(volume: Array, across: int, index: int) -> Array:
    """The slice [C, height, width] of ``volume`` [C, D, H, W] at ``index`` of axis ``across`` (0: x, 1: y, 2: z)."""
    taken: Array = volume.take(index, axis=3 - across)
    return taken.transpose(0, 2, 1) if across == 0 else taken  # [C, D, H]: shown with z to the right


def middle(size: tuple[int, ...]) -> tuple[int, ...]:
    """The index of the middle voxel of a volume of ``size`` (D, H, W)."""
    return tuple(length // 2 for length in size)


def seen_from(points: Array, size: tuple[int, ...]) -> tuple[int, int, int]:
    """The voxel (x, y, z) of a volume of ``size`` (D, H, W) that is nearest to the middle of ``points`` [*out, 3]."""
    at = points[middle(points.shape[:3])]
    last = np.array(size[::-1]) - 1
    x, y, z = np.clip(np.where(np.isfinite(at), at, last / 2), 0, last).round().astype(int).tolist()
    return x, y, z


def edges(points: Array, count: int) -> list[Array]:
    """The 12 edges [L, 3] of the box that ``points`` [Do, Ho, Wo, 3] fill, ``count`` points of each."""
    found = []
    for axis in range(3):
        for first, second in product((0, -1), repeat=2):
            line = np.moveaxis(points, axis, 0)[:, first, second]
            found.append(line[_spread(len(line), count)])
    return found


def crossing(points: Array, across: int, position: float, count: int) -> Array:
    """Where the box's surface meets the plane at ``position`` of axis ``across``, as line segments [M, 2, 3].

    Args:
        points: the points [Do, Ho, Wo, 3] that fill the box; triangles with a point that is not finite are left out.
        across: 0: x, 1: y, 2: z.
        position: of the plane, in the points' unit.
        count: of points along each edge of the box between which its surface is taken as flat.
    """
    triangles = np.concatenate([_triangles(face) for face in _faces(points, count)])  # [T, 3, 3]
    triangles = triangles[np.isfinite(triangles).all(axis=(1, 2))]
    above = triangles[..., across] - position
    above = np.where(above == 0, np.finfo(np.float64).tiny, above)  # a corner in the plane counts as above it
    corners, following = triangles, np.roll(triangles, -1, axis=1)
    first, second = above, np.roll(above, -1, axis=1)
    crosses = (first > 0) != (second > 0)  # none, or two of a triangle's three edges
    share = (first / np.where(crosses, first - second, 1.0))[..., None]
    met = corners + share * (following - corners)
    segments: Array = met[crosses].reshape(-1, 2, 3)
    return segments


def _faces(points: Array, count: int) -> list[Array]:
    """The six faces [A, B, 3]."""
    picked = points
    for axis in range(3):
        picked = picked.take(_spread(picked.shape[axis], count), axis=axis)
    return [picked.take(end, axis=axis) for axis in range(3) for end in (0, -1)]


def _spread(length: int, count: int) -> Array:
    """``count`` indices from 0 to ``length`` - 1, both ends included, without repetitions unless the length is 1."""
    if length == 1:
        return np.zeros(2, int)
    spread: Array = np.unique(np.linspace(0, length - 1, count).round().astype(int))
    return spread


def _triangles(face: Array) -> Array:
    """Two for each square of the mesh ``face`` [A, B, 3]: [T, 3, 3]."""
    corner, right, below, far = face[:-1, :-1], face[:-1, 1:], face[1:, :-1], face[1:, 1:]
    both = np.stack([np.stack([corner, right, below], axis=2), np.stack([right, far, below], axis=2)])
    return both.reshape(-1, 3, 3)
