"""The basis of a sampling grid ``theta · basis``, its usual mesh of target points, and the product in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array

Kind = Literal["affine", "basis", "projective"]


def canonical_basis(output_size: Sequence[int], corners: bool = False) -> NDArray[np.float64]:
    """Returns the rows x, y(, z), 1 of the output's points: [D + 1, P], row-major, x along the last axis.

    Args:
        output_size: (H, W) or (D, H, W).
        corners: True puts -1 and 1 at the centers of the outermost pixels (torch's ``align_corners=True``). False puts
            them at the outer edges, so pixel i lies at (2 i + 1) / size - 1.
    """
    axes = [np.linspace(-1, 1, size) if corners and size > 1 else _centers(size) for size in output_size]
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack([*(axis.ravel() for axis in mesh[::-1]), np.ones(prod(output_size))])


def _centers(size: int) -> NDArray[np.float64]:
    return (2 * np.arange(size) + 1) / size - 1.0


def map_points(theta: Array, basis: Array, output_size: Sequence[int]) -> Array:
    """Returns ``theta · basis`` in their common type.

    [N, R, K] and [K, P] give [N, *output_size, R], with P = prod(output_size).
    """
    points = theta @ basis
    return np.asarray(points.transpose(0, 2, 1).reshape(len(theta), *output_size, theta.shape[1]))


@dataclass(frozen=True)
class Basis:
    """The constant factor that maps theta to a sampling grid.

    Attributes:
        kind: affine, basis or projective.
        rows: [K, P], P = prod(output_size), row-major.
        output_size: (height, width) or (depth, height, width).
    """

    kind: Kind
    rows: Array
    output_size: tuple[int, ...]

    def exact(self) -> Basis:
        """Returns the basis with rows in float64. Float32 copies of x, y(, z), 1 are recomputed in float64."""
        rows = self.rows.astype(np.float64)
        if self.kind != "basis":
            mesh = canonical_basis(self.output_size)
            if mesh.shape == rows.shape and np.abs(mesh - rows).max(initial=0.0) < 1e-6:
                rows = mesh
        return replace(self, rows=rows)

    def grid(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sampling grid [N, *output_size, D] of ``theta`` [N, D, K] (projective: [N, 3, 3]), in float64."""
        points = map_points(theta.astype(np.float64), self.rows.astype(np.float64), self.output_size)
        if self.kind != "projective":
            return points
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(points[..., :-1] / points[..., -1:])
