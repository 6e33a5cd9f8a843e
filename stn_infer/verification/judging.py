"""Run a backend and the reference on the same inputs, and compare them stage by stage.

Four stages determine an output. Each has its own limit, so that an error in one cannot hide behind another's tolerance:

1. *theta and the grid*, in pixels of the input, against the reference's;
2. *the image* that each sampler reads, against the reference's;
3. *each sampler*, given its own image and its own grid, against the float64 sampler (see ``comparison``);
4. *the outputs*. Where they are out of tolerance, the reference runs again with the backend's warped images (those that
   passed stage 3) in place of its own. A coordinate that is right to a thousandth of a pixel, or a nearest sample that
   flipped at a tie, may change the downstream network's results by any amount. That is not an error of the downstream
   network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.deviation import Deviation, bfloat16, compare, is_float, largest_error, worst
from stn_infer.errors import ModelError
from stn_infer.fusion.basis import canonical_basis
from stn_infer.printing import counted
from stn_infer.reference.calls import SamplerCall, TracedRun
from stn_infer.reference.comparison import compare_warp, grid_distance
from stn_infer.reference.model import ReferenceModel
from stn_infer.sampling import sample
from stn_infer.verification.report import BackendReport, GridDeviation, Status, failures
from stn_infer.verification.runners import IsolatedSampler, Runner
from stn_infer.verification.sampler_checks import SamplerCheck, check_sampler
from stn_infer.verification.tolerance import Expectation, Float32Levels, float32_levels


@dataclass(frozen=True)
class Limits:
    """The largest deviations that pass.

    Attributes:
        output: for each output's error over its scale.
        grid_px: for a sampling point's distance, in pixels, for images up to 1,024 pixels wide.
        downstream: for each output's error over its scale, where the reference is given the backend's own warped
            images; None: this is not checked. It can be tighter than ``output``, which may be wide only because the
            last digits of a coordinate move the warped image.
        image: for the error of the image that a sampler reads, over its scale; None: as ``output``.
        levels: the levels that give the scales of outputs and images; None: the reference's magnitudes, without noise.
    """

    output: float
    grid_px: float
    downstream: float | None = None
    image: float | None = None
    levels: Float32Levels | None = None

    @property
    def of_image(self) -> float:
        """The limit for the image that a sampler reads."""
        return self.output if self.image is None else self.image


@dataclass(frozen=True)
class Judgment:
    """A backend's report, and notes on how the comparison was made."""

    report: BackendReport
    notes: tuple[str, ...]


def judge(
    runner: Runner, reference: ReferenceModel, expectations: Sequence[Expectation], limits: Limits, *, seed: int = 0
) -> Judgment:
    """Run a backend on all batches, and each of its samplers in isolation.

    Raises:
        ModelError: the backend fails, or its outputs differ from the reference's in number or shape.
    """
    levels = limits.levels or float32_levels(reference, expectations, None)
    scales = [level.scale() for level in levels.outputs]
    image_scales = [level.scale() for level in levels.images]
    outputs: list[Deviation] = []
    downstream: list[Deviation] = []
    grids: dict[int, GridDeviation] = {}
    notes: dict[str, None] = {}
    last: tuple[TracedRun, list[SamplerCall] | None] | None = None
    for expectation in expectations:
        run = runner.run(expectation.batch.inputs)
        if len(run.outputs) < len(expectation.outputs):
            raise ModelError(
                f"the model has {counted(len(run.outputs), 'output')}, its source {len(expectation.outputs)}"
            )
        paired = _paired(run.calls, expectation.calls)
        if not paired and (run.calls or expectation.calls):
            notes["the samplers cannot be paired with the reference's: only the outputs were compared"] = None
        found, after, deviations = _compare(runner, run, reference, expectation, paired, limits, scales, image_scales)
        for deviation in deviations:
            known = grids.get(deviation.sampler)
            grids[deviation.sampler] = deviation if known is None else known.worse(deviation)
        outputs, downstream = [*outputs, *found], [*downstream, *after]
        last = run, expectation.calls if paired else None
    checks = _check_samplers(runner, *last, seed) if last is not None else ()
    worst_outputs, worst_grids = worst(outputs), tuple(grids.values())
    found_failures = failures(worst_outputs, worst_grids, checks, limits.output, limits.grid_px, limits.of_image)
    found_failures += _without_reference(expectations) + _downstream_failures(worst(downstream), limits.downstream)
    status: Status = "failed" if found_failures else "passed"
    report = BackendReport(runner.name, status, found_failures, runner.describe(), worst_outputs, worst_grids, checks)
    return Judgment(report, tuple(notes))


