"""Measure the map from a cut to a grid, and factor it into ``theta`` and ``basis``.

The grid at parameters p is ``grid[p] = offset + sum_q p_q response_q``: running the subgraph at zero and at the unit
vectors gives offset and responses, in float64. Their span has a small basis: the rows x, y(, z), 1 for affine families,
as many rows as control points for splines and piecewise affine meshes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.graph.evaluate import Evaluator, Quotient
from stn_infer.graph.mesh import canonical_basis
from stn_infer.graph.observe import Template
from stn_infer.graph.op import Kind
from stn_infer.graph.region import Obstacle

Float64 = NDArray[np.float64]

_CHUNK = 64
# Constants of a float32 model are rounded by 6e-8 of coordinates that reach 1 and a little more; what lies closer
# than this to a simpler map is that map. It is 0.0003 px at width 1024.
_ROUNDING = 5e-7
_SEED = 20150605


@dataclass(frozen=True)
class Cut:
    """Tensors that together determine a grid.

    Attributes:
        tensors: their names, batch on axis 0.
        shapes: their shapes as functions of the batch.
        nodes: indices of the nodes between them and the grid, ascending.
    """

    tensors: tuple[str, ...]
    shapes: tuple[Template, ...]
    nodes: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values a sample in each tensor."""
        return tuple(prod(axis.factor for axis in shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Q, the values a sample in all of them."""
        return sum(self.sizes)

    def split(self, parameters: Float64) -> dict[str, NDArray[Any]]:
        """Parameters [B, Q] as the tensors' values."""
        pieces = np.split(parameters, np.cumsum(self.sizes)[:-1], axis=1)
        return {
            name: piece.reshape([axis.at(len(parameters)) for axis in shape])
            for name, shape, piece in zip(self.tensors, self.shapes, pieces, strict=True)
        }


@dataclass(frozen=True)
class Factored:
    """``grid = theta · basis`` with ``theta = matrix · p + offset``.

    Attributes:
        kind: affine, basis or projective.
        basis: [K, P] float64.
        matrix: [D*K, Q] float64; row d*K + k gives theta[d, k].
        offset: [D*K] float64.
        output_size: (height, width) or (depth, height, width).
    """

    kind: Kind
    basis: Float64
    matrix: Float64
    offset: Float64
    output_size: tuple[int, ...]

    @property
    def rows(self) -> int:
        """D: 2 or 3; 3 for a projective theta."""
        return len(self.offset) // len(self.basis)


def factor(
    evaluator: Evaluator, cut: Cut, grid: str, output_size: tuple[int, ...], quotients: frozenset[str]
) -> Factored:
    """Measure the map from ``cut`` to ``grid`` and factor it with the smallest K.

    Args:
        evaluator: evaluates the nodes between.
        cut: a cut from which ``grid`` was proven affine, or a quotient of affine forms.
        grid: the grid's tensor, [N, *output_size, D].
        output_size: its spatial size.
        quotients: the tensors that the proof found to be quotients.

    Raises:
        Obstacle: a node can't be evaluated, the map is not what was proven, or its span is too large to pay.
    """
    top, bottom = _responses(evaluator, cut, grid, quotients)  # [Q + 1, P, D]
    dimensions = top.shape[2]
    mesh = canonical_basis(output_size)
    columns = top.transpose(1, 2, 0).reshape(len(top[0]), -1)  # [P, D * (Q + 1)]
    scale = _scales(top)
    if bottom is not None:
        return _projective(grid, columns, bottom, scale, mesh, output_size)
    kind: Kind = "affine"
    basis, coefficients = mesh, _fit(mesh, columns, scale)
    if coefficients is None:
        kind = "basis"
        basis = _spanning_rows(columns, scale)
        coefficients = _fit(basis, columns, scale)
        if coefficients is None or 2 * len(basis) > columns.shape[0]:
            raise Obstacle(grid, "", f"its span has about {len(basis)} dimensions, too many to pay")
    theta = coefficients.reshape(len(basis), dimensions, -1).transpose(1, 0, 2)  # [D, K, Q + 1]
    return _factored(kind, basis, theta, output_size)


def _factored(kind: Kind, basis: Float64, theta: Float64, output_size: tuple[int, ...]) -> Factored:
    flat = _snap(theta.reshape(-1, theta.shape[2]))
    return Factored(kind, basis, flat[:, :-1], flat[:, -1], output_size)


def _projective(
    grid: str, columns: Float64, bottom: Float64, scale: Float64, mesh: Float64, output_size: tuple[int, ...]
) -> Factored:
    if len(output_size) != 2:
        raise Obstacle(grid, "", "a projective map in 3-D has no operator")
    if np.any(np.ptp(bottom, axis=2) > _ROUNDING * max(1.0, float(np.abs(bottom).max()))):
        raise Obstacle(grid, "", "x and y are divided by different values")
    upper, lower = _fit(mesh, columns, scale), _fit(mesh, bottom[:, :, 0].T, _scales(bottom[:, :, :1]))
    if upper is None or lower is None:
        raise Obstacle(grid, "", "a quotient of forms that are not linear in x and y has no operator")
    theta = np.concatenate([upper.reshape(3, 2, -1).transpose(1, 0, 2), lower[None]])  # [3, 3, Q + 1]
    return _factored("projective", mesh, theta, output_size)


def _responses(evaluator: Evaluator, cut: Cut, grid: str, quotients: frozenset[str]) -> tuple[Float64, Float64 | None]:
    """Responses to the unit vectors, then the value at zero: [Q + 1, P, D], of numerator and denominator."""

    def at(parameters: Float64) -> Float64:
        """[2 or 1, B, P, D]: numerators, and denominators where the grid is a quotient."""
        value = evaluator.forward(cut.split(parameters), cut.nodes, quotients, grid, len(parameters))
        parts = (value.numerator, value.denominator) if isinstance(value, Quotient) else (value,)
        return np.stack([part.reshape(len(parameters), -1, part.shape[-1]) for part in parts])

    zero = at(np.zeros((2, cut.size)))[:, :1]
    units = np.eye(cut.size)
    # at least two samples a run, so that an axis of length 1 is never taken for the batch
    chunks = [
        at(np.concatenate([units[start : start + _CHUNK], np.zeros((1, cut.size))]))[:, :-1] - zero
        for start in range(0, cut.size, _CHUNK)
    ]
    measured = np.concatenate([*chunks, zero], axis=1)  # [parts, Q + 1, P, D]
    _check(at, measured, cut, grid)
    return measured[0], measured[1] if len(measured) > 1 else None


def _check(at: Any, measured: Float64, cut: Cut, grid: str) -> None:
    """Compare the measured map with runs at random points, at two batch sizes."""
    generator = np.random.default_rng(_SEED)
    for batch in (3, 5):
        points = generator.standard_normal((batch, cut.size))
        expected = np.tensordot(points, measured[:, :-1], axes=(1, 1)).transpose(1, 0, 2, 3) + measured[:, -1:]
        scale = max(1.0, float(np.abs(expected).max()))
        if not np.allclose(at(points), expected, rtol=0, atol=1e-9 * scale):
            raise Obstacle(grid, "", "the measured map does not hold at random points")


def _scales(responses: Float64) -> Float64:
    """What rounding is measured against, for each of the D * (Q + 1) columns of [Q + 1, P, D] responses.

    A parameter's response has its own scale, however small: its parameter may be large. It is at least a thousandth of
    the largest response, so that what cancelled to nearly nothing is not taken for a direction. The constant part is a
    grid: its scale is at least 1.
    """
    largest = np.abs(responses).max(axis=1).T  # [D, Q + 1]
    floor = np.full(largest.shape[1], largest[:, :-1].max(initial=0.0) * 1e-3)
    floor[-1] = 1.0
    scales: Float64 = np.maximum(largest, np.maximum(floor, np.finfo(np.float64).tiny)).ravel()
    return scales


def _fit(basis: Float64, columns: Float64, scale: Float64) -> Float64 | None:
    """Coefficients [K, C] with ``basis.T @ coefficients = columns`` [P, C]; None where more than rounding is left."""
    if not np.all(np.isfinite(columns)):
        return None
    coefficients: Float64 = np.linalg.lstsq(basis.T, columns / scale, rcond=None)[0].astype(np.float64)
    error = np.abs(basis.T @ coefficients - columns / scale)
    return coefficients * scale if np.all(error <= _ROUNDING) else None


def _spanning_rows(columns: Float64, scale: Float64) -> Float64:
    """A basis [K, P] of the columns' span, made of columns themselves where that is well conditioned.

    Columns are taken in the parameters' order, so that a spline's basis is its control points' own responses and theta
    is their positions; where such a choice is badly conditioned, the singular vectors serve.
    """
    scaled = columns / scale
    norms = np.linalg.norm(scaled, axis=0)
    order = [index for index in range(columns.shape[1]) if norms[index] > _ROUNDING]
    chosen: list[int] = []
    orthonormal = np.zeros((columns.shape[0], 0))
    for index in order:
        rest = scaled[:, index] - orthonormal @ (orthonormal.T @ scaled[:, index])
        rest -= orthonormal @ (orthonormal.T @ rest)  # twice is enough
        if np.linalg.norm(rest) > 1e-4 * norms[index]:
            chosen.append(index)
            orthonormal = np.column_stack([orthonormal, rest / np.linalg.norm(rest)])
        if 2 * len(chosen) > columns.shape[0]:
            break
    basis = columns[:, chosen].T
    if _fit(basis, columns, scale) is not None:
        return basis
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    rank = int(np.sum(singular > _ROUNDING * singular[0]))
    rows: Float64 = left[:, :rank].T * np.sqrt(columns.shape[0])
    return rows


def _snap(values: Float64) -> Float64:
    """Coefficients [D * K, Q + 1] that are an integer but for rounding, made that; a column has its own scale."""
    nearest = np.round(values)
    tolerance = _ROUNDING / 2 * np.minimum(1.0, np.abs(values).max(axis=0, initial=0.0))
    return np.where(np.abs(values - nearest) <= tolerance, nearest, values)
