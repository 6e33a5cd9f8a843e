"""Lattices of control points whose basis is a product of one matrix per axis: thousands of points cost little.

The grid is theta [D, *lattice] contracted with a matrix [length, lattice length] along each axis. The dense basis
[K, P] is the Kronecker product of the matrices and is never needed.

Sources: bilinear and bicubic interpolation as ``torch.nn.functional.interpolate``; free-form deformation by uniform
cubic B-splines, Rueckert et al. 1999.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_infer.errors import UsageError, one_line
from stn_infer.fusion.basis import Kind
from stn_infer.sampling import cubic_weight
from stn_infer.transforms.base import Transformation, axis_coordinates

Interpolation = Literal["bilinear", "bicubic"]
_PLACES = ("planes", "rows", "cols")


class TensorProduct(Transformation):
    """Base of the lattice families.

    Parameters are [D, *points], row-major, x first, as a convolution writes them: source positions, or with ``offsets``
    displacements from the target coordinates.

    Attributes:
        points: (rows, cols) or (planes, rows, cols).
        offsets: whether parameters are displacements.
    """

    kind: ClassVar[Kind] = "basis"
    least: ClassVar[int]
    points: tuple[int, ...]
    offsets: bool

    @property
    def rank(self) -> int:
        """D: the number of axes of the lattice."""
        return len(self.points)

    @property
    def num_parameters(self) -> int:
        """Q = D prod(points)."""
        return self.rank * prod(self.points)

    @property
    def lattice(self) -> tuple[int, ...]:
        """theta's lattice: ``points``, plus one per axis if the identity needs it (``offsets`` over bicubic)."""
        return tuple(count + self._extended for count in self.points)

    @property
    def num_basis(self) -> int:
        """K = prod(lattice)."""
        return prod(self.lattice)

    def axis_matrices(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, ...]:
        """One matrix per axis of ``output_size``, [length, lattice length] float64."""
        matrices = []
        for length, count in zip(self.check_output_size(output_size), self.points, strict=True):
            at = axis_coordinates(length, grid_align_corners)
            weights = self._weights(at, count)
            matrices.append(torch.cat([weights, at[:, None]], dim=1) if self._extended else weights)
        return tuple(matrices)

    def theta(self, values: Tensor) -> Tensor:
        """theta [N, D, K] of ``values`` [N, D, *points], without :meth:`offset`."""
        padded = F.pad(values, [0, 1] * self.rank) if self._extended else values
        return padded.flatten(2)

    def offset(self) -> Tensor:
        """The constant part of theta, [D, K] float64: with ``offsets`` the identity, else zeros."""
        theta = torch.zeros(self.rank, *self.lattice, dtype=torch.float64)
        if self.offsets and self._extended:
            for coordinate in range(self.rank):
                places: list[slice | int] = [slice(0, count) for count in self.points]
                places[self.rank - 1 - coordinate] = -1  # the column that holds the coordinate itself
                theta[(coordinate, *places)] = 1
        elif self.offsets:
            theta += self._positions()
        return theta.flatten(1)

    def ones(self) -> Tensor:
        """The coefficients [K] float64 of a grid that is 1 everywhere."""
        return self.theta(torch.ones(1, self.rank, *self.points, dtype=torch.float64))[0, 0]

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`; the matrix has Q columns, so this is for small lattices."""
        self.check_output_size(output_size)
        units = torch.eye(self.num_parameters, dtype=torch.float64)
        return self.theta(units.reshape(-1, self.rank, *self.points)).flatten(1).T, self.offset().flatten()

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """The Kronecker product of the matrices, [K, P] float64; for small lattices."""
        return reduce(torch.kron, self.axis_matrices(output_size, grid_align_corners)).T.contiguous()

    def identity(self) -> Tensor:
        """The positions of the points, or zeros with ``offsets``.

        Positions give the identity exactly, but for bicubic: A = -0.75 does not reproduce a ramp.
        """
        positions = self._positions().flatten()
        return torch.zeros_like(positions) if self.offsets else positions

    @property
    def _extended(self) -> bool:
        """Whether the weights do not reproduce coordinates, so that the identity takes a column of its own."""
        return False

    @abstractmethod
    def _weights(self, at: Tensor, count: int) -> Tensor:
        """The weights [A, count] of one axis' points at coordinates ``at`` [A]; they sum to 1."""

    @abstractmethod
    def _knots(self, count: int) -> Tensor:
        """The coordinates [count], float64, of one axis' points."""

    def _positions(self) -> Tensor:
        """[D, *points] float64, x first."""
        axes = [self._knots(count) for count in self.points]
        return torch.stack(list(reversed(torch.meshgrid(*axes, indexing="ij"))))

    def _check(self) -> None:
        try:
            points = tuple(int(count) for count in self.points)
        except (TypeError, ValueError):
            points = ()
        if len(points) not in (2, 3) or min(points) < self.least:
            raise UsageError(
                f"points of {type(self).__name__} are (rows, cols) or (planes, rows, cols) of at least {self.least} "
                f"each, not {one_line(str(self.points), 60)}"
            )
        object.__setattr__(self, "points", points)


@dataclass(frozen=True)
class CoarseLattice(TensorProduct):
    """A coarse grid that spans [-1, 1], interpolated between its points.

    Attributes:
        points: (rows, cols) or (planes, rows, cols), at least 2 each.
        interpolation: ``bilinear`` (volumes: trilinear), or ``bicubic`` with A = -0.75 and border points repeated.
        offsets: whether parameters are displacements instead of positions.

    With ``grid_align_corners`` the interpolation is that of ``torch.nn.functional.interpolate(align_corners=True)``.

    Raises:
        UsageError: other points or another interpolation.
    """

    points: tuple[int, ...] = (8, 8)
    interpolation: Interpolation = "bilinear"
    offsets: bool = False

    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._check()
        if self.interpolation not in get_args(Interpolation):
            raise UsageError(f"interpolation of CoarseLattice is bilinear or bicubic, not {self.interpolation!r}")

    @property
    def _extended(self) -> bool:
        return self.offsets and self.interpolation == "bicubic"

    def _weights(self, at: Tensor, count: int) -> Tensor:
        place = ((at + 1) / 2 * (count - 1)).clamp(0, count - 1)
        first = place.floor().clamp(max=count - 2)
        part = place - first
        if self.interpolation == "bilinear":
            return _scattered(first, [1 - part, part], count)
        weights = [torch.from_numpy(cubic_weight((part - step).numpy())) for step in (-1, 0, 1, 2)]
        return _scattered(first - 1, weights, count)

    def _knots(self, count: int) -> Tensor:
        return axis_coordinates(count, True)


@dataclass(frozen=True)
class CubicBSpline(TensorProduct):
    """A free-form deformation: a uniform cubic B-spline whose lattice reaches one point beyond [-1, 1] on every side.

    Attributes:
        points: (rows, cols) or (planes, rows, cols), at least 4 each; n points make n - 3 intervals.
        offsets: whether parameters are displacements instead of positions.

    Raises:
        UsageError: other points.
    """

    points: tuple[int, ...] = (8, 8)
    offsets: bool = False

    least: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self._check()

    def _weights(self, at: Tensor, count: int) -> Tensor:
        place = (at + 1) / 2 * (count - 3)
        first = place.floor().clamp(0, count - 4)
        t = place - first
        weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        return _scattered(first, [weight / 6 for weight in weights], count)

    def _knots(self, count: int) -> Tensor:
        return 2 * (torch.arange(count, dtype=torch.float64) - 1) / (count - 3) - 1


def _scattered(first: Tensor, weights: Sequence[Tensor], count: int) -> Tensor:
    """[A, count] with ``weights`` ([A] each) at the indices from ``first`` [A] on; those outside go to the border."""
    result = torch.zeros(len(first), count, dtype=torch.float64)
    for step, weight in enumerate(weights):
        at = (first.long() + step).clamp(0, count - 1)
        result.scatter_add_(1, at[:, None], weight[:, None])
    return result