def _paired(calls: Sequence[SamplerCall], references: Sequence[SamplerCall]) -> bool:
    return len(calls) == len(references) and all(
        call.grid.shape == wanted.grid.shape and call.image.shape == wanted.image.shape
        for call, wanted in zip(calls, references, strict=True)
    )


def _compare(
    runner: Runner,
    run: TracedRun,
    reference: ReferenceModel,
    expectation: Expectation,
    paired: bool,
    limits: Limits,
    scales: Sequence[float],
    image_scales: Sequence[float],
) -> tuple[list[Deviation], list[Deviation], list[GridDeviation]]:
    """Compare one batch.

    Returns:
        The deviations of the outputs; those of the outputs against the reference given the backend's warped images, if
        ``limits.downstream`` is set; and those of the samplers, if they can be paired.
    """

    def all_outputs(expected: Sequence[Array]) -> list[Deviation]:
        return [
            compare(name, wanted, value, scale)
            for (name, value), wanted, scale in zip(run.outputs.items(), expected, scales, strict=False)
        ]

    outputs = all_outputs(expectation.outputs)
    if not paired:
        return outputs, [], []
    grids = _grids(run, expectation.calls, image_scales)
    # a sampler that passes in isolation may still move what comes after it, including the next sampler's image
    off = not all(output.scaled <= limits.output for output in outputs) or any(
        grid.flips or not grid.image <= limits.of_image for grid in grids
    )
    warps = [call.warped if grid.warp.problem() is None else None for call, grid in zip(run.calls, grids, strict=True)]
    whole = limits.downstream is not None and all(warp is not None for warp in warps)
    if not (off or whole) or not any(warp is not None for warp in warps):
        return outputs, [], grids
    again, references = reference.run(expectation.batch.inputs, warps)
    given = all_outputs(again)
    if off:
        outputs = [
            min(first, second, key=lambda item: item.scaled) for first, second in zip(outputs, given, strict=True)
        ]
        grids = [
            replace(min(first, second, key=lambda item: item.max_px), image=min(first.image, second.image))
            for first, second in zip(grids, _grids(run, references, image_scales), strict=True)
        ]
    return outputs, given if whole else [], grids


def _downstream_failures(outputs: Iterable[Deviation], limit: float | None) -> tuple[str, ...]:
    return tuple(
        f"output {output.name!r} is off by {output.max_error:.2e} ({output.scaled:.2e} of its scale) downstream of the "
        f"samplers, given the same warped images; expected at most {limit:.0e}"
        for output in outputs
        if limit is not None and not output.scaled <= limit
    )


def _without_reference(expectations: Sequence[Expectation]) -> tuple[str, ...]:
    """A failure for each output without a finite number in the reference, because it cannot be compared."""
    found = []
    for index, values in enumerate(zip(*(expectation.outputs for expectation in expectations), strict=False)):
        floats = [value for value in values if is_float(value) and value.size]
        if floats and not any(bool(np.isfinite(value).any()) for value in floats):
            found.append(f"output {index} has no finite number in the reference either: it cannot be compared")
    return tuple(found)


