"""Quotients of linear forms over any basis: their base, given constants, and rational polynomials.

theta is [N, D + 1, K]; the grid is its first D rows times the basis, divided by the last row times the basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb, isfinite, prod
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation, check_rank, check_w_min, target_coordinates
from stn_infer.transforms.fixed import GivenBasis


class GeneralQuotient(Transformation):
    """Base of the families whose parameters are theta's rows one after the other, the denominator's last.

    Parameters are x first; with the order ``yx`` the row of y comes first. The basis does not change with the order.
    """

    kind: ClassVar[Kind] = "projective"

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`: parameters are theta; ones follow where they are fewer."""
        values = prod(self.theta_shape)
        offset = torch.zeros(values, dtype=torch.float64)
        return torch.eye(values, self.num_parameters, dtype=torch.float64), offset

    def reversed_rows(self, values: Tensor) -> Tensor:
        """``values`` [..., Q] of parameters with the rows of x, y(, z) in the opposite order."""
        numerators = self.rank * self.num_basis
        rows = values[..., :numerators].reshape(*values.shape[:-1], self.rank, self.num_basis).flip(-2).flatten(-2)
        return torch.cat([rows, values[..., numerators:]], dim=-1)


@dataclass(frozen=True, eq=False)
class Quotient(GivenBasis, GeneralQuotient):
    """Quotients over given constants; parameters are theta itself, [D + 1, K] row-major.

    Attributes:
        values: the basis [K, P], kept in float64; includes the grid's convention.
        size: (H, W) or (D, H, W) of the grid, P pixels row-major.
        w_min: the least denominator; None: it is not clamped.
        offset: added to (x, y(, z)) after the division; empty: nothing.

    Raises:
        UsageError: inconsistent shapes, or numbers that are not finite.
    """

    values: Tensor
    size: tuple[int, ...]
    w_min: float | None = None
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        values = self.checked_values(fewest=1)
        check_w_min(self.w_min, "Quotient")
        if not bool(values.isfinite().all()):
            raise UsageError("the basis of a Quotient contains NaN or infinity")
        offset = tuple(map(float, self.offset))
        if len(offset) not in (0, self.rank) or not all(map(isfinite, offset)):
            raise UsageError(f"offset of Quotient is {self.rank} finite numbers, x first, not {self.offset}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offset", offset)

    @property
    def num_parameters(self) -> int:
        """Q = (D + 1) K."""
        return (self.rank + 1) * self.num_basis

    def division_offset(self, grid_align_corners: bool) -> tuple[float, ...]:
        """``offset``."""
        return self.offset

    def identity(self) -> Tensor:
        """The parameters whose grid is closest to the pixel centers in the least squares sense.

        Their denominator is 1, or ``w_min`` if that is larger.
        """
        denominator = max(1.0, self.w_min or 1.0)
        moves = torch.tensor(self.offset or (0.0,) * self.rank, dtype=torch.float64)[:, None]
        wanted = (target_coordinates(self.size, align_corners=False) - moves) * denominator
        wanted = torch.cat([wanted, torch.full_like(wanted[:1], denominator)])
        solution: Tensor = torch.linalg.lstsq(self.values.T, wanted.T, driver="gelsd").solution
        return solution.T.reshape(-1)


@dataclass(frozen=True)
class RationalPolynomial(GeneralQuotient):
    """Polynomials of the target coordinates over a common polynomial, as in rational polynomial cameras.

    The K monomials are ordered by degree, then by the powers of x, of y and of z, higher ones first: 1, x, y, x^2, xy,
    y^2, ... Parameters are the coefficients of x's numerator, of y's (, of z's) and of the denominator, whose
    coefficient of 1 is not among them: it is 1.

    Attributes:
        degree: of numerators and denominator, at least 1; a degree of 1 is a projective transformation.
        rank: 2 or 3.
        w_min: the least denominator; None: it is not clamped.

    Source: Tao and Hu 2001, "A comprehensive study of the rational function model for photogrammetric processing".

    Raises:
        UsageError: another rank, a degree below 1, or a w_min that is not finite or above 1.
    """

    degree: int = 3
    rank: int = 2
    w_min: float | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank, "RationalPolynomial")
        check_w_min(self.w_min, "RationalPolynomial", 1)
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 1:
            raise UsageError(f"degree of RationalPolynomial is an integer of at least 1, not {self.degree!r}")

    @property
    def num_basis(self) -> int:
        """K: 3, 6, 10, 15, ... for images; 4, 10, 20, 35, ... for volumes."""
        return comb(self.degree + self.rank, self.rank)

    @property
    def num_parameters(self) -> int:
        """Q = (D + 1) K - 1."""
        return (self.rank + 1) * self.num_basis - 1

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`; the denominator's coefficient of 1 is constant."""
        one = self.rank * self.num_basis
        kept = [place for place in range(self.num_parameters + 1) if place != one]
        units = torch.eye(self.num_parameters + 1, dtype=torch.float64)
        return units[:, kept], units[one]

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """The monomials at the target coordinates, [K, P] float64."""
        axes = target_coordinates(self.check_output_size(output_size), grid_align_corners)
        rows = [torch.ones_like(axes[0])]
        for degree in range(1, self.degree + 1):
            rows += [axes[list(factors)].prod(0) for factors in combinations_with_replacement(range(self.rank), degree)]
        return torch.stack(rows)

    def identity(self) -> Tensor:
        """x, y(, z) over 1."""
        theta = torch.zeros(self.rank + 1, self.num_basis, dtype=torch.float64)
        for axis in range(self.rank):
            theta[axis, 1 + axis] = 1
        return theta.reshape(-1)[:-1]  # the last row is zero but for its first value, a constant
