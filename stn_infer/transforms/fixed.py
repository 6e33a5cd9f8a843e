"""Transformations with given constants, for checkpoints that store their own: their base, and linear ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.fusion.basis import Kind
from stn_infer.transforms.base import Transformation, check_rank, target_coordinates


class GivenBasis(Transformation):
    """Base of the families whose basis is given; its constants fix the size of the grid.

    Attributes:
        values: the basis [K, P].
        size: (H, W) or (D, H, W) of the grid, P pixels row-major.
    """

    values: Tensor
    size: tuple[int, ...]

    @property
    def rank(self) -> int:
        """D: the number of axes of ``size``."""
        return len(self.size)

    @property
    def num_basis(self) -> int:
        """K: the rows of ``values``."""
        return len(self.values)

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """``values``, [K, P] float64."""
        self.check_output_size(output_size)
        return self.values

    def check_output_size(self, output_size: Sequence[int], name: str = "output_size") -> tuple[int, ...]:
        """``output_size`` as a tuple.

        Raises:
            UsageError: it is not the size of the grid.
        """
        size = super().check_output_size(output_size, name)
        if name == "output_size" and size != tuple(self.size):
            raise UsageError(
                f"this {type(self).__name__} has grids of size {self.size}, not {size}; its constants fix the size"
            )
        return size

    def checked_values(self, fewest: int = 0) -> Tensor:
        """``values``, of at least ``fewest`` rows, in float64.

        Raises:
            UsageError: another shape than the grid's, or another rank than 2 or 3.
        """
        check_rank(len(self.size), type(self).__name__)
        values = self.values.detach().double()
        if values.dim() != 2 or len(values) < fewest or values.shape[1] != prod(self.size):
            raise UsageError(
                f"the basis of a grid of {'x'.join(map(str, self.size))} is [K, {prod(self.size)}], "
                f"not {list(values.shape)}"
            )
        return values


@dataclass(frozen=True, eq=False)
class FixedBasis(GivenBasis):
    """Grids ``(matrix @ parameters + offset) . values``; ``values`` includes the grid's convention.

    Attributes:
        values: the basis [K, P], kept in float64.
        size: (H, W) or (D, H, W) of the grid, P pixels row-major.
        matrix: [D * K, Q], row d * K + k for theta[d, k]; None: the identity, so that parameters are theta itself.
        offset: [D * K]; None: zeros.

    Raises:
        UsageError: inconsistent shapes, or values that are not finite.
    """

    values: Tensor
    size: tuple[int, ...]
    matrix: Tensor | None = None
    offset: Tensor | None = None

    kind: ClassVar[Kind] = "basis"

    def __post_init__(self) -> None:
        values = self.checked_values()
        count = len(self.size) * len(values)
        matrix = torch.eye(count, dtype=torch.float64) if self.matrix is None else self.matrix.detach().double()
        offset = torch.zeros(count, dtype=torch.float64) if self.offset is None else self.offset.detach().double()
        if matrix.dim() != 2 or len(matrix) != count or offset.shape != (count,):
            raise UsageError(
                f"theta has {count} values: expected matrix [{count}, Q] and offset [{count}], "
                f"not {list(matrix.shape)} and {list(offset.shape)}"
            )
        if not all(bool(constant.isfinite().all()) for constant in (values, matrix, offset)):
            raise UsageError("the constants of a FixedBasis contain NaN or infinity")
        for name, constant in (("values", values), ("matrix", matrix), ("offset", offset)):
            object.__setattr__(self, name, constant)

    @property
    def num_parameters(self) -> int:
        """Q: the columns of ``matrix``."""
        return self._map()[0].shape[1]

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """``matrix`` and ``offset``; see :meth:`Transformation.affine_map`."""
        return self._map()

    def identity(self) -> Tensor:
        """The parameters whose grid is closest to the pixel centers in the least squares sense."""
        matrix, offset = self._map()
        # [D * P, Q]: the derivative of each grid coordinate by each parameter
        response, start = (
            torch.einsum("dkq,kp->dpq", part.reshape(self.rank, self.num_basis, -1), self.values).flatten(0, 1)
            for part in (matrix, offset)
        )
        wanted = target_coordinates(self.size, align_corners=False).reshape(-1, 1)
        solution: Tensor = torch.linalg.lstsq(response, wanted - start, driver="gelsd").solution
        return solution[:, 0]

    def _map(self) -> tuple[Tensor, Tensor]:
        assert self.matrix is not None and self.offset is not None  # set in __post_init__
        return self.matrix, self.offset
