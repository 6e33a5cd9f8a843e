"""Fits columns to a basis up to rounding, and finds a small basis of many columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

#: Constants of a float32 model have a rounding error of 6e-8 at coordinates slightly above 1. A map within this
#: tolerance of a simpler map is taken to be the simpler map. The tolerance is 0.0003 px at width 1024.
ROUNDING = 5e-7


def scales(largest: Float64) -> Float64:
    """Returns the scales that rounding is compared with: [Q + 1, C] from the responses' largest values [Q + 1, C].

    The constant part comes last. Each parameter's response has its own scale, however small, because the parameter may
    be large. The scale is at least a thousandth of the largest response, so that cancellation noise is not taken for a
    direction. The constant part is a grid, so its scale is at least 1.
    """
    floor = np.full(len(largest), largest[:-1].max(initial=0.0) * 1e-3)
    floor[-1] = 1.0
    found: Float64 = np.maximum(largest, np.maximum(floor, np.finfo(np.float64).tiny)[:, None])
    return found


def fit(basis: Float64, columns: Float64, scale: Float64) -> Float64 | None:
    """Returns [K, C] with ``basis.T @ coefficients = columns`` [P, C]. None if the residual exceeds rounding."""
    if not np.all(np.isfinite(columns)):
        return None
    coefficients: Float64 = np.linalg.lstsq(basis.T, columns / scale, rcond=None)[0].astype(np.float64)
    error = np.abs(basis.T @ coefficients - columns / scale)
    return coefficients * scale if np.all(error <= ROUNDING) else None


def snap(values: Float64) -> Float64:
    """Rounds coefficients [R, Q + 1] that are integers up to rounding; each column has its own scale."""
    nearest = np.round(values)
    tolerance = ROUNDING / 2 * np.minimum(1.0, np.abs(values).max(axis=0, initial=0.0))
    return np.where(np.abs(values - nearest) <= tolerance, nearest, values)


class Span:
    """A basis of columns that arrive in chunks, made of the columns themselves if that is well conditioned.

    Columns are added in the parameters' order, so a spline's basis is the responses of its control points, and theta
    is their positions. A column nearly within the span of the earlier columns is not added; with ``thorough``, its
    residual becomes a row.

    Args:
        points: P.
        thorough: add the orthogonalized residual of columns that lie barely outside the span.
    """

    def __init__(self, points: int, thorough: bool) -> None:
        self._points, self._thorough = points, thorough
        self._basis = np.empty((0, points))
        self._orthonormal = np.empty((0, points))
        self.rows = 0

    @property
    def basis(self) -> Float64:
        """[K, P]."""
        return self._basis[: self.rows]

    def add(self, columns: Float64, scale: Float64) -> None:
        """Extends the span to ``columns`` [P, C], until it has more than P / 2 rows.

        Args:
            columns: responses.
            scale: the scale of each column.
        """
        scaled = columns / scale
        norms = np.linalg.norm(scaled, axis=0)
        known = self._orthonormal[: self.rows]
        rests = scaled - known.T @ (known @ scaled)
        threshold = 0.0 if self._thorough else 1e-4
        # Columns within the span of earlier chunks are skipped.
        for number in np.flatnonzero(np.linalg.norm(rests, axis=0) > np.maximum(threshold * norms, ROUNDING / 4)):
            if 2 * self.rows > self._points:
                return
            known = self._orthonormal[: self.rows]
            rest = rests[:, number]
            for _ in range(2):  # orthogonalizing twice is enough
                rest = rest - (known @ rest) @ known
            left = float(np.linalg.norm(rest))
            if norms[number] > ROUNDING and left > 1e-4 * norms[number]:
                self._append(columns[:, number], rest / left)
            elif self._thorough and float(np.abs(rest).max()) > ROUNDING / 4:
                self._append(rest / np.abs(rest).max(), rest / left)

    def _append(self, row: Float64, orthonormal: Float64) -> None:
        if self.rows == len(self._basis):
            room = np.empty((max(16, self.rows // 2), self._points))
            self._basis = np.concatenate([self._basis, room])
            self._orthonormal = np.concatenate([self._orthonormal, room])
        self._basis[self.rows], self._orthonormal[self.rows] = row, orthonormal
        self.rows += 1

    def fit(self, columns: Float64, scale: Float64) -> Float64 | None:
        """Returns the coefficients [K, C] of ``columns`` [P, C] in the basis. None if the residual exceeds rounding."""
        if not np.all(np.isfinite(columns)):
            return None
        known = self._orthonormal[: self.rows]
        triangle = known @ self.basis.T  # basis = triangle.T · orthonormal
        coefficients = np.linalg.solve(triangle, known @ (columns / scale))
        error = np.abs(self.basis.T @ coefficients - columns / scale)
        return coefficients * scale if np.all(error <= ROUNDING) else None