def _grids(run: TracedRun, references: Sequence[SamplerCall], image_scales: Sequence[float]) -> list[GridDeviation]:
    found = []
    for index, (call, clamped, scale) in enumerate(zip(run.calls, references, image_scales, strict=True)):
        wanted = _border_for_clamp(call, clamped)
        spec, size = wanted.spec, wanted.size
        # The border is read beyond [-1, 1] too, where a clamped reference has no points.
        reached = np.clip(call.grid, -1, 1) if _is_clamped(wanted) else call.grid
        distance, corner = grid_distance(spec, wanted.grid, reached, size)
        warp = compare_warp(call.warped, call.image, call.grid, call.bound, spec, call.node.dtype)
        hint = _grid_hint(wanted, reached, distance)
        flips = 0
        if spec.mode == "nearest" and call.warped.size:
            elsewhere = np.nan_to_num(call.warped) != np.nan_to_num(sample(spec, call.image, wanted.grid))
            flips = int(elsewhere.any(axis=1).sum())
        width = max(size, default=1)
        image = largest_error(wanted.image, call.image) / scale
        found.append(GridDeviation(index, spec.mode, distance, corner, width, warp, hint, flips, image))
    return found


def _is_clamped(call: SamplerCall) -> bool:
    """Whether a sampler reads the border beyond [-1, 1], but has no points there."""
    within = bool(np.abs(call.grid).max(initial=0.0) <= 1 + 1e-9)
    return within and call.spec.padding_mode == "border" and call.spec.mode != "bicubic"


def _border_for_clamp(call: SamplerCall, reference: SamplerCall) -> SamplerCall:
    """The reference with padding mode border, if its clamp to [-1, 1] is the same, and the file has border instead."""
    spec = replace(reference.spec, padding_mode="border")
    border = replace(reference, node=replace(reference.node, spec=spec))
    exact = spec.align_corners or reference.spec.padding_mode == "reflection"
    return border if exact and call.spec == spec and _is_clamped(border) else reference


def _grid_hint(wanted: SamplerCall, actual: Array, distance: float) -> str:
    """The likely cause of a grid that is off by ``distance`` pixels; empty if none is known."""

    def explains(grid: Array) -> bool:
        return grid_distance(wanted.spec, grid, actual, wanted.size)[0] <= 0.02 * distance

    if distance <= 1e-6 or not np.isfinite(distance) or not actual.size:
        return ""
    if explains(wanted.grid[..., ::-1]):
        return "swapped x and y"
    with np.errstate(over="ignore"):
        if np.array_equal(actual, actual.astype(np.float16)):
            return "a sampling grid in float16"
    if np.array_equal(actual, bfloat16(actual)):
        return "a sampling grid in bfloat16"
    for corners, way in ((False, "True instead of False"), (True, "False instead of True")):
        other = _other_corners(wanted.grid, corners)
        if other is not None and explains(other):
            return f"align_corners={way} in the grid"
    return ""


def _other_corners(grid: Array, corners: bool) -> Array | None:
    """Convert an affine grid from one ``align_corners`` to the other; None if the grid is not affine.

    Args:
        grid: [N, *out, D].
        corners: the ``align_corners`` that ``grid`` was made with.
    """
    size = grid.shape[1:-1]
    before, after = canonical_basis(size, corners), canonical_basis(size, not corners)
    points = grid.reshape(len(grid), -1, grid.shape[-1]).astype(np.float64)  # [N, P, D]
    theta = np.linalg.pinv(before.T) @ points  # [N, K, D]
    if not np.abs(before.T @ theta - points).max(initial=0.0) < 1e-4:
        return None
    return np.asarray((after.T @ theta).reshape(grid.shape))


def _check_samplers(
    runner: Runner, run: TracedRun, references: list[SamplerCall] | None, seed: int
) -> tuple[SamplerCheck, ...]:
    """Check each sampler in isolation; the reference defines how it should sample, if the samplers can be paired."""
    checks = []
    opened: dict[Any, IsolatedSampler] = {}  # building one may take a runtime a second
    for index, call in enumerate(run.calls):

        def open_isolated(image: tuple[int, ...], placed: tuple[int, ...], index: int = index) -> IsolatedSampler:
            key = (index, image, placed)
            if key not in opened:
                opened[key] = runner.isolated(index, image, placed)
            return opened[key]

        expected = call.spec if references is None else _border_for_clamp(call, references[index]).spec
        size, output_size = call.image.shape[2:], call.grid.shape[1:-1]
        if min((*size, *output_size), default=0) > 0:
            checks.append(check_sampler(index, call.node, expected, size, output_size, open_isolated, seed))
    return tuple(checks)
