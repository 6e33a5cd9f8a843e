"""``verify``: compare every available backend with a float64 reference, in pixels and in outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.api.source import (
    OnnxModel,
    load_original,
    metadata_of,
    names_the_file,
    onnx_path,
    resolve_model,
    undisturbed_by_objects,
)
from stn_infer.api.trusted import try_once
from stn_infer.backends.openvino.trial import try_openvino
from stn_infer.budget import Budget
from stn_infer.errors import MissingDependencyError, ModelError, StnInferError, UsageError
from stn_infer.extras import require
from stn_infer.metadata import ModelMetadata
from stn_infer.progress import step
from stn_infer.reference.model import Reference, ReferenceModel
from stn_infer.reference.samples import MOST_SAMPLES, Batch, as_batches, sample_batches
from stn_infer.repairs.dependence import dependence_note
from stn_infer.verification.judging import Judgment, judge
from stn_infer.verification.model import batch_dependent, limits_for, on_axes_of, reduced_precision, summarize
from stn_infer.verification.report import BackendReport, Verification
from stn_infer.verification.runners import RUNNERS, open_runner
from stn_infer.verification.tolerance import expect

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from stn_infer.sources.load import LoadedModel
    from stn_infer.sources.reference import WeightsLike


class _Failed(StnInferError):
    """A backend opened the model, but failed while running it."""


@names_the_file
@undisturbed_by_objects
def verify(
    model: str | Path | nn.Module | LoadedModel,
    *,
    source: str | None = None,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    against: str | Path | None = None,
    inputs: Sequence[str | Path] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> Verification:
    """Compare a model in every backend with a float64 reference.

    The reference is the PyTorch source in eager float64 if it is known, otherwise the file ``against`` or the file
    itself, evaluated in float64. Each backend is judged on its sampling grids in pixels, on each of its samplers in
    isolation (:mod:`~stn_infer.reference.comparison` describes the two tiers,
    :mod:`~stn_infer.verification.sampler_checks` the invariants), and on its outputs.

    Args:
        model: an ONNX file; or a module, a loaded model or a source that ``export`` takes, which is exported in memory.
        source: the source that the file was exported from; None: the one that its metadata names.
        weights: the checkpoint that it was exported with, if not the source's own.
        input_shapes: as for ``export``; for a file with dynamic sizes, shapes [C, H, W] without batch.
        tolerance: the limit on each output's error over its scale; None: 1e-5, more if float32 itself needs it, 1e-4
            without a source, 1e-2 for float16, 1e-1 for bfloat16 and 2e-1 for int8 weights.
        backends: names in :data:`~stn_infer.verification.runners.RUNNERS`, all of which must be available. None: all
            available ones, one of which must run the file itself; ``ort-rounded`` emulates a bfloat16 file.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        against: an ONNX file to use as the reference for ``model``.
        inputs: images, folders or array files to compare on, as ``run`` takes them, at most 32 samples; None: noise,
            and the package's images for a model that takes images. An int8 file is accurate only on images like those
            that it was calibrated on.
        allow_code: let a file, such as a recipe or an ONNX file's metadata, name Python code to run.
        budget: as for ``lint``.

    Raises:
        UsageError: arguments that cannot be combined, or an unknown backend.
        ModelError: the file is unreadable, does not belong to the source, or no backend can run it.
        InputError: ``inputs`` cannot be read.
        MissingDependencyError: one of ``backends`` is not available, or PyTorch is not installed.
    """
    if against is not None and source is not None:
        raise UsageError("--against and --source both name the reference; give only one of them")
    if against is not None and weights is not None:
        raise UsageError("--weights belong to a source, but --against names the reference; give only one of them")
    unknown = next((name for name in backends or () if name not in RUNNERS), None)
    if unknown is not None:
        raise UsageError(f"unknown backend {unknown!r}: expected one of {', '.join(RUNNERS)}")
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise UsageError(f"a tolerance must be a positive number, not {tolerance}")
    require("torch", "verify computes its reference in float64 with")
    found = resolve_model(
        model,
        source=source,
        weights=weights,
        input_shapes=input_shapes,
        of_original=True,
        allow_code=allow_code,
        budget=budget,
    )
    loaded: LoadedModel | None
    if isinstance(found, OnnxModel):
        proto, loaded = found.load(), None
        embedded = metadata_of(proto).embedded is not None
        if embedded and (source is not None or weights is not None):
            raise UsageError(
                "the file has its preprocessing in its graph, so its input is not its source's; omit --source and "
                "--weights, or compare it with another such file by --against"
            )
        if against is None and not embedded:
            loaded = load_original(
                proto, source=source, weights=weights, input_shapes=input_shapes, allow_code=allow_code
            )
    else:
        from stn_infer.torch_export.portable import build_portable

        portable = build_portable(found)
        loaded, proto = portable.loaded, portable.model
    notes: list[str] = []
    own: tuple[Batch, ...] | None = None
    if inputs:
        own, notes = _own_batches(proto, inputs, None if loaded is None else loaded.metadata)
    reference: ReferenceModel
    if loaded is not None and against is None:
        reference = Reference.of(loaded)
        batches = on_axes_of(proto, own or sample_batches(loaded))
    else:
        batches = on_axes_of(proto, own or _file_batches(proto, input_shapes))
        right = proto if against is None else _tried(onnx_path(against), budget).load()
        reference, problem = _file_reference(right, "the file" if against is None else Path(against).name, batches)
        notes += [f"the file cannot be evaluated in float64: {problem}"] if problem else []
    if reduced_precision(proto) == "int8" and not own:
        # the ranges were calibrated on images, and noise exceeds them in a correct file too
        batches = tuple(batch for batch in batches if batch.kind == "images") or batches
        notes.append("an int8 file is accurate on images like its calibration data; give such images with --inputs")
    wanted = expect(reference, batches)
    limits, more = limits_for(proto, reference, loaded, wanted, tolerance)
    dependent = batch_dependent(reference, wanted, [value.name for value in proto.graph.output])
    more += [dependence_note(dependent)] if dependent else []
    names = list(dict.fromkeys(backends)) if backends is not None else _backends_for(proto)
    reports = []
    for name in names:
        step(f"verifying: comparing {name} with it")
        try:
            if name.startswith("openvino") and isinstance(found, OnnxModel):
                try_openvino(found.content, found.name, budget)
            judgment = _judge_one(name, proto, loaded, device, lambda runner: judge(runner, reference, wanted, limits))
        except StnInferError as error:
            if backends is not None and isinstance(error, (UsageError, MissingDependencyError)):
                raise type(error)(f"{name}: {error}") from None
            failed = isinstance(error, _Failed)
            reports.append(BackendReport(name, "failed" if failed else "unavailable", (str(error),)))
            continue
        reports.append(judgment.report)
        notes += [note for note in judgment.notes if note not in notes]
    result = replace(
        summarize(reference, limits, reports, batches, (*notes, *more)),
        batch_dependent=dependent,
    )
    if result.emulated:
        note = "no backend on this machine runs the file itself: its half precision was emulated in float32"
        result = _noted(result, note)
    elif not result.ran_the_file:
        result = _noted(result, "no backend on this machine runs the file itself")
    if not result.ran or (result.passed and not result.ran_the_file and backends is None):
        # a correct source in PyTorch does not show that the file is correct
        refused = next((report for report in reports if report.backend == "ort"), reports[0])
        raise ModelError(
            f"{_name(model)} is not verified: no backend on this machine runs it; {refused.backend}: {refused.reason}"
        )
    return result


def _name(model: object) -> str:
    return str(model) if isinstance(model, (str, Path)) else getattr(model, "name", type(model).__name__)


def _tried(path: Path, budget: Budget | None) -> OnnxModel:
    try_once(path, budget=budget)
    return OnnxModel(path)


def _judge_one(name: str, proto: onnx.ModelProto, loaded: LoadedModel | None, device: str, judge_it: Any) -> Judgment:
    runner = open_runner(name, proto, loaded, device)
    try:
        judgment: Judgment = judge_it(runner)
        return judgment
    except StnInferError as error:
        raise _Failed(str(error)) from error
    finally:
        runner.close()


def _noted(result: Verification, note: str) -> Verification:
    return replace(result, notes=(note, *result.notes))


def _backends_for(model: onnx.ModelProto) -> list[str]:
    """All backends for a file; ``ort-rounded`` only for bfloat16, which onnxruntime lacks on the CPU."""
    import onnx

    from stn_infer.precision.rounding import half_types

    lacking = onnx.TensorProto.BFLOAT16 in half_types(model)
    return [name for name in RUNNERS if name != "ort-rounded" or lacking]


def _file_reference(model: onnx.ModelProto, name: str, batches: Sequence[Batch]) -> tuple[ReferenceModel, str]:
    """Open an ONNX file as the reference in float64; if that fails, in float32, with the reason."""
    from stn_infer.reference.onnx_file import OnnxReference, OrtReference

    try:
        exact, batch = OnnxReference(model, name), batches[-1]
        try:
            exact.run(batch.first())
        except ModelError:  # one input may hold numbers of another's rows
            exact.run(batch.inputs)
        return exact, ""
    except ModelError as error:
        return OrtReference(model, name), str(error)


def _own_batches(
    model: onnx.ModelProto, sources: Sequence[str | Path], metadata: ModelMetadata | None
) -> tuple[tuple[Batch, ...], list[str]]:
    """The user's samples, and notes on them; preprocessed as the source defines, otherwise as the file does."""
    from stn_infer.data.batches import load_for_file

    metadata = metadata or metadata_of(model)
    found = load_for_file(sources, model, metadata.preprocess, most=MOST_SAMPLES)
    return tuple(Batch("given samples", tuple(batch.values())) for batch in found.batches), list(found.notes)


