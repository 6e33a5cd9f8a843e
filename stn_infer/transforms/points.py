"""Control points on the target side: a lattice over [-1, 1] on every axis, or explicit points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError, one_line
from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation

Points = tuple[tuple[float, ...], ...]
_AXES = {2: "(rows, cols)", 3: "(planes, rows, cols)"}
_PAIRS = {2: "(x, y)", 3: "(x, y, z)"}


def is_lattice(points: Any) -> bool:
    """Whether ``points`` is (rows, cols) or (planes, rows, cols) rather than a list of points."""
    return len(points) in (2, 3) and all(not hasattr(value, "__len__") and int(value) == value for value in points)


def lattice(*lengths: int) -> Points:
    """(x, y) of a rows x cols lattice, or (x, y, z) of planes x rows x cols, that spans [-1, 1]; row-major.

    Raises:
        UsageError: fewer than 2 points on an axis; the points would be collinear or coplanar.
    """
    if min(lengths) < 2:
        least = "2 rows and 2 columns" if len(lengths) == 2 else "2 planes, 2 rows and 2 columns"
        raise UsageError(f"a control point lattice has at least {least}, not {' x '.join(map(str, lengths))}")
    return tuple(
        tuple(2 * at / (length - 1) - 1 for at, length in zip(reversed(index), reversed(lengths), strict=True))
        for index in product(*map(range, lengths))
    )


def as_points(points: Any, ranks: Sequence[int] = (2,)) -> Points:
    """``points`` — lengths of a lattice, or K points, in any nested sequence or array — as a tuple of tuples.

    Args:
        points: (rows, cols), (planes, rows, cols), pairs (x, y) or triples (x, y, z).
        ranks: the numbers of axes that are accepted.

    Raises:
        UsageError: another shape, fewer than D + 1 points, values that are not finite, equal points, or all on one line
            (volumes: in one plane).
    """
    accepted = " or ".join(f"{_AXES[rank]} or a list of {_PAIRS[rank]}" for rank in ranks)
    wrong = UsageError(f"control points are {accepted}, not {one_line(str(points), 60)}")
    try:
        if is_lattice(points):
            if len(points) not in ranks:
                raise wrong
            return lattice(*(int(length) for length in points))
        given = tuple(tuple(float(value) for value in point) for point in points)
    except (TypeError, ValueError):
        raise wrong from None
    rank = len(given[0]) if given else ranks[0]
    if rank not in ranks or any(len(point) != rank for point in given):
        raise wrong
    array = torch.tensor(given, dtype=torch.float64).reshape(-1, rank)
    if len(given) < rank + 1 or not bool(torch.isfinite(array).all()):
        raise UsageError(
            f"at least {rank + 1} control points with finite coordinates are needed, {len(given)} were given"
        )
    distances = torch.cdist(array, array) + torch.eye(len(given), dtype=torch.float64)
    if float(distances.min()) < 1e-9:
        first, second = divmod(int(distances.argmin()), len(given))
        raise UsageError(f"control points {first} and {second} are equal, {given[first]}; each must be given once")
    spread = torch.linalg.svdvals(array - array.mean(0))
    if float(spread[-1]) < 1e-9 * float(spread[0]):
        flat, off = ("collinear", "line") if rank == 2 else ("coplanar", "plane")
        raise UsageError(f"all control points are {flat}; add a point off the {off}")
    return given


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
        """D: the number of coordinates of a point."""
        return len(self.points[0])

    @property
    def num_basis(self) -> int:
        """K: the number of control points."""
        return len(self.points)

    @property
    def num_parameters(self) -> int:
        """Q = D K."""
        return self.rank * len(self.points)

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """Point-major to axis-major, plus the points with ``offsets``; see :meth:`Transformation.affine_map`."""
        self.check_output_size(output_size)
        count, rank = self.num_basis, self.rank
        order = torch.arange(rank * count).reshape(count, rank).T.reshape(-1)  # theta d * K + k comes from D k + d
        matrix = torch.eye(rank * count, dtype=torch.float64)[order]
        points = self.target_points().T.reshape(-1)
        return matrix, points if self.offsets else torch.zeros_like(points)

    def identity(self) -> Tensor:
        """The target-side points themselves; zeros with ``offsets``."""
        points = self.target_points().reshape(-1)
        return torch.zeros_like(points) if self.offsets else points

    def target_points(self) -> Tensor:
        """The control points [K, D], float64, (x, y) or (x, y, z)."""
        return torch.tensor(self.points, dtype=torch.float64)
