"""Grids that are a lattice of control points contracted with one matrix per axis: found without a dense basis.

A coarse grid that is upsampled, or a B-spline, has thousands of parameters, too many for a response each. Its response
to parameter (c, i, j) is ``mix[d, c] · rows[y, i] · columns[x, j]``. A few probes find the axes, one probe per lattice
row and column finds the matrices, and random parameters decide whether the product holds: the grid was proven affine,
and an affine map that vanishes at random points is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import contracted
from stn_infer.fusion.basis import TensorProductBasis
from stn_infer.fusion.dataflow import GraphView, NotLinear
from stn_infer.fusion.evaluate import Clamped, Evaluator, Quotient
from stn_infer.fusion.forms import FLOATS, Degree
from stn_infer.fusion.measure import Cut
from stn_infer.fusion.proof import Prover
from stn_infer.fusion.shapes import SINGLE, Axis, Observation, Sizes, SymbolicShape
from stn_infer.fusion.span import ROUNDING, snap

Float64 = NDArray[np.float64]

_SEED = 20150605
_MAX_VALUES = 2**21  # elements that one run of the subgraph may hold
_MOST_PARAMETERS = 2**17
_MOST_COMPONENTS = 4
_MOST_COLUMNS = 6  # columns per axis that the constant part of the grid may add
_TRIES = 6
_READINGS = 16
# Weights below this are rounding: a matrix with exact zeros costs the kernels less.
_ZERO = 1e-9


@dataclass(frozen=True)
class LatticeMap:
    """``grid[d, z, y, x] = sum theta[d, k, i, j] planes[z, k] rows[y, i] columns[x, j]``.

    theta is the cut's tensor: its axes in ``order`` give (component, *lattice); ``mix`` maps components to coordinates;
    ``pads`` zeros follow each lattice axis; ``offset`` is added.

    Attributes:
        matrices: one per axis of the output, [length, lattice length] float64.
        shape: the cut's tensor per unit, without axes of length 1.
        order: its axes: the component's if it has one, then the lattice's, in the order of the output's axes.
        mix: [T * D, C] float64.
        pads: how many entries each lattice axis gets for the constant part of the grid.
        offset: [T * D, *lattice] float64; None: zero.
        dimensions: D.
        output_size: (height, width) or (depth, height, width).
    """

    matrices: tuple[Float64, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    mix: Float64
    pads: tuple[int, ...]
    offset: Float64 | None
    dimensions: int
    output_size: tuple[int, ...]

    @property
    def lattice(self) -> tuple[int, ...]:
        """theta's lattice, with the padding."""
        return tuple(matrix.shape[1] for matrix in self.matrices)

    @property
    def basis(self) -> TensorProductBasis:
        """The op's matrices; an image has one plane."""
        *planes, rows, columns = self.matrices
        first = planes[0] if planes else np.ones((1, 1))
        return TensorProductBasis(first, rows, np.ascontiguousarray(columns.T), self.output_size)

    @property
    def work(self) -> int:
        """Multiplications per grid of one coordinate, contracting the first axis first."""
        total, sizes = 0, list(self.lattice)
        for axis, length in enumerate(self.output_size):
            total += length * prod(sizes)
            sizes[axis] = length
        return total

    @property
    def weight_bytes(self) -> int:
        """What theta's constants and the matrices take in a file, float32."""
        offset = 0 if self.offset is None else self.offset.size
        return 4 * (sum(matrix.size for matrix in self.matrices) + self.mix.size + offset)


def find_lattice(
    view: GraphView,
    observed: Observation,
    prover: Prover,
    evaluator: Evaluator,
    grid: str,
    region: Sequence[int],
    output_size: tuple[int, ...],
) -> tuple[Cut, LatticeMap]:
    """Returns a tensor of which the grid is a product of one matrix per axis, and the map.

    Args:
        view, observed, prover, evaluator: of the graph.
        grid: the grid's tensor, [units * T, *output_size, D].
        region: indices of the nodes through which the grid can be traced back, ascending.
        output_size: the grid's spatial size.

    Raises:
        NotLinear: there is no such tensor.
    """
    why = NotLinear(grid, view.maker(grid), "it is not a product of one matrix per axis")
    cuts = sorted(_cuts(view, observed, prover, grid, region), key=lambda cut: cut.size)
    for cut in cuts[:_TRIES]:
        try:
            forms = prover.prove(cut.tensors, cut.nodes, grid)
            if all(form.degree <= Degree.AFFINE for form in forms.values()):
                names = {name for index in cut.nodes for name in view.nodes[index].output}
                hints = frozenset(axis.factor for name in names for axis in observed.shapes.get(name, ()))
                return cut, _factored(evaluator, cut, grid, output_size, hints)
        except NotLinear as reason:
            why = reason
    raise why