def _file_batches(model: onnx.ModelProto, input_shapes: Sequence[tuple[int, ...]] | None) -> tuple[Batch, ...]:
    """Make inputs for a file: the sample inputs if all are float32, otherwise random values of the inputs' types.

    Raises:
        UsageError: a size is dynamic and no shape is given.
    """
    import onnx

    from stn_infer.proto.inputs import batch_symbols, plan_inputs, random_feeds, size_symbols
    from stn_infer.proto.traversal import given_inputs

    names = [value.name for value in given_inputs(model.graph)]
    if input_shapes is not None and len(input_shapes) != len(names):
        raise UsageError(
            f"--input-shape is given {len(input_shapes)} times, expected once for each input: {', '.join(names)}"
        )
    plans = plan_inputs(model, dict(zip(names, input_shapes, strict=True)) if input_shapes else None)
    if size_symbols(plans):
        dynamic = ", ".join(plan.name for plan in plans if any(isinstance(size, str) for size in plan.dims[1:]))
        raise UsageError(f"{dynamic} has dynamic sizes; give --input-shape C,H,W, once per input")
    plain = all(plan.elem_type == onnx.TensorProto.FLOAT and plan.dims for plan in plans)
    shapes = [tuple(size for size in plan.dims[1:] if isinstance(size, int)) for plan in plans]
    whole = all(len(shape) + 1 == len(plan.dims) for shape, plan in zip(shapes, plans, strict=True))  # no batch inside
    if plain and whole and batch_symbols(plans) and all(isinstance(plan.dims[0], str) for plan in plans):
        return as_batches(shapes, metadata_of(model), axes=[str(plan.dims[0]) for plan in plans])
    generator = np.random.default_rng(7)
    return tuple(Batch("random", tuple(random_feeds(plans, count, 1, generator).values())) for count in (3, 1))
