"""Check each sampler in isolation, independently of the model's weights, and name the likely mistake.

A trained network may never sample outside the image, or may stay at the identity. Then a wrong padding or a swapped
axis does not show in its outputs. So every sampler of the file runs alone, on grids that expose such mistakes:

- invariants, whose expected result needs no sampler: a grid at the pixel centers copies the image; shifted by whole
  pixels, flipped or transposed, it shifts, flips or transposes the image;
- rotated, scaled and shifted grids that leave the image, against the float64 sampler, at the image's own size and at a
  width of 1,024 pixels, where half-precision or TF32 coordinates are off by tenths of a pixel;
- for ``nearest``, coordinates that are exact in float32 and lie exactly between two pixels;
- for a projective grid, denominators that vary, on both sides of their lower bound if they have one.

A check is skipped where the transform family has no such grid: an attention transformer, for one, cannot flip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from stn_infer.arrays import Array
from stn_infer.deviation import bfloat16
from stn_infer.fusion.basis import AnyBasis, Basis, canonical_basis, map_points
from stn_infer.fusion.samplers import SamplerNode
from stn_infer.reference.calls import SamplerCall
from stn_infer.reference.comparison import Flips, WarpDeviation, compare_warp
from stn_infer.reference.sampling import mistakes
from stn_infer.reference.taps import theta_for
from stn_infer.samplers import SamplerSpec
from stn_infer.verification.runners import IsolatedSampler

WIDE = 1024
_TIES = 64  # the length of the image for ties; a power of two, so that coordinates are exact
_CHANNELS = 2


@dataclass(frozen=True)
class SamplerCheck:
    """The result of checking one sampler.

    Attributes:
        sampler: its index, in the order in which the model runs its samplers.
        expected: how it should sample.
        deviation: its deviation from the float64 sampler, over all grids.
        invariants: each invariant's name, and whether it held.
        problem: what is wrong, and its likely cause; empty if the sampler passed.
    """

    sampler: int
    expected: SamplerSpec
    deviation: WarpDeviation
    invariants: dict[str, bool]
    problem: str

    @property
    def passed(self) -> bool:
        """Whether no problem was found."""
        return not self.problem


def check_sampler(
    index: int,
    node: SamplerNode,
    expected: SamplerSpec,
    size: Sequence[int],
    output_size: Sequence[int],
    open_isolated: Callable[[tuple[int, ...], tuple[int, ...]], IsolatedSampler],
    seed: int = 0,
) -> SamplerCheck:
    """Check one sampler in isolation.

    Args:
        index: its index in the model.
        node: the sampler.
        expected: how it should sample, which may differ from its attributes.
        size: the spatial size of the image that it samples in the model.
        output_size: the spatial size of its output.
        open_isolated: opens the sampler for an image and a theta or grid of these shapes without batch.
        seed: for random images and grids.

    Raises:
        ModelError: the runtime cannot run the sampler in isolation.
    """
    generator = np.random.default_rng(seed)
    grids = _TestGrids(node, expected, tuple(output_size), open_isolated, generator)
    size = tuple(size)
    invariants = grids.invariants(size)
    trials = [grids.random(size, 6), grids.random(_wide(size), 4)]
    if expected.mode == "nearest":
        ties = (grids.ties(axis, len(size)) for axis in range(len(size)))
        trials += [trial for trial in ties if trial is not None]
    if isinstance(node.basis, Basis) and node.basis.kind == "projective":
        trials.append(grids.divided(size, 4))
    deviation = WarpDeviation(0.0, 0.0, 0, Flips())
    for trial in trials:
        deviation = deviation + _judge(trial, expected, node.dtype)
    problem = deviation.problem() or _basis_problem(node) or ""
    broken = [name for name, held in invariants.items() if not held]
    if problem or broken:
        cause = _cause(trials, expected, node) if deviation.problem() or broken else None
        problem = problem or f"{broken[0]} does not hold"
        problem = f"sampler {index} ({expected}): {problem}" + (f"; likely cause: {cause}" if cause else "")
    return SamplerCheck(index, expected, deviation, invariants, problem)


def _basis_problem(node: SamplerNode) -> str | None:
    """What is wrong with a file's basis in every runtime; None if it is right."""
    basis = node.basis
    if basis is None:
        return None
    if not all(np.isfinite(values).all() for values in basis.constants.values()):
        return "its basis contains NaN or infinity"
    if isinstance(basis, Basis) and basis.kind == "affine" and not basis.over_pixels:
        return "its kind is affine, but its basis is not x, y(, z), 1 at the pixel centers, as kernels assume"
    return None


def _wide(size: tuple[int, ...]) -> tuple[int, ...]:
    """The size of an image of at least 1,024 pixels along x, and of few along the other axes."""
    return (*(min(length, 6) for length in size[:-1]), max(WIDE, size[-1]))


@dataclass(frozen=True)
class _Trial(SamplerCall):
    """A call on a test grid.

    Attributes:
        given: its theta or grid.
    """

    given: Array


