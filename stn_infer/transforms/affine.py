"""Translation, attention and affine: theta is [D, D + 1], the basis rows are x, y(, z), 1.

Source: Jaderberg et al. 2015, eq. 1 (affine) and eq. 2 (attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation, canonical_basis, center_to_grid, check_rank


class AffineKind(Transformation):
    """Base of the families of kind affine: each places its features in a pixel-centered [D, D + 1] matrix."""

    kind: ClassVar[Kind] = "affine"

    @property
    def num_basis(self) -> int:
        """K = D + 1."""
        return self.rank + 1

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`."""
        matrix, offset = self._placement()
        factors = center_to_grid(self.check_output_size(output_size), grid_align_corners).repeat(self.rank)
        return matrix * factors[:, None], offset * factors

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """Rows x, y(, z), 1 at pixel centers, [D + 1, P] float64, for every grid convention."""
        return canonical_basis(self.check_output_size(output_size))

    def _placement(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _empty(self) -> tuple[Tensor, Tensor]:
        values = self.rank * self.num_basis
        zeros = torch.zeros(values, self.num_features, dtype=torch.float64)
        return zeros, torch.zeros(values, dtype=torch.float64)


@dataclass(frozen=True)
class Translation(AffineKind):
    """Parameters tx, ty(, tz): source coordinates are target coordinates plus the translation."""

    rank: int = 2

    def __post_init__(self) -> None:
        check_rank(self.rank, "Translation")

    @property
    def num_parameters(self) -> int:
        """Q = D."""
        return self.rank

    def identity(self) -> Tensor:
        """Zero translation."""
        return torch.zeros(self.rank, dtype=torch.float64)

    def _placement(self) -> tuple[Tensor, Tensor]:
        matrix, offset = self._empty()
        for axis in range(self.rank):
            offset[axis * self.num_basis + axis] = 1
            matrix[axis * self.num_basis + self.rank, axis] = 1
        return matrix, offset


@dataclass(frozen=True)
class Attention(AffineKind):
    """Parameters s, tx, ty(, tz): isotropic scale and translation (eq. 2). A fixed ``scale`` leaves tx, ty(, tz)."""

    rank: int = 2
    scale: float | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank, "Attention")

    @property
    def num_parameters(self) -> int:
        """Q = D + 1, or D with a fixed scale."""
        return self.rank + (self.scale is None)

    def identity(self) -> Tensor:
        """Scale 1 (if it is a parameter), zero translation."""
        parameters = torch.zeros(self.num_parameters, dtype=torch.float64)
        if self.scale is None:
            parameters[0] = 1
        return parameters

    def _placement(self) -> tuple[Tensor, Tensor]:
        matrix, offset = self._empty()
        first_shift = 1 if self.scale is None else 0
        for axis in range(self.rank):
            diagonal = axis * self.num_basis + axis
            if self.scale is None:
                matrix[diagonal, 0] = 1
            else:
                offset[diagonal] = self.scale
            matrix[axis * self.num_basis + self.rank, first_shift + axis] = 1
        return matrix, offset


@dataclass(frozen=True)
class Affine(AffineKind):
    """Parameters are the matrix [D, D + 1] itself, row-major: 6 for images, 12 for volumes (eq. 1)."""

    rank: int = 2

    def __post_init__(self) -> None:
        check_rank(self.rank, "Affine")

    @property
    def num_parameters(self) -> int:
        """Q = D (D + 1)."""
        return self.rank * (self.rank + 1)

    def identity(self) -> Tensor:
        """The identity matrix, row-major."""
        return torch.eye(self.rank, self.num_basis, dtype=torch.float64).reshape(-1)

    def _placement(self) -> tuple[Tensor, Tensor]:
        matrix, offset = self._empty()
        return matrix + torch.eye(self.num_parameters, dtype=torch.float64), offset
