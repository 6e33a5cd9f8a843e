"""Compare a rewritten ONNX file with the original, in onnxruntime on random inputs.

The two do the same arithmetic in another order, so that their grids differ by rounding; how much an output moves for
that depends on the model. It is measured: the original runs again with its own grids perturbed by a few units in the
last place. An output may differ by the tolerance, or by four times what rounding alone does to it, but never by more
than a hundredth of its scale. Where a sampler takes the nearest pixel, rounding flips single values, and so their
share is judged in the same way.

A half-precision model is compared in float32, both files widened, since the rewritten one keeps its grid in float32
and is meant to differ; what the two make of it as they are is told too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from stn_infer.arrays import Array
from stn_infer.errors import ModelError, VerificationError
from stn_infer.proto.edit import NewNodes, copy_of, replace_all
from stn_infer.proto.inputs import InputPlan, batch_symbols, random_feeds, size_symbols
from stn_infer.proto.names import Names
from stn_infer.proto.retype import has_halves, widen
from stn_infer.proto.session import Stored, open_session, reason
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, every_node, opset_of, subgraphs

Errors = NDArray[np.float64]

TOLERANCE = 1e-5
_CAP = 1e-2
_NOISE_FACTOR = 4.0
_ULPS = 8.0
_PERTURBATIONS = (7919.3, 3571.7)
_FLIP_SLACK, _FLIP_CAP = 2e-3, 1e-2
_HALF_TOLERANCE = 2e-2
_EPSILON = {TensorProto.FLOAT: 2.0**-23, TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
# Batch sizes to try, two at a time, and values for every other open size, likeliest first.
_BATCHES = ((1, 3), (2, 4), (8, 16), (1,), (2,))
_SIZES = (32, 64, 24, 128, 224, 28, 256, 100, 8)


@dataclass(frozen=True)
class OutputDifference:
    """One output, the worst over all inputs.

    Attributes:
        name: the output's name.
        error: the largest difference over the output's scale (its largest magnitude).
        bound: what was allowed.
        flips: the share of values beyond the tolerance, where nearest sampling or a whole-number output allows some.
    """

    name: str
    error: float
    bound: float
    flips: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """That two files compute the same, as far as was tried.

    Attributes:
        outputs: one entry an output.
        runs: what was run, e.g. ``batch 1 and 3, size 32``.
        widened: whether float16 and bfloat16 were compared as float32.
        rounding: where widened: the largest difference between the two files as they are, over the output's scale;
            None where onnxruntime can't run the original as it is.
    """

    outputs: tuple[OutputDifference, ...]
    runs: str
    widened: bool = False
    rounding: float | None = None

    @property
    def worst(self) -> float:
        """The largest error of an output, flips aside."""
        return max((output.error for output in self.outputs), default=0.0)


def compare(
    original: Stored, rewritten: Stored, plans: Sequence[InputPlan], *, tolerance: float = TOLERANCE
) -> Comparison:
    """Run both on the same random inputs, at two batch sizes where the batch is open.

    Raises:
        VerificationError: an output differs by more than it may.
        ModelError: onnxruntime cannot run the original at any plausible size.
    """
    if not has_halves(original.model):
        return _compare(original, rewritten, plans, tolerance, False)
    as_they_are: float | None = None
    try:
        loose = _compare(original, rewritten, plans, _HALF_TOLERANCE, True)
        as_they_are = loose.worst
    except ModelError:
        pass  # bfloat16 has few kernels on the CPU; widened it is compared all the same
    pair = [Stored(widen(stored.model), stored.folder) for stored in (original, rewritten)]
    wide_plans = [
        InputPlan(plan.name, TensorProto.FLOAT if plan.elem_type in _EPSILON else plan.elem_type, plan.dims)
        for plan in plans
    ]
    found = _compare(pair[0], pair[1], wide_plans, tolerance, False)
    return Comparison(found.outputs, found.runs, True, as_they_are)


def _compare(
    original: Stored, rewritten: Stored, plans: Sequence[InputPlan], tolerance: float, half: bool
) -> Comparison:
    feeds, wanted, runs = run_at_plausible_sizes(original, plans)
    perturbed = [
        _run_all(Stored(perturb_grids(original.model, factor), original.folder), feeds, optimized=False)
        for factor in _PERTURBATIONS
    ]
    try:
        found = _run_all(rewritten, feeds, optimized=False)
        optimized = _run_all(rewritten, feeds)
    except ModelError as error:
        raise VerificationError(f"the rewritten model does not run where the original does: {error}") from error
    judge = _Judge(
        tolerance=tolerance, flips=any(mode == "nearest" for mode in sampling_modes(original.model)), half=half
    )
    # onnxruntime's own optimizations round too; they are part of what a user runs
    loose = replace(judge, tolerance=10 * tolerance)
    names = [value.name for value in original.model.graph.output]
    outputs = []
    for index, name in enumerate(names):
        parts = []
        for row, want in enumerate(wanted):
            noise = [run[row][index] for run in perturbed]
            parts.append(judge.difference(name, want[index], found[row][index], noise))
            loose.difference(name, want[index], optimized[row][index], noise)
        outputs.append(max(parts, key=lambda part: part.error))
    return Comparison(tuple(outputs), runs)


def run_at_plausible_sizes(
    original: Stored, plans: Sequence[InputPlan]
) -> tuple[list[dict[str, Array]], list[list[Array]], str]:
    """(inputs, the original's outputs, what was run), at the first sizes at which it runs.

    Raises:
        ModelError: at none.
    """
    session = open_session(original, optimized=False)
    batches: Sequence[tuple[int, ...]] = _BATCHES if batch_symbols(plans) else ((1,),)
    sizes = _SIZES if size_symbols(plans) else (1,)
    failure: Exception | None = None
    for size in sizes:
        for batch in batches:
            generator = np.random.default_rng(7)
            feeds = [random_feeds(plans, number, size, generator) for number in batch]
            if not batch_symbols(plans):
                feeds.append(random_feeds(plans, 1, size, generator))
            try:
                outputs = [session.run(None, feed) for feed in feeds]
            except Exception as error:
                failure = failure or error
                continue
            said = [f"batch {' and '.join(map(str, batch))}"] if batch_symbols(plans) else ["2 inputs"]
            said += [f"size {size}"] if size_symbols(plans) else []
            return feeds, outputs, ", ".join(said)
    hint = "; give the open sizes with --input-shape NAME=..." if size_symbols(plans) else ""
    raise ModelError(f"onnxruntime cannot run it on random inputs: {reason(failure)}{hint}")


def _run_all(stored: Stored, feeds: Iterable[Mapping[str, Array]], *, optimized: bool = True) -> list[list[Array]]:
    session = open_session(stored, optimized=optimized)
    try:
        return [session.run(None, dict(feed)) for feed in feeds]
    except Exception as error:
        raise ModelError(reason(error)) from error


@dataclass(frozen=True)
class _Judge:
    """How much an output may differ.

    Attributes:
        tolerance: on the error over the output's scale.
        flips: whether single values may flip, since a sampler takes the nearest pixel.
        half: whether what half-precision grids do to an output may go beyond the cap.
    """

    tolerance: float
    flips: bool
    half: bool

    def difference(self, name: str, want: Any, got: Any, perturbed: Sequence[Any]) -> OutputDifference:
        """``got`` against ``want``, with ``perturbed`` for what rounding does.

        Raises:
            VerificationError: it is more than it may be.
        """
        if not isinstance(want, np.ndarray):
            raise VerificationError(f"output {name!r} is no tensor, so that it cannot be compared")
        if not isinstance(got, np.ndarray) or got.dtype != want.dtype or got.shape != want.shape:
            other = f"{got.dtype} {list(got.shape)}" if isinstance(got, np.ndarray) else type(got).__name__
            raise VerificationError(
                f"output {name!r} is {want.dtype} {list(want.shape)} in the original, and {other} in the "
                "rewritten model"
            )
        if want.size == 0:
            return OutputDifference(name, 0.0, self.tolerance)
        if want.dtype.kind not in "fV":
            return self._exact(name, want, got, perturbed)
        reference = want.astype(np.float64)
        finite = reference[np.isfinite(reference)]
        scale = max(float(np.max(np.abs(finite), initial=0.0)), 1e-3)
        error = _errors(reference, got, scale)
        noise = [_errors(reference, other, scale) for other in perturbed]
        return self._flipping(name, error, noise) if self.flips else self._smooth(name, error, noise)

    def _exact(self, name: str, want: Array, got: Array, perturbed: Sequence[Array]) -> OutputDifference:
        share = float(np.mean(got != want))
        allowed = max(float(np.mean(other != want)) for other in perturbed)
        if share > min(_NOISE_FACTOR * allowed, _FLIP_CAP):
            raise VerificationError(f"output {name!r}: {share:.2%} of its {want.dtype} values differ")
        return OutputDifference(name, 0.0, self.tolerance, share)

    def _flipping(self, name: str, error: Errors, noise: Sequence[Errors]) -> OutputDifference:
        beyond = float(np.mean(~(error <= self.tolerance)))
        expected = max(float(np.mean(~(other <= self.tolerance))) for other in noise)
        if beyond > min(max(_NOISE_FACTOR * expected, _FLIP_SLACK), _FLIP_CAP):
            raise VerificationError(
                f"output {name!r}: {beyond:.2%} of its values differ, where rounding flips {expected:.2%} of them"
            )
        kept = error[error <= self.tolerance]
        return OutputDifference(name, float(np.max(kept, initial=0.0)), self.tolerance, beyond)

    def _smooth(self, name: str, error: Errors, noise: Sequence[Errors]) -> OutputDifference:
        worst = float(np.max(error))
        moved = max(float(np.max(other)) for other in noise)
        allowed = _NOISE_FACTOR * moved
        bound = max(self.tolerance, allowed if self.half else min(allowed, _CAP))
        if not worst <= bound:
            raise VerificationError(
                f"output {name!r} is off by {worst:.2e} of its scale, expected at most {bound:.0e} "
                f"(rounding of the grids alone moves it by {moved:.1e})"
            )
        return OutputDifference(name, worst, bound)


def _errors(want: Errors, got: Array, scale: float) -> Errors:
    """|got - want| / scale, 0 where both are the same not-a-number or infinity, inf where only one is."""
    other = got.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(other - want) / scale
    same = (np.isnan(want) & np.isnan(other)) | (want == other)
    return np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))


def sampling_modes(model: onnx.ModelProto) -> set[str]:
    """The modes of every GridSample and spatial transformer, in subgraphs and functions too."""
    return {
        str(attributes_of(node).get("mode", "linear"))
        for node in every_node(model)
        if node.op_type in ("GridSample", "SpatialTransformer", "ProjectiveTransformer")
    }


def perturb_grids(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy in which each GridSample's grid is off by up to a few units in the last place.

    The noise is a scrambled multiple of the grid itself, by operators that every opset has; ``factor`` varies it.
    """
    copy = copy_of(model)
    half = has_halves(model)
    # CastLike came with opset 15; before there is no GridSample but onnxruntime's own, in float32
    back = "CastLike" if opset_of(model) >= 15 else "Identity"
    for holder in (copy.graph, *copy.functions):
        _perturb(holder.node, Names(holder), half, back, factor)
    return copy


def _perturb(nodes: Any, names: Names, half: bool, back: str, factor: float) -> None:
    """grid -> grid + u (1 + |grid|) ε with u in [-1, 1], in float32, in place; the type of the grid is kept."""
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
