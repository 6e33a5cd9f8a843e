"""Control points on the target side: a lattice over [-1, 1] x [-1, 1], or explicit points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError, one_line
from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation

Points = tuple[tuple[float, float], ...]


def is_lattice(points: Any) -> bool:
    """Whether ``points`` is (rows, cols) rather than a list of (x, y)."""
    return len(points) == 2 and all(not hasattr(value, "__len__") and int(value) == value for value in points)


def lattice(rows: int, cols: int) -> Points:
    """(x, y) of a rows x cols lattice that spans [-1, 1] on both axes, row-major.

    Raises:
        UsageError: fewer than 2 rows or columns; the points would be collinear.
    """
    if min(rows, cols) < 2:
        raise UsageError(f"a control point lattice has at least 2 rows and 2 columns, not {rows} x {cols}")
    return tuple((2 * col / (cols - 1) - 1, 2 * row / (rows - 1) - 1) for row in range(rows) for col in range(cols))


def as_points(points: Any) -> Points:
    """``points`` — (rows, cols) or K pairs (x, y), in any nested sequence or array — as a tuple of pairs.

    Raises:
        UsageError: another shape, fewer than 3 points, values that are not finite, equal points, or all on one line.
    """
    try:
        if is_lattice(points):
            return lattice(int(points[0]), int(points[1]))
        pairs = tuple((float(x), float(y)) for x, y in points)
    except (TypeError, ValueError):
        raise UsageError(
            f"control points are (rows, cols) or a list of (x, y) pairs, not {one_line(str(points), 60)}"
        ) from None
    array = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)
    if len(pairs) < 3 or not bool(torch.isfinite(array).all()):
        raise UsageError(f"at least 3 control points with finite coordinates are needed, {len(pairs)} were given")
    distances = torch.cdist(array, array) + torch.eye(len(pairs), dtype=torch.float64)
    if float(distances.min()) < 1e-9:
        first, second = divmod(int(distances.argmin()), len(pairs))
        raise UsageError(f"control points {first} and {second} are equal, {pairs[first]}; each must be given once")
    spread = torch.linalg.svdvals(array - array.mean(0))
    if float(spread[1]) < 1e-9 * float(spread[0]):
        raise UsageError("all control points are collinear; add a point off the line")
    return pairs


class ControlPoints(Transformation):
    """Base of piecewise affine and thin plate spline.

    Parameters are the points' source positions, point-major (x0, y0, x1, y1, ...): absolute coordinates, or with
    ``offsets`` their displacement from the target-side points.
    """

    kind: ClassVar[Kind] = "basis"
    points: Points
    offsets: bool

    @property
    def rank(self) -> int:
        """2: images only."""
        return 2

    @property
    def num_basis(self) -> int:
        """K: the number of control points."""
        return len(self.points)

    @property
    def num_parameters(self) -> int:
        """Q = 2 K."""
        return 2 * len(self.points)

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """Point-major to axis-major, plus the points with ``offsets``; see :meth:`Transformation.affine_map`."""
        self.check_output_size(output_size)
        count = self.num_basis
        order = torch.arange(2 * count).reshape(count, 2).T.reshape(-1)  # theta value d * K + k comes from 2 k + d
        matrix = torch.eye(2 * count, dtype=torch.float64)[order]
        offset = self.target_points().T.reshape(-1) if self.offsets else torch.zeros(2 * count, dtype=torch.float64)
        return matrix, offset

    def identity(self) -> Tensor:
        """The target-side points themselves; zeros with ``offsets``."""
        points = self.target_points().reshape(-1)
        return torch.zeros_like(points) if self.offsets else points

    def target_points(self) -> Tensor:
        """The control points [K, 2], float64, (x, y)."""
        return torch.tensor(self.points, dtype=torch.float64)
