"""Thin plate splines: the map of least bending energy through control points, solved once in float64.

Source: Bookstein 1989. With U(r) = r^2 log r^2 for images, U(r) = r for volumes, and L = [[U(C, C), P], [P^T, 0]],
P = [1, C], the grid at target points G is [U(G, C), 1, G] L^-1 [Y; 0] for source positions Y. The first K columns of
[U(G, C), 1, G] L^-1 are the constant basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.transforms.base import target_coordinates
from stn_infer.transforms.points import ControlPoints, Points, as_points


@dataclass(frozen=True)
class ThinPlateSpline(ControlPoints):
    """A thin plate spline through ``points``.

    Attributes:
        points: (rows, cols) or (planes, rows, cols) of a lattice over [-1, 1], or K target-side (x, y) or (x, y, z);
            kept as pairs or triples.
        offsets: whether parameters are offsets from the points instead of absolute positions.

    Raises:
        UsageError: fewer than 3 points (volumes: 4), equal points, or all on one line (volumes: in one plane).
    """

    points: Points | tuple[int, ...] = (4, 4)  # type: ignore[assignment]
    offsets: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", as_points(self.points, (2, 3)))

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """[K, P] float64, at the target coordinates of the grid's convention.

        Raises:
            UsageError: the points are too close together to solve the spline in float64.
        """
        targets = target_coordinates(self.check_output_size(output_size), grid_align_corners).T  # [P, D]
        points = self.target_points()
        count = self.num_basis
        total = count + 1 + self.rank
        system = torch.zeros(total, total, dtype=torch.float64)
        system[:count] = _features(points, points)
        system[count:, :count] = system[:count, count:].T
        inverse = torch.linalg.inv(system)
        weights: Tensor = _features(targets, points) @ inverse[:, :count]
        if not bool(torch.isfinite(weights).all()) or float((weights @ points - targets).abs().max()) > 1e-6:
            raise UsageError("the control points are too close together for a thin plate spline; space them out")
        return weights.T.contiguous()


def _features(at: Tensor, points: Tensor) -> Tensor:
    """[U(|at - points|), 1, at]: [A, K + D + 1] for at [A, D] and points [K, D]."""
    if points.shape[1] == 3:
        bending = torch.cdist(at, points, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        squared = (at[:, None] - points[None]).square().sum(-1)
        bending = torch.xlogy(squared, squared)
    return torch.cat([bending, torch.ones_like(at[:, :1]), at], dim=1)
