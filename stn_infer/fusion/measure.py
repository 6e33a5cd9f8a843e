"""Measures the map from a cut to a grid, and factors it into ``theta`` and ``basis``.

The grid at parameters p is ``grid[p] = offset + sum_q p_q response_q``. Running the subgraph in float64 at zero and at
the unit vectors gives the offset and the responses. If the grid is affine in products of parameters, the values at
sums of unit vectors determine the products' responses. The responses' span has a small basis: the rows x, y(, z), 1 for
affine families, one row per control point for splines and piecewise affine meshes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.fusion.basis import Kind, canonical_basis
from stn_infer.fusion.dataflow import NotLinear, WideSpan
from stn_infer.fusion.evaluate import Clamped, Evaluator, Quotient
from stn_infer.fusion.monomials import Monomials, Term, monomials_of
from stn_infer.fusion.shapes import SINGLE, Axis, Sizes, SymbolicShape
from stn_infer.fusion.span import ROUNDING, Span, fit, scales, snap

Float64 = NDArray[np.float64]
Fit = Callable[[Float64, Float64], "Float64 | None"]

# Limit on a run's intermediate values, in elements; it determines how many unit vectors one chunk holds.
_MAX_VALUES = 2**18
_MAX_UNITS = 64
# Responses of fewer elements are kept instead of measured a second time.
_KEPT_VALUES = 2**21
_SEED = 20150605
# Limits for products of parameters: the parameters, the products, all measured values, and the rows of a basis.
_MAX_FACTORS, _MAX_PRODUCTS, _MAX_PRODUCT_VALUES, _MAX_PRODUCT_ROWS = 128, 512, 2**24, 32


@dataclass(frozen=True)
class Cut:
    """Tensors that together determine a grid, unit by unit.

    One map applies to each unit. A unit is a row of the grid's first axis, or a sample with all of its rows.

    Attributes:
        tensors: their names.
        shapes: their shapes; tensors that are not shared have the units on axis 0, unless there is a single unit.
        shared: for each tensor, whether all units share it.
        nodes: indices of the nodes between the tensors and the grid, ascending.
        units: the number of units.
        rows: T, the grid's rows per unit.
        widest: the most elements per unit that are held at once between the cut and the grid.
    """

    tensors: tuple[str, ...]
    shapes: tuple[SymbolicShape, ...]
    shared: tuple[bool, ...]
    nodes: tuple[int, ...]
    units: Axis
    rows: int
    widest: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values per unit in each tensor."""
        return tuple(
            prod(axis.factor for axis in shape) // (1 if shared else self.units.factor)
            for shape, shared in zip(self.shapes, self.shared, strict=True)
        )

    @property
    def size(self) -> int:
        """Q, the total number of values per unit."""
        return sum(self.sizes)

    @property
    def shared_columns(self) -> NDArray[np.bool_]:
        """[Q]: which values all units share."""
        return np.repeat(np.array(self.shared), self.sizes)

    def split(self, parameters: Float64, sizes: Sizes) -> dict[str, NDArray[Any]]:
        """Splits parameters [units, Q] into the tensors' values; shared tensors take the first unit's values."""
        pieces = np.split(parameters, np.cumsum(self.sizes)[:-1], axis=1)
        return {
            name: (piece[:1] if shared else piece).reshape([axis.at(sizes) for axis in shape])
            for name, shape, shared, piece in zip(self.tensors, self.shapes, self.shared, pieces, strict=True)
        }


@dataclass(frozen=True)
class ThetaMap:
    """``grid = theta · basis`` with ``theta = matrix · p + offset``.

    Attributes:
        kind: affine, basis or projective.
        basis: [K, P] float64.
        matrix: [T*D*K, Q] float64; row (t*D + d)*K + k gives theta[d, k] of the unit's t-th grid row.
        offset: [T*D*K] float64.
        dimensions: D: 2 or 3; D + 1 for a projective theta.
        output_size: (height, width) or (depth, height, width).
        products: the products of parameters that p consists of; None: p is the parameters.
        w_min: the lower bound of a projective denominator; None: it is not clamped.
        move: added to (x, y[, z]) after a division by a clamped denominator; empty: zeros.
    """

    kind: Kind
    basis: Float64
    matrix: Float64
    offset: Float64
    dimensions: int
    output_size: tuple[int, ...]
    products: Monomials | None = None
    w_min: float | None = None
    move: tuple[float, ...] = ()

    @property
    def general(self) -> bool:
        """Whether a projective map needs version 2 of its op."""
        plain = len(self.output_size) == 2 and len(self.basis) == 3 and self.w_min is None
        return self.kind == "projective" and not plain