def _cuts(view: GraphView, observed: Observation, prover: Prover, grid: str, region: Sequence[int]) -> Iterator[Cut]:
    """The single tensors that every path to the grid goes through, nearest first, of one size each."""
    frontier, passed, seen = {grid}, [], set[tuple[int, ...]]()
    shape = observed.shapes[grid]
    for index in reversed(region):
        node = view.nodes[index]
        if frontier.isdisjoint(node.output):
            continue
        if prover.rejection(index) is not None:
            return
        frontier.difference_update(node.output)
        frontier.update(view.varying_inputs(node))
        passed.append(index)
        name = next(iter(frontier), "")
        if len(frontier) != 1 or observed.dtypes.get(name) not in FLOATS or name not in observed.shapes:
            continue
        cut = _cut(view, observed, name, tuple(sorted(passed)), shape)
        if cut is not None and (key := _lengths(cut)) not in seen:
            seen.add(key)
            yield cut


def _cut(view: GraphView, observed: Observation, name: str, nodes: tuple[int, ...], grid: SymbolicShape) -> Cut | None:
    """The cut at one tensor; None if its shape does not have the units of the grid, or it is not smaller."""
    shape = observed.shapes[name]
    units = next((unit for unit in (grid[0], Axis(1, batch=True), SINGLE) if _has_units(shape, unit, grid[0])), None)
    if units is None or any(axis.varied is not None for axis in shape):
        return None
    outputs = (output for index in nodes for output in view.nodes[index].output)
    held = sum(prod(axis.factor for axis in observed.shapes.get(output, ())) for output in outputs)
    cut = Cut((name,), (shape,), (False,), nodes, units, grid[0].factor // units.factor, held // units.factor)
    values = prod(axis.factor for axis in grid[1:]) * cut.rows
    return cut if 1 < cut.size <= min(_MOST_PARAMETERS, values // 4) else None


def _has_units(shape: SymbolicShape, unit: Axis, rows: Axis) -> bool:
    if unit == SINGLE:
        return not rows.batch and not any(axis.batch for axis in shape)
    others = any(axis.batch for axis in shape[1:])
    return bool(shape) and shape[0] == unit and not others and unit.batch == rows.batch


def _lengths(cut: Cut) -> tuple[int, ...]:
    """The tensor's axes per unit, without those of length 1."""
    axes = cut.shapes[0] if cut.units == SINGLE else cut.shapes[0][1:]
    return tuple(axis.factor for axis in axes if axis.factor != 1)


def _factored(
    evaluator: Evaluator, cut: Cut, grid: str, output_size: tuple[int, ...], hints: frozenset[int]
) -> LatticeMap:
    why = NotLinear(grid, "", "its parameters do not form a lattice with the grid's number of axes")
    runs = _Runs(evaluator, cut, grid, output_size)
    for shape, place in _readings(_lengths(cut), output_size, hints):
        try:
            return _Probes(runs, shape, place).factored()
        except NotLinear as reason:
            why = reason
    raise why


def _readings(
    shape: tuple[int, ...], output_size: tuple[int, ...], hints: frozenset[int]
) -> list[tuple[tuple[int, ...], int | None]]:
    """Ways to read parameters of ``shape`` as a lattice, perhaps with components on one axis, likely ones first.

    Args:
        shape: the tensor's axes; if they are too few, some are split.
        output_size: the grid's; a lattice is not finer.
        hints: lengths of axes of the tensors between the parameters and the grid.
    """
    rank = len(output_size)
    found: list[tuple[tuple[int, ...], int | None]] = []
    for split in sorted(_splits(shape, rank + 1), key=lambda axes: -sum(axis in hints for axis in axes)):
        places = [place for place in (0, rank, *range(1, rank)) if split[place] <= _MOST_COMPONENTS]
        if split != shape:  # whoever splits an axis does not put the components inside
            places = [place for place in places if place in (0, rank) and split[place] == rank]
        found += [(split, place) for place in places]
    return [*([(shape, None)] if len(shape) == rank else []), *found][:_READINGS]


def _splits(shape: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    """Every way to split axes of ``shape`` into factors above 1 so that there are ``count`` axes."""
    if len(shape) >= count or not shape:
        if len(shape) == count:
            yield shape
        return
    first, rest = shape[0], shape[1:]
    for tail in _splits(rest, count - 1):
        yield (first, *tail)
    for factor in range(2, first // 2 + 1):
        if first % factor == 0 and count >= 2:
            for tail in _splits((first // factor, *rest), count - 1):
                yield (factor, *tail)


class _Runs:
    """Runs of the subgraph: [units, T * D, *output_size] from parameters [units, Q]."""

    def __init__(self, evaluator: Evaluator, cut: Cut, grid: str, output_size: tuple[int, ...]) -> None:
        self._evaluator, self.cut, self.grid, self.output_size = evaluator, cut, grid, output_size
        self.zero = self.at(np.zeros((1, cut.size)))[0]

    @property
    def trials(self) -> list[Sizes]:
        """Sizes at which the map must hold: other batches than those of the probes, and the other dynamic sizes."""
        settings = list(self._evaluator.settings)
        return [Sizes(3), *settings[2:]] if self.cut.units.batch else settings

    def responses(self, parameters: Float64) -> Iterator[Float64]:
        """The responses to each row of ``parameters``, one after another."""
        units = self.cut.units
        count = max(1, _MAX_VALUES // max(self.cut.widest, 1)) if units.batch else units.factor
        for start in range(0, len(parameters), count):
            yield from self.at(parameters[start : start + count]) - self.zero

    def at(self, parameters: Float64, sizes: Sizes | None = None) -> Float64:
        """The grids of parameters [units, Q]; at ``sizes``, parameters must have its number of units."""
        units, count = self.cut.units, len(parameters)
        if sizes is None:
            # At least two samples, so that an axis of length 1 is never mistaken for the batch.
            sizes = Sizes(max(2, -(-count // units.factor)) if units.batch else 1)
            parameters = np.concatenate([parameters, np.zeros((units.at(sizes) - count, self.cut.size))])
        value = self._evaluator.forward(
            self.cut.split(parameters, sizes), self.cut.nodes, frozenset(), self.grid, sizes
        )
        assert not isinstance(value, Quotient | Clamped)
        rows, points = self.cut.rows, prod(self.output_size)
        if value.size % (len(parameters) * rows * points):
            raise NotLinear(self.grid, "", "its shape is not the one observed before")
        moved = value.reshape(len(parameters), rows, points, -1).transpose(0, 1, 3, 2)
        return np.asarray(moved.reshape(len(parameters), -1, *self.output_size)[:count])


class _Probes:
    """Finds the matrices for one reading of the parameters' axes.

    Args:
        runs: the subgraph.
        shape: the parameters' axes.
        place: which of them are the components; None: there is one component.
    """

    def __init__(self, runs: _Runs, shape: tuple[int, ...], place: int | None) -> None:
        self._runs, self._shape, self._place = runs, shape, place
        self._axes = [axis for axis in range(len(shape)) if axis != place]
        self._components = 1 if place is None else shape[place]
        self._random = np.random.default_rng(_SEED)
        self._profiles = [self._random.uniform(0.5, 1.5, shape[axis]) for axis in self._axes]

    def factored(self) -> LatticeMap:
        """Returns the map.

        Raises:
            NotLinear: the parameters' axes are not independent, or the constant part has no small lattice.
        """
        mix, base = self._mix()
        turn = self._turn(mix, base)
        matrices, scale = self._matrices(mix, base, turn)
        mix = snap(mix * scale)
        place = [] if self._place is None else [self._place]
        order = (*place, *(self._axes[axis] for axis in turn))
        runs, size = self._runs, self._runs.output_size
        found = LatticeMap(matrices, self._shape, order, mix, (0,) * len(size), None, len(size), size)
        self._check(found)
        return _with_constant(found, runs.zero, runs.grid)

    def _values(self, component: Float64, profiles: Sequence[Float64]) -> Float64:
        """Parameters [Q]: the outer product of values per component and per lattice axis."""
        lattice = reduce(np.multiply.outer, profiles)
        values = np.multiply.outer(component, lattice)
        return values[0].ravel() if self._place is None else np.moveaxis(values, 0, self._place).ravel()

    def _mix(self) -> tuple[Float64, Float64]:
        """The coordinates' shares [T * D, C] of the strongest response, and that response [*output_size]."""
        units = np.eye(self._components)
        found = np.stack(list(self._runs.responses(np.stack([self._values(unit, self._profiles) for unit in units]))))
        if not np.all(np.isfinite(found)):
            raise self._no("it is not finite")
        strengths = np.abs(found).max(axis=tuple(range(2, found.ndim)))
        component, coordinate = np.unravel_index(int(strengths.argmax()), strengths.shape)
        base = found[component, coordinate]
        if strengths.max() == 0:
            raise self._no("it does not depend on its parameters")
        shares = np.tensordot(found, base, axes=base.ndim) / float(np.sum(base * base))
        error = np.abs(found - np.multiply.outer(shares, base))
        if error.max() > ROUNDING * np.abs(base).max():
            raise self._no("its coordinates depend on the lattice in different ways")
        return shares.T, base

    def _turn(self, mix: Float64, base: Float64) -> tuple[int, ...]:
        """For each axis of the output, the lattice axis that it follows."""
        peak = np.unravel_index(int(np.abs(base).argmax()), base.shape)
        coordinate, component = self._strongest(mix)
        follows: dict[int, int] = {}
        for number, profile in enumerate(self._profiles):
            others = list(self._profiles)
            others[number] = self._random.uniform(0.5, 1.5, len(profile))
            (found,) = self._runs.responses(self._values(np.eye(self._components)[component], others)[None])
            changed = [
                axis
                for axis in range(base.ndim)
                if not _proportional(_fiber(found[coordinate], peak, axis), _fiber(base, peak, axis))
            ]
            if len(changed) != 1 or changed[0] in follows:
                raise self._no("its axes do not follow one lattice axis each")
            follows[changed[0]] = number
        return tuple(follows[axis] for axis in range(base.ndim))

    def _strongest(self, mix: Float64) -> tuple[int, int]:
        coordinate, component = np.unravel_index(int(np.abs(mix).argmax()), mix.shape)
        return int(coordinate), int(component)

    def _matrices(self, mix: Float64, base: Float64, turn: tuple[int, ...]) -> tuple[tuple[Float64, ...], float]:
        """One matrix per axis of the output, whose rows at the response's peak sum to 1, and the factor left over."""
        peak = np.unravel_index(int(np.abs(base).argmax()), base.shape)
        height, channels = float(base[peak]), self._channels(mix)
        matrices, scale = [], height
        for axis, number in enumerate(turn):
            columns = self._columns(mix, channels, axis, number, peak) / height
            total = float(columns[peak[axis]].sum())
            if abs(total) < 1e-6 * np.abs(columns).max():
                total = float(np.abs(columns).max())
            if abs(total - 1) < ROUNDING:
                total = 1.0  # the file's own weights
            columns = columns / total
            columns[np.abs(columns) < _ZERO * np.abs(columns).max()] = 0
            matrices.append(_rounded(columns))
            scale *= total
        return tuple(matrices), scale

    def _channels(self, mix: Float64) -> list[tuple[int, int]]:
        """Pairs (coordinate, component) that no other pair disturbs, so that one run carries a probe in each."""
        large = np.abs(mix) > ROUNDING * np.abs(mix).max()
        alone = [
            (int(row), int(column))
            for row, column in zip(*np.nonzero(large), strict=True)
            if large[row].sum() == 1 and large[:, column].sum() == 1
        ]
        return alone or [self._strongest(mix)]

    def _columns(
        self, mix: Float64, channels: list[tuple[int, int]], axis: int, number: int, peak: Sequence[Any]
    ) -> Float64:
        """The responses through the peak along ``axis`` to each entry of lattice axis ``number``: [length, entries]."""
        count = len(self._profiles[number])
        result = np.empty((self._runs.output_size[axis], count))
        groups = [range(start, min(start + len(channels), count)) for start in range(0, count, len(channels))]
        parameters = np.stack([self._group(channels, group, number) for group in groups])
        for group, found in zip(groups, self._runs.responses(parameters), strict=True):
            for entry, (coordinate, component) in zip(group, channels, strict=False):
                result[:, entry] = _fiber(found[coordinate], peak, axis) / mix[coordinate, component]
        return result

    def _group(self, channels: list[tuple[int, int]], group: range, number: int) -> Float64:
        total = np.zeros(prod(self._shape))
        for entry, (_, component) in zip(group, channels, strict=False):
            profiles = list(self._profiles)
            profiles[number] = np.eye(len(profiles[number]))[entry]
            total += self._values(np.eye(self._components)[component], profiles)
        return total

    def _check(self, found: LatticeMap) -> None:
        """Compares the product with runs at random parameters, at all trial sizes."""
        for sizes in self._runs.trials:
            parameters = self._random.standard_normal((self._runs.cut.units.at(sizes), prod(self._shape)))
            expected = product(found, parameters) + self._runs.zero
            if not np.allclose(self._runs.at(parameters, sizes), expected, rtol=0, atol=_limit(expected)):
                raise self._no("it is not a product of one matrix per axis")

    def _no(self, reason: str) -> NotLinear:
        return NotLinear(self._runs.grid, "", reason)


def product(found: LatticeMap, parameters: Float64) -> Float64:
    """The linear part of the grids [units, T * D, *output_size] of parameters [units, Q], before any padding."""
    units, lattice = len(parameters), [m.shape[1] - pad for m, pad in zip(found.matrices, found.pads, strict=True)]
    values = parameters.reshape(units, *found.shape).transpose(0, *(1 + axis for axis in found.order))
    theta = np.tensordot(values.reshape(units, -1, *lattice), found.mix, axes=(1, 1))  # [units, *lattice, T * D]
    matrices = (matrix[:, :length] for matrix, length in zip(found.matrices, lattice, strict=True))
    return np.moveaxis(contracted(theta, 1, matrices), -1, 1)


def _with_constant(found: LatticeMap, zero: Float64, grid: str) -> LatticeMap:
    """Adds the constant part of the grid, ``zero`` [T * D, *output_size], to theta; its lattice grows if it must."""
    limit = _limit(zero)
    if np.abs(zero).max(initial=0.0) <= limit * 1e-3:
        return found
    for extended in (False, True):
        matrices = [np.asarray(matrix) for matrix in found.matrices]
        if extended:
            matrices = [_extended(matrix, zero, axis, grid) for axis, matrix in enumerate(matrices)]
        offset = _coefficients(matrices, zero)
        if offset is not None:
            pads = tuple(m.shape[1] - n.shape[1] for m, n in zip(matrices, found.matrices, strict=True))
            return LatticeMap(
                tuple(matrices), found.shape, found.order, found.mix, pads, offset, found.dimensions, found.output_size
            )
    raise NotLinear(grid, "", "its constant part has no small lattice")


def _coefficients(matrices: Sequence[Float64], zero: Float64) -> Float64 | None:
    """The lattice [T * D, *lattice] whose grid is ``zero``; None if there is none with moderate values."""
    offset = _rounded(contracted(zero, 1, (np.linalg.pinv(matrix, rcond=1e-5) for matrix in matrices)))
    again = contracted(offset, 1, matrices)
    moderate = np.abs(offset).max() <= 10 * np.abs(zero).max()
    return offset if moderate and np.abs(again - zero).max() <= _limit(zero) else None


def _extended(matrix: Float64, zero: Float64, axis: int, grid: str) -> Float64:
    """``matrix`` with the directions along ``axis`` that ``zero`` has beyond it, if there are few."""
    fibers = np.moveaxis(zero, 1 + axis, 0).reshape(len(matrix), -1)
    rest = fibers - matrix @ (np.linalg.pinv(matrix, rcond=1e-5) @ fibers)
    directions, values, _ = np.linalg.svd(rest, full_matrices=False)
    count = int(np.count_nonzero(values > ROUNDING * np.linalg.norm(fibers)))
    if count > _MOST_COLUMNS:
        raise NotLinear(grid, "", "its constant part has no small lattice")
    added = directions[:, :count] / np.abs(directions[:, :count]).max(axis=0, initial=1e-300)
    return np.concatenate([matrix, added], axis=1)


def _fiber(values: Float64, through: Sequence[Any], axis: int) -> Float64:
    """The values along ``axis`` through one point."""
    index: list[Any] = list(through)
    index[axis] = slice(None)
    return np.asarray(values[tuple(index)])


def _proportional(first: Float64, second: Float64) -> bool:
    error = first * np.dot(second, second) - second * np.dot(first, second)
    return bool(np.abs(error).max() <= ROUNDING * 10 * np.abs(first).max() * np.dot(second, second))


def _limit(values: Float64) -> float:
    return ROUNDING * max(1.0, float(np.abs(values).max(initial=0.0)))


def _rounded(values: Float64) -> Float64:
    """``values``, those that are within float64's rounding of an integer replaced by it."""
    nearest = np.round(values)
    return np.where(np.abs(values - nearest) < 1e-10, nearest, values)
