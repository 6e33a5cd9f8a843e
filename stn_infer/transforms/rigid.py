"""Rigid and similarity: a rotation, a translation and, for similarity, one scale.

theta is not linear in the angles, but in their sines and cosines: those are the features, and a fused file computes
theta from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.transforms.affine import AffineKind
from stn_infer.transforms.base import check_rank


@dataclass(frozen=True)
class _Rotation(AffineKind):
    """Base of both families, which differ in whether a scale comes first among the parameters.

    In two dimensions the rotation is [[cos, -sin], [sin, cos]]: a positive angle turns x towards y, clockwise on the
    screen. In three it is Rz Ry Rx: first about x, then about y, then about z, the axes being fixed.
    """

    scaled: ClassVar[bool]
    rank: int = 2
    extent: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_rank(self.rank, name)
        try:
            extent = tuple(float(length) for length in self.extent) or (1.0,) * self.rank
        except (TypeError, ValueError):
            extent = ()
        if len(extent) != self.rank or not all(0 < length < float("inf") for length in extent):
            raise UsageError(f"extent of {name} is {self.rank} positive lengths, not {self.extent}")
        object.__setattr__(self, "extent", extent)

    @property
    def num_angles(self) -> int:
        """1 for images, 3 for volumes."""
        return 1 if self.rank == 2 else 3

    @property
    def num_features(self) -> int:
        """Cosine and sine, or the nine values of the rotation; then the translation."""
        return (2 if self.rank == 2 else 9) + self.rank

    @property
    def num_parameters(self) -> int:
        """Q: the angles and the translation, 3 for images and 6 for volumes, and one more with a scale."""
        return self.scaled + self.num_angles + self.rank

    def features(self, parameters: Tensor) -> Tensor:
        """The rotation, scaled if there is a scale, and the translation [N, F] of parameters [N, Q]."""
        first, last = int(self.scaled), self.scaled + self.num_angles
        angles, shift = parameters[:, first:last], parameters[:, last:]
        cosines, sines = angles.cos(), angles.sin()
        values = torch.cat([cosines, sines], dim=1) if self.rank == 2 else _euler(cosines, sines)
        return torch.cat([values * parameters[:, :1] if self.scaled else values, shift], dim=1)

    def identity(self) -> Tensor:
        """No rotation, no translation, and scale 1."""
        identity = torch.zeros(self.num_parameters, dtype=torch.float64)
        identity[: self.scaled] = 1
        return identity

    def _placement(self) -> tuple[Tensor, Tensor]:
        matrix, offset = self._empty()
        for row in range(self.rank):
            for column in range(self.rank):
                at = row * self.num_basis + column
                ratio = self.extent[column] / self.extent[row]
                if self.rank == 3:
                    matrix[at, row * 3 + column] = ratio
                elif row == column:
                    matrix[at, 0] = ratio
                else:
                    matrix[at, 1] = -ratio if column > row else ratio
            matrix[row * self.num_basis + self.rank, self.num_features - self.rank + row] = 1
        return matrix, offset


@dataclass(frozen=True)
class Rigid(_Rotation):
    """Parameters: the angle in radians (volumes: three, about x, y and z), then the translation.

    Attributes:
        rank: 2 or 3.
        extent: lengths of the image's sides, such as (width, height), in the order of the translation. A rotation of
            the content is a rotation in coordinates from -1 to 1 only if all sides are equal. Empty: equal sides.

    Raises:
        UsageError: another rank, or an extent that is not one positive length per axis.
    """

    scaled: ClassVar[bool] = False


@dataclass(frozen=True)
class Similarity(_Rotation):
    """Parameters: the scale, then those of :class:`Rigid`. The scale multiplies the rotation, not the translation.

    Attributes:
        rank: 2 or 3.
        extent: as for :class:`Rigid`.

    Raises:
        UsageError: another rank, or an extent that is not one positive length per axis.
    """

    scaled: ClassVar[bool] = True


def _euler(cosines: Tensor, sines: Tensor) -> Tensor:
    """Rz Ry Rx, row-major [N, 9], of cosines and sines [N, 3] of the angles about x, y and z."""
    (ca, cb, cc), (sa, sb, sc) = torch.split(cosines, 1, dim=1), torch.split(sines, 1, dim=1)
    return torch.cat(
        [
            cb * cc,
            sa * sb * cc - ca * sc,
            ca * sb * cc + sa * sc,
            cb * sc,
            sa * sb * sc + ca * cc,
            ca * sb * sc - sa * cc,
            -sb,
            sa * cb,
            ca * cb,
        ],
        dim=1,
    )