def factor(
    evaluator: Evaluator,
    cut: Cut,
    grid: str,
    output_size: tuple[int, ...],
    quotients: frozenset[str],
    terms: frozenset[Term] | None = None,
) -> ThetaMap:
    """Measures the map from ``cut`` to ``grid`` and factors it with the smallest K.

    Args:
        evaluator: evaluates the nodes between the cut and the grid.
        cut: a cut from which ``grid`` was proven affine, or a quotient of affine forms.
        grid: the grid's tensor, [units * T, *output_size, D].
        output_size: its spatial size.
        quotients: the tensors that the proof found to be quotients.
        terms: products of the cut's tensors in which ``grid`` is affine; None: it is affine in the tensors.

    Raises:
        NotLinear: a node can't be evaluated, the map differs from the proven form, the map mixes units, or its span is
            too large for fusion to be useful.
    """
    measured = _Measured(evaluator, cut, grid, quotients, prod(output_size), terms)
    measured.check()
    mesh = canonical_basis(output_size)
    if measured.projective:
        return _projective(measured, mesh, output_size, grid)
    theta = _coefficients(measured, lambda chunk, scale: fit(mesh, chunk, scale))
    if theta is not None:
        return _theta_map("affine", mesh, theta, output_size, measured.monomials)
    basis, (theta,) = _spanned(measured, grid)
    _check_rows(measured, basis, grid)
    return _theta_map("basis", basis, theta, output_size, measured.monomials)


def _theta_map(
    kind: Kind, basis: Float64, theta: Float64, output_size: tuple[int, ...], products: Monomials | None
) -> ThetaMap:
    """Builds the map from theta [T, D, K, Q + 1], the constant part last."""
    flat = snap(theta.reshape(-1, theta.shape[3]))
    matrix = flat[:, :-1]
    if products is not None:
        largest = np.abs(matrix).max(axis=0, initial=0.0)
        used = largest >= 1e-9 * largest.max(initial=0.0)
        matrix, products = matrix[:, used], products.some(used)
    return ThetaMap(kind, basis, matrix, flat[:, -1], theta.shape[1], output_size, products)