class _TestGrids:
    """Makes test grids for one sampler and runs it on them."""

    def __init__(
        self,
        node: SamplerNode,
        expected: SamplerSpec,
        output_size: tuple[int, ...],
        open_isolated: Callable[[tuple[int, ...], tuple[int, ...]], IsolatedSampler],
        generator: np.random.Generator,
    ) -> None:
        self._node, self._expected, self._output_size = node, expected, output_size
        self._open, self._generator = open_isolated, generator

    def random(self, size: tuple[int, ...], count: int) -> _Trial:
        """Run on rotations, scales and shifts that leave the image, one of them by far."""
        rank = len(size)
        mesh = canonical_basis(self._output_size)  # [D + 1, P]
        theta = np.zeros((count, rank, rank + 1))
        theta[:, :, :rank] = np.eye(rank) + self._generator.normal(0, 0.35, (count, rank, rank))
        theta[:, :, rank] = self._generator.normal(0, 0.3, (count, rank))
        theta[0, :, :rank] *= 12
        given = self._place(map_points(theta, mesh, self._output_size))
        if given is None:  # the family does not have all affine grids: use random thetas of its own
            given = self._random_thetas(count)
        return self._run(self._image(size, count), given)

    def invariants(self, size: tuple[int, ...]) -> dict[str, bool]:
        """Check the invariants for which the family has grids; returns each name and whether it held."""
        held: dict[str, bool] = {}
        for name, targets in _moves(size, self._output_size).items():
            # targets: [D, *out], the pixel (in the order of the axes) that each output pixel copies
            pixels = np.moveaxis(targets[::-1], 0, -1)[None].astype(np.float64)  # [1, *out, D], x first
            given = self._place(self._expected.normalized(pixels, size))
            if given is None:
                continue
            trial = self._run(self._image(size, 1), given)
            reached = self._expected.pixels(trial.grid, size)
            inside = np.ones(self._output_size, bool)
            for target, length in zip(targets, size, strict=True):
                inside &= (target >= 0) & (target < length)
            if not inside.any() or np.abs(reached - pixels)[0][inside].max() > 1e-2:
                continue
            index = tuple(np.where(inside, target, 0) for target in targets)
            copied = trial.image[0][(slice(None), *index)]
            # loose, up to a hundredth of a pixel's slope: float32's own error is judged on the random grids
            off = np.abs(trial.warped[0] - copied)[:, inside]
            held[name] = bool(off.max() <= 2e-2 * float(np.ptp(trial.image)))
        return held

    def ties(self, axis: int, rank: int) -> _Trial | None:
        """Run with all output points of a sample at the same tie along ``axis`` (0 is x), in exact coordinates.

        Returns None if the family has no such grid.
        """
        if self._node.basis is not None and not _is_exact(self._node.basis):
            return None
        pixels = np.full((_TIES - 1, rank), 2.0)
        pixels[:, axis] = np.arange(_TIES - 1) + 0.5
        # coordinates are multiples of 1/64: with -1 and 1 at the outermost pixel centers, this takes one pixel more
        more = int(self._expected.align_corners)
        size = tuple(_TIES + more if axis == rank - 1 - place else 8 + more for place in range(rank))
        points = self._expected.normalized(pixels, size).reshape(len(pixels), *[1] * rank, rank)
        given = self._place(np.broadcast_to(points, (len(pixels), *self._output_size, rank)))
        if given is None:
            return None
        given = np.round(given * 2.0**20) / 2.0**20  # removes the error of the least-squares fit in the last digits
        image = self._generator.standard_normal((1, 1, *size)).astype(np.float32)
        return self._run(np.repeat(image, len(pixels), 0), given)

    def divided(self, size: tuple[int, ...], count: int) -> _Trial:
        """Run on projective grids with denominators that vary, on both sides of their lower bound if they have one."""
        return self._run(self._image(size, count), self._random_thetas(count))

    def _random_thetas(self, count: int) -> Array:
        basis = self._node.basis
        assert basis is not None, "a plain grid can be placed anywhere"
        rank = len(basis.output_size)
        if not isinstance(basis, Basis) or basis.kind != "projective":
            return self._generator.normal(0, 0.6, (count, rank, basis.count)).astype(np.float32)
        theta = self._generator.normal(0, 0.6, (count, rank + 1, basis.count))
        rows = basis.rows.astype(np.float64)
        varying = theta[:, rank] @ rows  # [count, P]
        # Around the bound; else far enough from zero for float32's error to have a bound.
        middle, spread = (basis.w_min, 0.8) if basis.w_min is not None else (1.0, 0.3)
        scale = spread * max(1.0, abs(middle)) / np.maximum(np.abs(varying).max(axis=1), 1e-6)
        constant = np.linalg.lstsq(rows.T, np.full(rows.shape[1], middle), rcond=None)[0]
        theta[:, rank] = theta[:, rank] * scale[:, None] + constant
        return theta.astype(np.float32)

    def _image(self, size: tuple[int, ...], count: int) -> Array:
        return self._generator.random((count, _CHANNELS, *size), dtype=np.float32) * 2 - 0.5

    def _place(self, grid: Array) -> Array | None:
        """The theta that gives ``grid``, or ``grid`` itself for a plain sampler; None if no theta gives it."""
        if self._node.basis is None:
            return grid.astype(np.float16 if self._node.dtype == "float16" else np.float32).astype(np.float32)
        return theta_for(self._node.basis, grid)

    def _run(self, image: Array, given: Array) -> _Trial:
        if self._node.dtype == "float16":
            image = image.astype(np.float16).astype(np.float32)
        elif self._node.dtype == "bfloat16":
            image = bfloat16(image)
        warp = self._open(image.shape[1:], given.shape[1:])
        call = SamplerCall.of(self._node, image, given, warp(image, given))
        return _Trial(**vars(call), given=given)


