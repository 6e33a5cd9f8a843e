"""Projective: theta is a matrix [D + 1, D + 1]; the grid is its first D rows divided by the last.

In two dimensions it is a homography, in three a collineation of space (Hartley and Zisserman 2004, sections 2.3, 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation, canonical_basis, center_to_grid, check_rank, check_w_min


@dataclass(frozen=True)
class Projective(Transformation):
    """Parameters are the matrix row-major: all (D + 1)^2, or all but the last, which is 1 then.

    Attributes:
        num_parameters: images: 8 or 9; volumes: 15 or 16. 0: the smaller number.
        rank: 2 or 3.
        w_min: the least denominator; None: it is not clamped, and points with a denominator of zero sample outside.

    Raises:
        UsageError: another rank or number of parameters, or a w_min that is not finite or above 1.
    """

    num_parameters: int = 0
    rank: int = 2
    w_min: float | None = None

    kind: ClassVar[Kind] = "projective"

    def __post_init__(self) -> None:
        check_rank(self.rank, "Projective")
        check_w_min(self.w_min, "Projective", 1)
        values = self.num_basis**2
        if self.num_parameters not in (0, values - 1, values):
            raise UsageError(
                f"num_parameters of Projective is {values - 1} (the last value of the matrix is 1) or {values}, "
                f"not {self.num_parameters}"
            )
        object.__setattr__(self, "num_parameters", self.num_parameters or values - 1)

    @property
    def num_basis(self) -> int:
        """K = D + 1."""
        return self.rank + 1

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`; M [(D + 1)^2, Q]."""
        factors = center_to_grid(self.check_output_size(output_size), grid_align_corners).repeat(self.num_basis)
        matrix = torch.eye(len(factors), self.num_parameters, dtype=torch.float64)
        offset = torch.zeros(len(factors), dtype=torch.float64)
        offset[self.num_parameters :] = 1
        return matrix * factors[:, None], offset * factors

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """Rows x, y(, z), 1 at pixel centers, [D + 1, P] float64, for every grid convention."""
        return canonical_basis(self.check_output_size(output_size))

    def identity(self) -> Tensor:
        """The identity matrix."""
        return torch.eye(self.num_basis, dtype=torch.float64).reshape(-1)[: self.num_parameters]
