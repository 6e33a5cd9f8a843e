"""Compare an exported model in onnxruntime with its PyTorch source, and choose the limits for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.data.batches import sample_axes
from stn_infer.deviation import float32_tolerance
from stn_infer.errors import ModelError
from stn_infer.progress import step
from stn_infer.reference.model import Reference, ReferenceModel
from stn_infer.reference.onnx_file import OnnxReference
from stn_infer.reference.samples import Batch, sample_batches
from stn_infer.repairs.dependence import dependence_note, dependent_outputs
from stn_infer.verification.judging import Limits, judge
from stn_infer.verification.report import GRID_TOLERANCE_PX, BackendReport, Verification
from stn_infer.verification.runners import open_runner
from stn_infer.verification.tolerance import Expectation, eager_float32, expect, file_float32, float32_levels

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources.load import LoadedModel

TOLERANCE = 1e-5
TOLERANCE_FP32_REFERENCE = 1e-4
_TOLERANCE_FILE = 1e-4  # without the source, float32's own error on the model is unknown
# Twice what export allows reduced precision against float32. Reduced precision moves theta and the features; the
# samplers' own results must still be as exact as float32.
_REDUCED = {"float16": Limits(1e-2, 0.1), "bfloat16": Limits(1e-1, 0.5), "int8": Limits(2e-1, 1.0)}


def verify_model(
    loaded: LoadedModel,
    model: onnx.ModelProto,
    *,
    tolerance: float | None = None,
    grid_tolerance: float | None = None,
    batches: Sequence[Batch] | None = None,
) -> Verification:
    """Compare an ONNX model in onnxruntime on the CPU with its PyTorch source.

    Args:
        loaded: the source.
        model: the portable or the plain file; extra outputs (theta) are ignored.
        tolerance: the limit on each output's scaled error; None: as for :func:`verify`.
        grid_tolerance: the limit on a sampling point's distance, in pixels; None: 1e-3, ten times that with a float32
            reference.
        batches: the inputs to run; None: random inputs at two batch sizes, and real images.

    Raises:
        ModelError: onnxruntime cannot run the model, or the model has fewer outputs than the source.
    """
    reference = Reference.of(loaded)
    batches = on_axes_of(model, sample_batches(loaded) if batches is None else batches)
    expectations = expect(reference, batches)
    limits, notes = limits_for(model, reference, loaded, expectations, tolerance)
    if grid_tolerance is not None:
        limits = replace(limits, grid_px=grid_tolerance)
    dependent = batch_dependent(reference, expectations, [value.name for value in model.graph.output])
    notes += [dependence_note(dependent)] if dependent else []
    step("verifying: comparing onnxruntime with it")
    runner = open_runner("ort", model, loaded, "cpu")
    try:
        judgment = judge(runner, reference, expectations, limits)
    finally:
        runner.close()
    found = summarize(reference, limits, [judgment.report], batches, (*notes, *judgment.notes))
    return replace(found, batch_dependent=dependent)


def batch_dependent(
    reference: ReferenceModel, expectations: Sequence[Expectation], names: Sequence[str]
) -> tuple[str, ...]:
    """The names of the reference's outputs for one sample that depend on the other samples of its batch."""
    found = next((each for each in expectations if each.batch.samples > 1), None)
    if found is None:
        return ()
    exact = reference.dtype == "float64"
    try:
        indices = dependent_outputs(
            lambda inputs: reference.run(inputs)[0],
            found.batch.first(),
            found.batch.samples,
            found.outputs,
            exact=exact,
        )
    except ModelError:  # it does not run on a single sample
        return ()
    return tuple(names[index] for index in indices)


def summarize(
    reference: ReferenceModel,
    limits: Limits,
    reports: Sequence[BackendReport],
    batches: Sequence[Batch],
    notes: tuple[str, ...],
) -> Verification:
    described = ", ".join(f"{batch.samples} {batch.kind}" for batch in batches)
    return Verification(reference.dtype, reference.title, limits.output, tuple(reports), described, notes)


def on_axes_of(model: onnx.ModelProto, batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """The batches, with the axis of each input that a file has its samples on."""
    axes = sample_axes(model)
    return tuple(replace(batch, axes=axes) for batch in batches)


def limits_for(
    model: onnx.ModelProto,
    reference: ReferenceModel,
    loaded: LoadedModel | None,
    expectations: Sequence[Expectation],
    tolerance: float | None,
) -> tuple[Limits, list[str]]:
    """The limits for a model, and notes that explain limits above the default."""
    notes = []
    single = reference.dtype != "float64"
    grid_px = GRID_TOLERANCE_PX * (10 if single else 1)
    if single:
        notes.append("the model cannot run in float64: compared with float32")
    if isinstance(reference, OnnxReference):
        as_float32 = file_float32(reference.model)
    else:
        as_float32 = None if loaded is None else eager_float32(loaded)
    levels = float32_levels(reference, expectations, as_float32)
    reduced = reduced_precision(model)
    if reduced:
        usual = _REDUCED[reduced]
        notes.append(
            f"{reduced} weights: the tolerance is {tolerance or usual.output:.0e} for outputs and {usual.grid_px} px "
            "for grids"
        )
        limit = tolerance or usual.output
        return Limits(limit, usual.grid_px, image=max(limit, usual.output), levels=levels), notes
    if single or loaded is None:
        usual_limit = TOLERANCE_FP32_REFERENCE if single else _TOLERANCE_FILE
        limit = tolerance or usual_limit
        return Limits(limit, grid_px, image=max(limit, usual_limit), levels=levels), notes
    image = float32_tolerance(TOLERANCE, levels.image_rounding)
    if tolerance is not None:
        return Limits(tolerance, grid_px, image=max(tolerance, image), levels=levels), notes
    limit = float32_tolerance(TOLERANCE, levels.rounding)
    if limit <= TOLERANCE:
        return Limits(limit, grid_px, image=image, levels=levels), notes
    notes.append(
        f"float32 PyTorch itself is off by {levels.rounding:.1e} on this model: the tolerance is raised to {limit:.1e}"
    )
    # the network after the samplers is rarely as sensitive to rounding as they are
    downstream = float32_levels(reference, expectations, as_float32, own_warps=True)
    return Limits(limit, grid_px, float32_tolerance(TOLERANCE, downstream.rounding), image, levels), notes


def reduced_precision(model: onnx.ModelProto) -> str | None:
    """``float16`` or ``bfloat16`` if a constant of more than 4 values has that type; ``int8`` for Q/DQ files."""
    import onnx

    names = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
    found = {names.get(tensor.data_type) for tensor in model.graph.initializer if int(np.prod(tensor.dims)) > 4}
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return "int8"
    return next((name for name in ("bfloat16", "float16") if name in found), None)
