"""Projective: theta is a homography [3, 3]; the grid is its first two rows divided by the third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation, canonical_basis, center_to_grid


@dataclass(frozen=True)
class Projective(Transformation):
    """Parameters are the homography row-major: 8 (h33 = 1) or all 9."""

    num_parameters: int = 8

    kind: ClassVar[Kind] = "projective"

    def __post_init__(self) -> None:
        if self.num_parameters not in (8, 9):
            raise UsageError(f"num_parameters of Projective is 8 (h33 = 1) or 9, not {self.num_parameters}")

    @property
    def rank(self) -> int:
        """2: images only."""
        return 2

    @property
    def num_basis(self) -> int:
        """K = 3."""
        return 3

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`; M [9, Q], m [9]."""
        factors = center_to_grid(self.check_output_size(output_size), grid_align_corners).repeat(3)
        matrix = torch.eye(9, self.num_parameters, dtype=torch.float64)
        offset = torch.zeros(9, dtype=torch.float64)
        if self.num_parameters == 8:
            offset[8] = 1
        return matrix * factors[:, None], offset * factors

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """Rows x, y, 1 at pixel centers, [3, P] float64, for every grid convention."""
        return canonical_basis(self.check_output_size(output_size))

    def identity(self) -> Tensor:
        """The identity homography."""
        return torch.eye(3, dtype=torch.float64).reshape(-1)[: self.num_parameters]