class _Measured:
    """The responses to the unit vectors, then the value at zero; measured in chunks, kept in memory if they are small.

    Attributes:
        projective: whether there are denominators.
        monomials: the products of parameters whose responses are measured; None: the parameters' own.
        scales: the scales that rounding is compared with, for numerators and denominators: [Q + 1, T * D] each.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        cut: Cut,
        grid: str,
        quotients: frozenset[str],
        points: int,
        terms: frozenset[Term] | None,
    ) -> None:
        self._evaluator, self._cut, self._grid, self._quotients = evaluator, cut, grid, quotients
        self._points = points
        self._zero = self._one(np.zeros(cut.size))
        self.projective = len(self._zero) > 1
        self.monomials = None if terms is None else self._products(terms)
        count = cut.size if self.monomials is None else len(self.monomials)
        self._checks = [(sizes, self._random(sizes)) for sizes in self._trials()]
        self._expected = [self._zero.repeat(len(parameters), axis=1) for _, parameters in self._checks]
        keep = self.monomials is not None or self._zero.size * (count + 1) <= _KEPT_VALUES
        self._kept: list[Float64] | None = None
        kept, largest, start = [], [], 0
        for chunk in self._measure():
            largest.append(np.abs(chunk).max(axis=3).reshape(len(chunk), chunk.shape[1], -1))
            if start < count:  # the value at zero comes last
                for (_, parameters), expected in zip(self._checks, self._expected, strict=True):
                    columns = parameters if self.monomials is None else self.monomials.values(parameters)
                    mine = columns[:, start : start + chunk.shape[1]]
                    expected += np.tensordot(mine, chunk, axes=(1, 1)).transpose(1, 0, 2, 3, 4)
            start += chunk.shape[1]
            if keep:
                kept.append(chunk)
        if keep:
            self._kept = kept
        together = np.concatenate(largest, axis=1)
        self._responding = [float(part[:-1].max(initial=0.0)) for part in together]
        self.scales = tuple(scales(part) for part in together)

    def chunks(self, part: int = 0) -> Iterator[tuple[Float64, Float64]]:
        """Yields responses [c, T, P, D] of numerators (0) or denominators (1), with the scale of each column."""
        start = 0
        for chunk in self._measure() if self._kept is None else self._kept:
            stop = start + chunk.shape[1]
            yield chunk[part], self.scales[part][start:stop].ravel()
            start = stop

    def clamp(self) -> tuple[float | None, tuple[float, ...]]:
        """The lower bound of the denominator and what is added after the division; None and nothing if not clamped.

        Raises:
            NotLinear: they are not the same at all pixels and for all data.
        """
        if len(self._zero) < 4:
            return None, ()
        least, moves = self._zero[2], self._zero[3].reshape(-1, self._zero.shape[-1])
        if np.ptp(least) or self._responding[2]:
            raise NotLinear(self._grid, "", "its denominator is clamped at different values")
        if np.ptp(moves, axis=0).max() > ROUNDING or self._responding[3] > ROUNDING:
            reason = (
                "what is added after the division by a clamped value is not the same at all pixels and for all data"
            )
            raise NotLinear(self._grid, "", reason)
        return float(least.flat[0]), tuple(map(float, snap(moves[:1].T)[:, 0]))

    def check(self) -> None:
        """Compares the measured map with runs at random points, at all trial sizes.

        The map was proven affine, so random points determine it. A unit that depends on another unit, or that has a
        different map, gives a deviation.

        Raises:
            NotLinear: the values deviate.
        """
        for (sizes, parameters), expected in zip(self._checks, self._expected, strict=True):
            limit = 1e-9 * np.maximum(1.0, np.abs(expected).max(axis=(1, 2, 3, 4), keepdims=True, initial=0.0))
            if not np.all(np.abs(self._at(parameters, sizes) - expected) <= limit):
                reason = "the measured map does not hold at random points"
                if self._cut.units != SINGLE:
                    reason = "the samples of a batch do not all have the same map"
                raise NotLinear(self._grid, "", reason)

    def _random(self, sizes: Sizes) -> Float64:
        shared = self._cut.shared_columns
        count = self._cut.units.at(sizes)
        parameters = np.random.default_rng(_SEED).standard_normal((count, self._cut.size))
        parameters[:, shared] = parameters[:1, shared]
        return parameters

    def _trials(self) -> list[Sizes]:
        settings = self._evaluator.settings
        if not self._cut.units.batch:
            return list(settings)
        # Batch sizes other than those from which the shapes were learned.
        return [Sizes(3), Sizes(5 if self._cut.widest * 5 <= 16 * _MAX_VALUES else 2), *settings[2:]]

    def _products(self, terms: frozenset[Term]) -> Monomials:
        """The products of parameters on which some part of the grid may depend.

        Raises:
            NotLinear: there are too many.
        """
        if self._cut.size > _MAX_FACTORS:
            reason = f"it depends on products of {self._cut.size} values, more than {_MAX_FACTORS}"
            raise WideSpan(self._grid, "", reason)
        places, start = {}, 0
        for name, size in zip(self._cut.tensors, self._cut.sizes, strict=True):
            places[name] = range(start, start + size)
            start += size
        # Which rows and coordinates depend on which parameter, at a random point.
        base = np.random.default_rng(_SEED + 1).uniform(0.5, 1.5, self._cut.size)
        moved = np.concatenate(list(self._responses(base + np.eye(self._cut.size))), axis=1)
        changes = np.abs(moved + self._zero - self._one(base)).max(axis=3)  # [parts, Q, T, D]
        supports = changes.swapaxes(0, 1).reshape(self._cut.size, -1)
        supports = supports > 1e-12 * max(1.0, float(supports.max()))
        limit = min(_MAX_PRODUCTS, _MAX_PRODUCT_VALUES // self._zero.size)
        found = monomials_of(terms, places, supports, limit)
        if found is None:
            reason = f"it depends on more than {limit} products of the {self._cut.size} values that it is computed from"
            raise WideSpan(self._grid, "", reason)
        return found

    def _measure(self) -> Iterator[Float64]:
        """Yields the responses [parts, c, T, P, D] to the parameters or their products, then the value at zero."""
        if self.monomials is None:
            yield from self._responses(np.eye(self._cut.size))
        else:
            points = self.monomials.points()
            values = np.concatenate(list(self._responses(points)), axis=1)
            solved = np.linalg.solve(
                self.monomials.values(points), values.transpose(1, 0, 2, 3, 4).reshape(len(points), -1)
            )
            yield solved.reshape(len(points), len(values), *values.shape[2:]).swapaxes(0, 1)
        yield self._zero

    def _responses(self, points: Float64) -> Iterator[Float64]:
        """Yields the values at parameters [n, Q] minus the value at zero, in chunks."""
        shared = self._cut.shared_columns
        pending: list[Float64] = []
        for point in points:
            if point[shared].any():
                if pending:
                    yield self._several(np.array(pending))
                    pending = []
                yield self._one(point) - self._zero
                continue
            pending.append(point)
            if len(pending) == self._chunk:
                yield self._several(np.array(pending))
                pending = []
        if pending:
            yield self._several(np.array(pending))

    @property
    def _chunk(self) -> int:
        """How many units one run evaluates."""
        if not self._cut.units.batch:
            return self._cut.units.factor
        return max(1, min(_MAX_UNITS, _MAX_VALUES // max(self._cut.widest, 1)))

    def _several(self, parameters: Float64) -> Float64:
        """Returns the responses at several parameters, one per unit."""
        factor = self._cut.units.factor
        # At least two samples per run, so that an axis of length 1 is never mistaken for the batch.
        batch = max(2, -(-len(parameters) // factor)) if self._cut.units.batch else 1
        sizes = Sizes(batch)
        padded = np.zeros((self._cut.units.at(sizes), self._cut.size))
        padded[: len(parameters)] = parameters
        responses: Float64 = self._at(padded, sizes)[:, : len(parameters)] - self._zero
        return responses

    def _one(self, parameters: Float64) -> Float64:
        """Returns the value [parts, 1, T, P, D] with the same parameters for all units."""
        sizes = Sizes(2 if self._cut.units.batch else 1)
        return self._at(np.tile(parameters, (self._cut.units.at(sizes), 1)), sizes)[:, :1]

    def _at(self, parameters: Float64, sizes: Sizes) -> Float64:
        value = self._evaluator.forward(
            self._cut.split(parameters, sizes), self._cut.nodes, self._quotients, self._grid, sizes
        )
        assert not isinstance(value, Clamped)  # the proof ends at such a grid
        parts = value.parts if isinstance(value, Quotient) else (value,)
        shape = (len(parameters), self._cut.rows, self._points, parts[0].shape[-1])
        if any(part.size != prod(shape) for part in parts):
            raise NotLinear(self._grid, "", "its shape is not the one observed before")
        return np.stack([part.reshape(shape) for part in parts])


def _columns(chunk: Float64) -> Float64:
    """Returns responses [c, T, P, D] as columns [P, c * T * D]."""
    return chunk.transpose(2, 0, 1, 3).reshape(chunk.shape[2], -1)


def _coefficients(measured: _Measured, fit_chunk: Fit, part: int = 0) -> Float64 | None:
    """Returns theta [T, D, K, Q + 1] from coefficients fitted chunk by chunk. None if a chunk does not fit."""
    pieces = []
    for responses, scale in measured.chunks(part):
        found = fit_chunk(_columns(responses), scale)
        if found is None:
            return None
        pieces.append(found.reshape(-1, *responses.shape[:2], responses.shape[3]).transpose(2, 3, 0, 1))
    theta: Float64 = np.concatenate(pieces, axis=3)
    return theta


def _spanned(measured: _Measured, grid: str, parts: Sequence[int] = (0,)) -> tuple[Float64, list[Float64]]:
    """Returns a basis of the span of the responses in some parts, and each part's theta in that basis."""
    for thorough in (False, True):
        span: Span | None = None
        for responses, scale in chain.from_iterable(map(measured.chunks, parts)):
            columns = _columns(responses)
            span = span or Span(len(columns), thorough)
            span.add(columns, scale)
            if 2 * span.rows > len(columns):
                raise WideSpan(grid, "", f"its span has about {span.rows} dimensions, too many to benefit from fusion")
        assert span is not None
        found = [_coefficients(measured, span.fit, part) for part in parts]
        thetas = [theta for theta in found if theta is not None]
        if len(thetas) == len(parts):
            return span.basis, thetas
    raise NotLinear(grid, "", "no basis of its span is well conditioned")