def _is_exact(basis: AnyBasis) -> bool:
    """Whether float32 computes grids of multiples of 1/64 without rounding: a sum of several products does not."""
    return isinstance(basis, Basis) and basis.kind != "basis" and basis.over_pixels and not any(basis.offset)


def _other_divisions(basis: AnyBasis | None) -> dict[str, Basis]:
    """What a runtime computes that ignores a part of a projective grid's division, by the mistake."""
    if not isinstance(basis, Basis) or basis.kind != "projective":
        return {}
    found = {}
    if basis.w_min is not None:
        found["a denominator that is not clamped"] = replace(basis, w_min=None)
    if any(basis.offset):
        found["no offset after the division"] = replace(basis, offset=())
    if len(found) == 2:
        found["neither a clamp of the denominator nor an offset"] = replace(basis, w_min=None, offset=())
    return found


def _moves(size: tuple[int, ...], output_size: tuple[int, ...]) -> dict[str, Array]:
    """By name, the pixel that each output pixel copies [D, *out], in the order of the axes; some lie outside."""
    own = np.stack(np.meshgrid(*[np.arange(length) for length in output_size], indexing="ij"))
    shift = np.array([1, -2, 3][: len(size)]).reshape(-1, *[1] * len(size))
    moves = {"identity": own, "a shift by whole pixels": own + shift}
    names = ("z", "y", "x")[-len(size) :]
    for axis, (name, length) in enumerate(zip(names, size, strict=True)):
        flipped = own.copy()
        flipped[axis] = length - 1 - own[axis]
        moves[f"a flip along {name}"] = flipped
    transposed = own.copy()
    transposed[-1], transposed[-2] = own[-2], own[-1]
    moves["a transposition of x and y"] = transposed
    return moves


def _judge(trial: SamplerCall, sampler: SamplerSpec, dtype: str) -> WarpDeviation:
    return compare_warp(trial.warped, trial.image, trial.grid, trial.bound, sampler, dtype)


def _cause(trials: Sequence[_Trial], expected: SamplerSpec, node: SamplerNode) -> str | None:
    """The mistake that explains every trial; None if none is known."""
    rank = trials[0].grid.shape[-1]
    grids: dict[str, Callable[[Array], Array]] = {
        "swapped x and y" if rank == 2 else "swapped x, y and z": lambda grid: grid[..., ::-1],
        "a sampling grid in float16": lambda grid: grid.astype(np.float16).astype(np.float64),
        "a sampling grid in bfloat16": lambda grid: bfloat16(grid).astype(np.float64),
    }
    if rank == 3:
        grids["swapped x and y"] = lambda grid: grid[..., [1, 0, 2]]

    def explained(
        sampler: SamplerSpec,
        move: Callable[[Array], Array],
        slack: float = 1.0,
        calls: Sequence[SamplerCall] = trials,
    ) -> bool:
        for trial in calls:
            bound = trial.bound * slack
            moved = move(trial.grid)
            found = compare_warp(trial.warped, trial.image, moved, bound, sampler, node.dtype)
            if found.wrong > 0.002 * found.flips.points or found.flips.problem():
                return False
        return True

    with np.errstate(over="ignore"):
        for name, sampler in mistakes(expected, rank).items():
            if explained(sampler, lambda grid: grid):
                return name
        for name, move in grids.items():
            if explained(expected, move, slack=4.0):
                return name
        for name, basis in _other_divisions(node.basis).items():
            other = replace(node, basis=basis)
            calls = [SamplerCall.of(other, trial.image, trial.given, trial.warped) for trial in trials]
            if explained(expected, lambda grid: grid, calls=calls):
                return name
        for (name, sampler), (second, move) in product(mistakes(expected, rank).items(), list(grids.items())[:1]):
            if explained(sampler, move):
                return f"{name} and {second}"
    # coordinates that were rounded before the grid: other numbers, but an error of the same size
    ratio = [_relative_error(trial, expected, node.dtype) for trial in trials[:2]]
    return "coordinates in half precision or TF32" if all(share < 0.02 for share in ratio) else None


def _relative_error(trial: SamplerCall, sampler: SamplerSpec, dtype: str) -> float:
    """The share of points that are wrong even if coordinates may have half precision's error."""
    size = np.array(trial.image.shape[2:][::-1], np.float64)
    loose = trial.bound + 2.0**-8 * (np.abs(trial.grid) + 1) * size / 2
    found = compare_warp(trial.warped, trial.image, trial.grid, loose, sampler, dtype)
    return found.wrong / max(found.flips.points, 1)
