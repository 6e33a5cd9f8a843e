"""Compares a rewritten ONNX file with the original, in onnxruntime on random inputs.

Both files do the same arithmetic in different order, so their grids differ by rounding. The effect on an output depends
on the model, so it is measured: the original runs again with its grids perturbed by a few units in the last place. An
output may differ by the tolerance on its scale (see :mod:`stn_infer.deviation`), or by four times the measured effect
of rounding, but never by more than a hundredth of its magnitude. For nearest sampling, rounding flips single values, so
the share of flipped values is limited in the same way.

A half-precision model is compared in float32, with both files widened: the rewritten file computes its grid in float32
and therefore differs. The difference without widening is reported too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from operator import or_
from time import process_time
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from stn_infer.arrays import Array
from stn_infer.deviation import MARGIN, Deviation, Level, errors, is_float, largest_error
from stn_infer.errors import ModelError, VerificationError
from stn_infer.fusion.op import OP_TYPES
from stn_infer.fusion.samplers import spec_of
from stn_infer.proto.edit import NewNodes, copy_of, replace_all
from stn_infer.proto.inputs import InputPlan, batch_symbols, random_feeds, size_symbols
from stn_infer.proto.names import Names
from stn_infer.proto.retype import has_halves, widen
from stn_infer.proto.session import Session, Stored, open_session
from stn_infer.proto.traversal import STANDARD_DOMAINS, every_node, opset_of, subgraphs

TOLERANCE = 1e-5
_CAP = 1e-2
_ULPS = 8.0
_PERTURBATIONS = (7919.3, 3571.7)
_FLIP_SLACK, _FLIP_CAP = 2e-3, 1e-2
_HALF_TOLERANCE = 2e-2
_EPSILON = {TensorProto.FLOAT: 2.0**-23, TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
# Batch sizes to try, usually two per run, and values for every other dynamic size; most likely first.
_BATCHES = ((1, 3), (2, 4), (8, 16), (1,), (2,))
_SIZES = (32, 64, 24, 128, 224, 28, 256, 100, 8)


@dataclass(frozen=True)
class Equivalence:
    """The result of a successful comparison of two files.

    Attributes:
        outputs: one entry per output, the worst over all inputs.
        runs: the sizes of the runs, e.g. ``batch 1 and 3, size 32``.
        widened: whether float16 and bfloat16 were compared as float32.
        rounding: if widened, the largest difference between the files without widening, over the output's scale; None
            if onnxruntime can't run the original without widening.
    """

    outputs: tuple[Deviation, ...]
    runs: str
    widened: bool = False
    rounding: float | None = None

    @property
    def worst(self) -> float:
        """The largest error of an output, without flipped values."""
        return max((output.scaled for output in self.outputs), default=0.0)


def compare(
    original: Stored, rewritten: Stored, plans: Sequence[InputPlan], *, tolerance: float = TOLERANCE
) -> Equivalence:
    """Runs both files on the same random inputs, at two batch sizes if the batch is dynamic.

    Raises:
        VerificationError: an output differs by more than the limit.
        ModelError: onnxruntime cannot run the original at any plausible size.
    """
    if not has_halves(original.model):
        return _compare(original, rewritten, plans, tolerance, False)
    rounding: float | None = None
    try:
        loose = _compare(original, rewritten, plans, _HALF_TOLERANCE, True)
        rounding = loose.worst
    except ModelError:
        pass  # bfloat16 has few kernels on the CPU; the widened files are still compared
    pair = [Stored(widen(stored.model), stored.folder) for stored in (original, rewritten)]
    wide_plans = [
        InputPlan(plan.name, TensorProto.FLOAT if plan.elem_type in _EPSILON else plan.elem_type, plan.dims)
        for plan in plans
    ]
    found = _compare(pair[0], pair[1], wide_plans, tolerance, False)
    return Equivalence(found.outputs, found.runs, True, rounding)


def _compare(
    original: Stored, rewritten: Stored, plans: Sequence[InputPlan], tolerance: float, half: bool
) -> Equivalence:
    feeds, wanted, runs = run_at_plausible_sizes(original, plans)
    perturbed = [
        _run_all(Stored(perturb_grids(original.model, factor), original.folder), feeds, optimized=False)
        for factor in _PERTURBATIONS
    ]
    try:
        found = _run_all(rewritten, feeds, optimized=False)
        optimized = _run_all(rewritten, feeds)
    except ModelError as error:
        raise VerificationError(f"the original model runs, but the rewritten model does not: {error}") from error
    judge = _Judge(tolerance=tolerance, flips=samples_nearest(original.model), half=half)
    # onnxruntime's graph optimizations round too, and users run with them.
    loose = replace(judge, tolerance=10 * tolerance)
    names = [value.name for value in original.model.graph.output]
    outputs = judge.deviations(names, wanted, found, perturbed)
    try:
        loose.deviations(names, wanted, optimized, perturbed)
    except VerificationError:  # the optimizations may change the original by as much
        loose.deviations(names, wanted, optimized, [*perturbed, _run_all(original, feeds)])
    return Equivalence(outputs, runs)


def run_at_plausible_sizes(
    original: Stored, plans: Sequence[InputPlan], *, session: Session | None = None, seconds: float = inf
) -> tuple[list[dict[str, Array]], list[list[Array]], str]:
    """Returns the inputs, the original's outputs, and a description of the sizes, for the first sizes that run.

    Args:
        original: the model.
        plans: of its inputs.
        session: of the model, if it is open already.
        seconds: of this process's CPU time, after which no other sizes are tried.

    Raises:
        ModelError: the original runs at none of the sizes.
    """
    session = session or open_session(original, optimized=False)
    batches: Sequence[tuple[int, ...]] = _BATCHES if batch_symbols(plans) else ((1,),)
    sizes = _SIZES if size_symbols(plans) else (1,)
    failure: ModelError | None = None
    for size in sizes:
        for batch in batches:
            generator = np.random.default_rng(7)
            feeds = [random_feeds(plans, number, size, generator) for number in batch]
            if not batch_symbols(plans):
                feeds.append(random_feeds(plans, 1, size, generator))
            try:
                outputs = [session.run(feed) for feed in feeds]
            except ModelError as error:
                failure = failure or error
                if process_time() > seconds:
                    raise failure from None
                continue
            parts = [f"batch {' and '.join(map(str, batch))}"] if batch_symbols(plans) else ["2 inputs"]
            parts += [f"size {size}"] if size_symbols(plans) else []
            return feeds, outputs, ", ".join(parts)
    hint = "; give the dynamic sizes with --input-shape NAME=..." if size_symbols(plans) else ""
    raise ModelError(f"{failure}{hint}")


def _run_all(stored: Stored, feeds: Iterable[Mapping[str, Array]], *, optimized: bool = True) -> list[list[Array]]:
    session = open_session(stored, optimized=optimized)
    return [session.run(feed) for feed in feeds]


@dataclass(frozen=True)
class _Judge:
    """Limits on an output's difference.

    Attributes:
        tolerance: limit on the error over the output's scale.
        flips: whether single values may flip because of nearest sampling.
        half: whether the effect of half-precision grids may exceed the cap.
    """

    tolerance: float
    flips: bool
    half: bool

    def deviations(
        self,
        names: Sequence[str],
        wanted: Sequence[Sequence[Any]],
        found: Sequence[Sequence[Any]],
        perturbed: Sequence[Sequence[Sequence[Any]]],
    ) -> tuple[Deviation, ...]:
        """Returns the deviation of every output; each run holds one array per output. See :meth:`deviation`."""
        runs = (wanted, found, *perturbed)
        sorted_by_output = ([[row[index] for row in run] for run in runs] for index in range(len(names)))
        return tuple(
            self.deviation(name, want, got, alike)
            for name, (want, got, *alike) in zip(names, sorted_by_output, strict=True)
        )

    def deviation(
        self, name: str, want: Sequence[Any], got: Sequence[Any], perturbed: Sequence[Sequence[Any]]
    ) -> Deviation:
        """Compares one output of all runs with the original's; ``perturbed`` shows the effect of rounding.

        Raises:
            VerificationError: the deviation exceeds the limit.
        """
        for wanted, found in zip(want, got, strict=True):
            if not isinstance(wanted, np.ndarray):
                raise VerificationError(f"output {name!r} is not a tensor, so it cannot be compared")
            if not isinstance(found, np.ndarray) or found.dtype != wanted.dtype or found.shape != wanted.shape:
                other = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
                raise VerificationError(
                    f"output {name!r} is {wanted.dtype} {list(wanted.shape)} in the original, but {other} in the "
                    "rewritten model"
                )
        if not is_float(want[0]):
            return self._flipping(name, want, got, perturbed, 0.0, Level(1.0))
        if self.flips:
            level = reduce(or_, map(Level.of, want))
            return self._flipping(name, want, got, perturbed, self.tolerance * level.scale(), level)
        level = reduce(or_, (Level.of(wanted, alike) for wanted, *alike in zip(want, *perturbed, strict=True)))
        return self._smooth(name, max(map(largest_error, want, got)), level)

    def _flipping(
        self,
        name: str,
        want: Sequence[Array],
        got: Sequence[Array],
        perturbed: Sequence[Sequence[Array]],
        allowed: float,
        level: Level,
    ) -> Deviation:
        """Compares an output that may have about as many values off by more than ``allowed`` as rounding flips."""
        kept, flips = 0.0, 0.0
        for wanted, found, *alike in zip(want, got, *perturbed, strict=True):
            error = errors(wanted, found)
            beyond = _share(error > allowed)
            expected = max(_share(errors(wanted, other) > allowed) for other in alike)
            most = min(max(MARGIN * expected, _FLIP_SLACK if is_float(wanted) else 0.0), _FLIP_CAP)
            if beyond > most:
                values = "values" if is_float(wanted) else f"{wanted.dtype} values"
                raise VerificationError(
                    f"output {name!r}: {beyond:.2%} of its {values} differ, but rounding flips only {expected:.2%}"
                )
            kept = max(kept, float(error.max(initial=0.0, where=error <= allowed)))
            flips = max(flips, beyond)
        return Deviation(name, kept, level.scale(), self.tolerance, flips)

    def _smooth(self, name: str, worst: float, level: Level) -> Deviation:
        scale, moved = level.scale(_CAP), MARGIN * level.noise
        allowed = max(self.tolerance * scale, moved if self.half else min(moved, _CAP * level.magnitude))
        found = Deviation(name, worst, scale, allowed / scale)
        if not worst <= allowed:
            raise VerificationError(
                f"output {name!r} is off by {found.scaled:.2e} of its scale, expected at most {found.limit:.0e} "
                f"(rounding of the grids alone moves it by {level.noise / scale:.1e})"
            )
        return found


def _share(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0


def samples_nearest(model: onnx.ModelProto) -> bool:
    """Whether a GridSample or spatial transformer has mode ``nearest``, in subgraphs and functions too."""
    return any(
        spec_of(node).mode == "nearest" for node in every_node(model) if node.op_type in ("GridSample", *OP_TYPES)
    )


def perturb_grids(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """Returns a copy in which each GridSample's grid is perturbed by up to a few units in the last place.

    The noise is a scrambled multiple of the grid, computed by operators that every opset has; ``factor`` varies it.
    """
    copy = copy_of(model)
    half = has_halves(model)
    # CastLike is available from opset 15 on; earlier, the only GridSample is onnxruntime's contrib op, in float32.
    back = "CastLike" if opset_of(model) >= 15 else "Identity"
    for holder in (copy.graph, *copy.functions):
        _perturb(holder.node, Names(holder), half, back, factor)
    return copy


def _perturb(nodes: Any, names: Names, half: bool, back: str, factor: float) -> None:
    """Replaces grids in place by grid + u (1 + |grid|) ε with u in [-1, 1], in float32; keeps the grid's type."""
    epsilon = _EPSILON[TensorProto.FLOAT16 if half else TensorProto.FLOAT] * (1.0 if half else _ULPS)
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        for _, graph in subgraphs(node):
            _perturb(graph.node, names, half, back, factor)
        if node.op_type == "GridSample" and node.domain in (*STANDARD_DOMAINS, "com.microsoft"):
            grid = node.input[1]
            new = NewNodes(names, f"stn_perturbed_{node.output[0]}")
            wide = new.node("Cast", [grid], "wide", to=TensorProto.FLOAT)
            product = new.node("Mul", [wide, new.scalar("factor", factor)], "product")
            started = new.node("Add", [product, new.scalar("start", factor % 1.0)], "started")
            scrambled = new.node("Mod", [started, new.scalar("two", 2.0)], "scrambled", fmod=1)
            u = new.node("Mul", [scrambled, new.scalar("epsilon", epsilon / 2)], "u")
            relative = new.node("Mul", [new.node("Abs", [wide], "abs"), u], "relative")
            moved = new.node("Add", [wide, new.node("Add", [relative, u], "noise")], "sum")
            node.input[1] = new.node(back, [moved, grid][: 1 + (back == "CastLike")], "grid")
            kept += new.nodes
        kept.append(node)
    replace_all(nodes, kept)
