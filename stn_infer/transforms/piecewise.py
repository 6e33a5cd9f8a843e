"""Piecewise affine: a triangle mesh. The map is affine in each triangle, so a pixel depends on three points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.transforms.base import target_coordinates
from stn_infer.transforms.points import ControlPoints, Points, as_points, is_lattice

Triangles = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PiecewiseAffine(ControlPoints):
    """A mesh of triangles over control points.

    A pixel outside all triangles uses the triangle in which its smallest barycentric coordinate is largest.

    Attributes:
        points: (rows, cols) of a lattice over [-1, 1], or K target-side (x, y); kept as pairs.
        triangles: three indices into ``points`` each; None: every cell of a lattice is split along one diagonal.
        offsets: whether parameters are offsets from the points instead of absolute positions.

    Raises:
        UsageError: fewer than 3 points, equal points, or all on one line; explicit points without triangles; a
            triangle with an index out of range or with zero area.
    """

    points: Points | tuple[int, ...] = (4, 4)  # type: ignore[assignment]
    triangles: Triangles | None = None
    offsets: bool = False

    def __post_init__(self) -> None:
        given = self.points
        object.__setattr__(self, "points", as_points(given))
        if self.triangles is not None:
            triangles = self._checked(self.triangles)
        elif is_lattice(given):
            triangles = _cut_cells(int(given[0]), int(given[1]))  # type: ignore[arg-type]
        else:
            raise UsageError("PiecewiseAffine with explicit points needs triangles, three point indices each")
        object.__setattr__(self, "triangles", triangles)

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """Barycentric coordinates [K, P] float64, with at most three non-zero values per column."""
        targets = target_coordinates(self.check_output_size(output_size), grid_align_corners)  # [2, P]
        corners = torch.tensor(self.triangles)  # [T, 3]
        vertices = self.target_points()[corners].transpose(1, 2)  # [T, 2, 3]
        system = torch.cat([vertices, torch.ones_like(vertices[:, :1])], dim=1)  # [T, 3, 3]
        homogeneous = torch.cat([targets, torch.ones_like(targets[:1])])  # [3, P]
        barycentric = torch.linalg.inv(system) @ homogeneous  # [T, 3, P]
        owner = barycentric.amin(1).argmax(0)  # [P]
        pixels = torch.arange(owner.numel())
        basis = torch.zeros(self.num_basis, owner.numel(), dtype=torch.float64)
        basis[corners[owner].T, pixels] = barycentric[owner, :, pixels].T
        return basis

    def _checked(self, triangles: Sequence[Sequence[int]]) -> Triangles:
        checked = tuple((int(a), int(b), int(c)) for a, b, c in triangles)
        points = self.target_points()
        for triangle in checked:
            if min(triangle) < 0 or max(triangle) >= len(points):
                raise UsageError(f"triangle {triangle} has an index that is not one of the {len(points)} points")
            a, b, c = points[list(triangle)]
            if abs(float((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0])) < 1e-12:
                raise UsageError(f"triangle {triangle} has zero area: its points are collinear")
        if not checked:
            raise UsageError("PiecewiseAffine needs at least one triangle, none was given")
        return checked


def _cut_cells(rows: int, cols: int) -> Triangles:
    triangles: list[tuple[int, int, int]] = []
    for row in range(rows - 1):
        for col in range(cols - 1):
            corner = row * cols + col
            triangles.append((corner, corner + 1, corner + cols))
            triangles.append((corner + 1, corner + cols + 1, corner + cols))
    return tuple(triangles)
