"""The basis of a sampling grid ``theta · basis``, its usual mesh of target points, and the product in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array, contracted

Kind = Literal["affine", "basis", "projective", "tensor_product", "lattice"]
#: The most lattice points that a pixel of a LatticeTransformer reads.
MOST_TAPS = 64
#: ``w_min`` of a denominator that is not clamped: the least finite float32.
NO_CLAMP = float(np.finfo(np.float32).min)


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
        w_min: the lower bound of a projective grid's denominator; None: it is not clamped.
        offset: added to (x, y[, z]) of a projective grid after the division; empty: zeros.
    """

    kind: Kind
    rows: Array
    output_size: tuple[int, ...]
    w_min: float | None = None
    offset: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """K."""
        return len(self.rows)

    @property
    def constants(self) -> dict[str, Array]:
        """The op's inputs after theta."""
        return {"basis": self.rows}

    @property
    def over_pixels(self) -> bool:
        """Whether the rows are x, y(, z), 1 at the pixel centers."""
        mesh = canonical_basis(self.output_size)
        return mesh.shape == self.rows.shape and bool(np.abs(mesh - self.rows).max(initial=0.0) < 1e-6)

    def exact(self) -> Basis:
        """Returns the basis with rows in float64. Float32 copies of x, y(, z), 1 are recomputed in float64."""
        known = self.kind != "basis" and self.over_pixels
        return replace(self, rows=canonical_basis(self.output_size) if known else self.rows.astype(np.float64))

    def grid(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sampling grid [N, *output_size, D] of ``theta`` in float64.

        Args:
            theta: [N, D, K]; projective: [N, D + 1, K].
        """
        points = map_points(theta.astype(np.float64), self.rows.astype(np.float64), self.output_size)
        if self.kind != "projective":
            return points
        with np.errstate(divide="ignore", invalid="ignore"):
            w = points[..., -1:] if self.w_min is None else np.maximum(points[..., -1:], self.w_min)
            return np.asarray(points[..., :-1] / w + np.array(self.offset or 0.0))

    def terms(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sums of |theta| |basis| that rounding is relative to, [N, *output_size, R], in float64."""
        return map_points(np.abs(theta.astype(np.float64)), np.abs(self.rows.astype(np.float64)), self.output_size)

    def fitted(self, grid: Array) -> NDArray[np.float64]:
        """Returns the theta [N, D, K] whose grid is nearest to ``grid`` [N, *output_size, D], in float64."""
        rows = self.rows.astype(np.float64)
        points = grid.reshape(len(grid), rows.shape[1], -1).transpose(1, 0, 2)  # [P, N, D]
        theta = np.linalg.lstsq(rows.T, points.reshape(rows.shape[1], -1), rcond=None)[0]
        return np.asarray(theta.reshape(len(rows), len(grid), -1).transpose(1, 2, 0))


@dataclass(frozen=True)
class TensorProductBasis:
    """The basis of a lattice as one matrix per axis: the dense one is their Kronecker product.

    Attributes:
        planes: [depth, d]; [1, 1] for images.
        rows: [height, h].
        columns: [w, width].
        output_size: (height, width) or (depth, height, width).
    """

    planes: Array
    rows: Array
    columns: Array
    output_size: tuple[int, ...]
    kind: Kind = "tensor_product"

    @property
    def count(self) -> int:
        """K = d h w."""
        return prod(self.lattice)

    @property
    def lattice(self) -> tuple[int, int, int]:
        """(d, h, w)."""
        return self.planes.shape[1], self.rows.shape[1], self.columns.shape[0]

    @property
    def constants(self) -> dict[str, Array]:
        """The op's inputs after theta."""
        return {"planes": self.planes, "rows": self.rows, "columns": self.columns}

    def exact(self) -> TensorProductBasis:
        """Returns the basis in float64."""
        planes, rows, columns = (value.astype(np.float64) for value in self.constants.values())
        return replace(self, planes=planes, rows=rows, columns=columns)

    def grid(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sampling grid [N, *output_size, D] of ``theta`` [N, D, K], in float64."""
        return self._contracted(theta.astype(np.float64), self.exact())

    def terms(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sums of |theta| |basis| that rounding is relative to, [N, *output_size, D], in float64."""
        planes, rows, columns = (np.abs(value) for value in self.exact().constants.values())
        magnitudes = replace(self, planes=planes, rows=rows, columns=columns)
        return self._contracted(np.abs(theta.astype(np.float64)), magnitudes)

    def fitted(self, grid: Array) -> NDArray[np.float64]:
        """Returns the theta [N, D, K] whose grid is nearest to ``grid`` [N, *output_size, D], in float64."""
        exact = self.exact()
        sizes = (len(self.planes), len(self.rows), self.columns.shape[1])
        values = np.moveaxis(grid.reshape(len(grid), *sizes, -1), -1, 1)
        values = contracted(values, 2, map(np.linalg.pinv, (exact.planes, exact.rows, exact.columns.T)))
        return np.asarray(values.reshape(*values.shape[:2], -1))

    def _contracted(self, theta: Array, exact: TensorProductBasis) -> NDArray[np.float64]:
        values = theta.reshape(*theta.shape[:2], *self.lattice)
        values = contracted(values, 2, (exact.planes, exact.rows, exact.columns.T))
        return np.asarray(np.moveaxis(values, 1, -1).reshape(len(theta), *self.output_size, theta.shape[1]))


@dataclass(frozen=True)
class LatticeBasis:
    """The basis of an irregular lattice: each pixel reads J of its K points.

    Attributes:
        index: [J, P] int32.
        weight: [J, P].
        output_size: (height, width) or (depth, height, width).
    """

    index: Array
    weight: Array
    output_size: tuple[int, ...]
    kind: Kind = "lattice"

    @property
    def count(self) -> int:
        """The points that are read: all of theta's K, or the first ones."""
        return int(self.index.max(initial=-1)) + 1

    @property
    def constants(self) -> dict[str, Array]:
        """The op's inputs after theta."""
        return {"index": self.index, "weight": self.weight}

    def exact(self) -> LatticeBasis:
        """Returns the basis in float64."""
        return replace(self, weight=self.weight.astype(np.float64))

    def grid(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sampling grid [N, *output_size, D] of ``theta`` [N, D, K], in float64."""
        return self._sum(theta.astype(np.float64), self.weight.astype(np.float64))

    def terms(self, theta: Array) -> NDArray[np.float64]:
        """Returns the sums of |theta| |basis| that rounding is relative to, [N, *output_size, D], in float64."""
        return self._sum(np.abs(theta.astype(np.float64)), np.abs(self.weight.astype(np.float64)))

    def fitted(self, grid: Array) -> NDArray[np.float64]:
        """Returns the theta [N, D, K] whose grid is nearest to ``grid`` [N, *output_size, D], in float64."""
        rows = np.zeros((self.count, self.index.shape[1]))
        np.add.at(rows, (self.index, np.arange(rows.shape[1])), self.weight.astype(np.float64))
        return Basis("basis", rows, self.output_size).fitted(grid)

    def _sum(self, theta: Array, weight: Array) -> NDArray[np.float64]:
        points = np.zeros((*theta.shape[:2], self.index.shape[1]))
        for index, factors in zip(self.index, weight, strict=True):
            points += theta[:, :, index] * factors
        return np.asarray(points.transpose(0, 2, 1).reshape(len(theta), *self.output_size, theta.shape[1]))


AnyBasis = Basis | TensorProductBasis | LatticeBasis
"""What maps theta to a sampling grid."""


def basis_of(
    kind: Kind, constants: Sequence[Array], output_size: tuple[int, ...], attributes: Mapping[str, Any]
) -> AnyBasis:
    """Returns the basis of a node of ``kind`` from its inputs after theta and its attributes."""
    if kind == "tensor_product":
        planes, rows, columns = constants
        return TensorProductBasis(planes, rows, columns, output_size)
    if kind == "lattice":
        index, weight = constants
        return LatticeBasis(index, weight, output_size)
    given, offset = attributes.get("w_min"), tuple(map(float, attributes.get("offset") or ()))
    w_min = None if given is None or given <= NO_CLAMP else float(given)  # None: absent, from onnx's evaluator
    return Basis(kind, constants[0], output_size, w_min, offset)