def _check_rows(measured: _Measured, basis: Float64, grid: str) -> None:
    if measured.monomials is not None and len(basis) > _MAX_PRODUCT_ROWS:
        reason = f"its span has {len(basis)} dimensions in products of parameters, too many to benefit from fusion"
        raise WideSpan(grid, "", reason)


def _projective(measured: _Measured, mesh: Float64, output_size: tuple[int, ...], grid: str) -> ThetaMap:
    """A quotient of forms with one denominator, over x, y(, z), 1 or else over a basis of all its rows."""
    for bottom, _ in measured.chunks(1):
        if np.any(np.ptp(bottom, axis=3) > ROUNDING * max(1.0, float(np.abs(bottom).max(initial=0.0)))):
            what = "x and y" if len(output_size) == 2 else "x, y and z"
            raise NotLinear(grid, "", f"{what} are divided by different values")
    w_min, move = measured.clamp()
    basis = mesh
    upper = _coefficients(measured, lambda chunk, scale: fit(mesh, chunk, scale))
    lower = _coefficients(measured, lambda chunk, scale: fit(mesh, chunk, scale), part=1)
    if upper is None or lower is None:
        basis, (upper, lower) = _spanned(measured, grid, (0, 1))
        _check_rows(measured, basis, grid)
    theta = np.concatenate([upper, lower[:, :1]], axis=1)
    found = _theta_map("projective", basis, theta, output_size, measured.monomials)
    return replace(found, w_min=w_min, move=move)
