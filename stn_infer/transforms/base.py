"""The interface of transformations, and their target coordinates.

A sampling grid is ``theta . basis``: ``grid[n, :, p] = sum_k theta[n, :, k] * basis[k, p]``. ``basis`` [K, P] is
constant; ``theta`` [N, D, K] is an affine map (M, m) of the network's Q parameters, or of features of them (sine and
cosine of an angle). The projective kind has theta [N, D + 1, K] and divides by the last row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf, isfinite
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.fusion.basis import Kind
from stn_infer.fusion.basis import canonical_basis as basis_of_pixels


class Transformation(ABC):
    """A family of sampling grids; the network's parameters select one.

    Attributes:
        kind: ``affine`` (basis rows are x, y(, z), 1 at pixel centers), ``basis`` (any constant basis) or
            ``projective`` (any constant basis, with a division by the last row).
        rank: D, the number of spatial axes: 2 for images, 3 for volumes.
        w_min: the least value of the denominator of the projective kind; None: it is not clamped.
    """

    kind: ClassVar[Kind]
    w_min: float | None = None

    @property
    @abstractmethod
    def rank(self) -> int:
        """D: 2 or 3."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Q: the number of outputs of the localization network per sample."""

    @property
    @abstractmethod
    def num_basis(self) -> int:
        """K: the rows of the basis."""

    @property
    def theta_shape(self) -> tuple[int, int]:
        """(D, K); (D + 1, K) for the projective kind."""
        return self.rank + (self.kind == "projective"), self.num_basis

    @property
    def num_features(self) -> int:
        """F: the number of values that theta is an affine map of; Q unless the family overrides :meth:`features`."""
        return self.num_parameters

    def features(self, parameters: Tensor) -> Tensor:
        """The features [N, F] of parameters [N, Q], in their dtype: the parameters themselves in most families."""
        return parameters

    @abstractmethod
    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """(M, m) with ``theta = (M @ features + m)``, viewed as ``theta_shape``.

        Args:
            output_size: (H, W) or (D, H, W) of the grid.
            grid_align_corners: whether -1 and 1 of the target are the centers of the border pixels (True) or their
                outer edges (False).

        Returns:
            M [theta values, F] and m [theta values], float64.
        """

    @abstractmethod
    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """The constant basis [K, P], float64; P = prod(output_size), row-major."""

    def division_offset(self, grid_align_corners: bool) -> tuple[float, ...]:
        """What is added to (x, y(, z)) of a projective grid after the division; empty: nothing."""
        return ()

    @abstractmethod
    def identity(self) -> Tensor:
        """Parameters [Q], float64, of the identity grid (or the family's closest grid)."""

    def check_output_size(self, output_size: Sequence[int], name: str = "output_size") -> tuple[int, ...]:
        """``output_size`` as a tuple; ``name`` is used in the message.

        Raises:
            UsageError: it does not have ``rank`` axes, or an axis is below 1.
        """
        size = tuple(int(length) for length in output_size)
        if len(size) != self.rank or min(size) < 1:
            raise UsageError(
                f"{name} of {type(self).__name__} has {self.rank} axes of at least 1, not {tuple(output_size)}"
            )
        return size


def check_rank(rank: int, name: str) -> None:
    """Raise UsageError when ``rank`` is neither 2 nor 3."""
    if rank not in (2, 3):
        raise UsageError(f"rank of {name} is 2 (images) or 3 (volumes), not {rank}")


def check_w_min(w_min: float | None, name: str, most: float = inf) -> None:
    """Raise UsageError when ``w_min`` is given, but is not a finite number, or is above ``most``."""
    if w_min is None:
        return
    if isinstance(w_min, bool) or not isinstance(w_min, int | float) or not isfinite(w_min):
        raise UsageError(f"w_min of {name} is a finite number or None, not {w_min!r}")
    if w_min > most:
        raise UsageError(f"w_min of {name} is at most {most:g}, the denominator of the identity, not {w_min}")


def axis_coordinates(length: int, align_corners: bool) -> Tensor:
    """Target coordinates of one axis, [length] float64 in [-1, 1]; length 1 gives 0, as in torch's affine_grid."""
    if length == 1:
        return torch.zeros(1, dtype=torch.float64)
    index = torch.arange(length, dtype=torch.float64)
    return 2 * index / (length - 1) - 1 if align_corners else (2 * index + 1) / length - 1


def target_coordinates(output_size: Sequence[int], align_corners: bool) -> Tensor:
    """Target coordinates [D, P] float64, rows x, y(, z), P row-major over ``output_size`` (H, W) or (D, H, W)."""
    axes = [axis_coordinates(length, align_corners) for length in output_size]
    return torch.stack([axis.reshape(-1) for axis in reversed(torch.meshgrid(*axes, indexing="ij"))])


def canonical_basis(output_size: Sequence[int]) -> Tensor:
    """The rows x, y(, z), 1 at pixel centers, [D + 1, P] float64: the basis of the affine and projective kinds."""
    return torch.from_numpy(basis_of_pixels(output_size))


def center_to_grid(output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
    """Factors [D + 1] float64 from (x, y(, z), 1) at pixel centers to the coordinates of the grid's convention.

    The kernels compute pixel centers on the fly, so the convention is applied to theta: ``A' = A diag(factors)``.
    """
    factors = [length / (length - 1) if grid_align_corners and length > 1 else 1.0 for length in reversed(output_size)]
    return torch.tensor([*factors, 1.0], dtype=torch.float64)


def reorder_axes(values: Tensor, kind: Kind, theta_shape: Sequence[int]) -> Tensor:
    """Reorder the rows of M or m from parameters in the order (z, )y, x to theta in the order x, y(, z).

    Affine and projective: reverses the matrix' rows and columns, except the last one, which belongs to the 1.
    Control points: swaps the two coordinates.

    Args:
        values: M [D * K, F] or m [D * K].
        kind, theta_shape: of the transformation.
    """
    rows, cols = theta_shape
    axes = rows - (kind == "projective")
    row_order = [*reversed(range(axes)), *range(axes, rows)]
    col_order = list(range(cols)) if kind == "basis" else [*reversed(range(axes)), *range(axes, cols)]
    return values.reshape(rows, cols, -1)[row_order][:, col_order].reshape(values.shape)


def shrink(
    matrix: Tensor, offset: Tensor, kind: Kind, theta_shape: Sequence[int], factors: Tensor, moved: bool = True
) -> tuple[Tensor, Tensor]:
    """(M, m) of the grid whose axis d is ``factors[d] * (grid + 1) - 1``.

    A basis of control points sums to 1 at every pixel, so the constant is added to all points equally.

    Args:
        matrix, offset: (M, m), [D * K, F] and [D * K].
        kind, theta_shape: of the transformation.
        factors: [D] float64, x first.
        moved: whether theta adds the constant; if not, the caller does, after the projective kind's division.
    """
    rows, cols = theta_shape
    theta = torch.cat([matrix, offset[:, None]], dim=1).reshape(rows, cols, -1).clone()
    for axis, factor in enumerate(factors):
        theta[axis] *= factor
        if not moved:
            continue
        if kind == "projective":
            theta[axis] += (factor - 1) * theta[-1]
        elif kind == "basis":
            theta[axis, :, -1] += factor - 1
        else:
            theta[axis, -1, -1] += factor - 1
    theta = theta.reshape(rows * cols, -1)
    return theta[:, :-1], theta[:, -1]
