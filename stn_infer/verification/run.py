"""``verify``: every backend that is there against a float64 reference, errors in pixels and in outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.errors import MissingDependencyError, ModelError, StnInferError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.reference.model import Reference, ReferenceModel
from stn_infer.verification.comparison import OutputDeviation
from stn_infer.verification.judging import Batch, Judgement, Limits, expect, judge
from stn_infer.verification.runners import RUNNERS, open_runner
from stn_infer.verification.tolerance import attainable, float32_deviation, rest_deviation
from stn_infer.verification.verdict import GRID_TOLERANCE_PX, BackendReport, GridDeviation, Verification

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources.load import LoadedModel

__all__ = ["BackendReport", "Batch", "GridDeviation", "OutputDeviation", "Verification", "verify", "verify_model"]

Array = NDArray[Any]

TOLERANCE = 1e-5
TOLERANCE_FP32_REFERENCE = 1e-4
_TOLERANCE_FILE = 1e-4  # without the source, nothing says how exact float32 can be on the model
_OWN_SAMPLES = 32  # float64 is slow
# Twice what export allows a lower precision against float32: what moves is theta and the features; what the samplers
# make of them is held to float32 all the same.
_LOWER = {"float16": Limits(1e-2, 0.1), "bfloat16": Limits(1e-1, 0.5), "int8": Limits(2e-1, 1.0)}


def verify(
    model: str | Path,
    *,
    source: str | None = None,
    weights: Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    against: str | Path | None = None,
    inputs: Sequence[str | Path] | None = None,
) -> Verification:
    """Compare a model in every backend with a float64 reference.

    The reference is the PyTorch source in eager float64 where it is known; else the file ``against``, else the file
    itself, evaluated in float64. Each backend is judged on its sampling grids in pixels, on each of its samplers alone
    (:mod:`~stn_infer.verification.comparison` has the two tiers, :mod:`~stn_infer.verification.invariants` the
    invariants), and on its outputs.

    Args:
        model: an ``.onnx`` file, or a source that ``export`` takes, which is exported in memory.
        source: what the file was exported from; None: what its metadata names.
        weights: the checkpoint it was exported with, where it was not the source's own.
        input_shapes: as for ``export``; for a file, shapes [C, H, W] without batch where it leaves sizes open.
        tolerance: on each output's error over its scale; None: 1e-5, more where float32 itself needs it, 1e-4 without
            a source, 1e-2 for float16, 1e-1 for bfloat16 and 2e-1 for int8 weights.
        backends: names in :data:`~stn_infer.verification.runners.RUNNERS`; each must be there. None: all there are, one
            of which must run the file itself; ``ort-rounded`` stands in for a bfloat16 file.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        against: another ONNX file that is right; ``model`` is compared with it.
        inputs: images, folders or array files to compare on, as ``run`` takes them, 32 samples at most; None: noise and
            images of the package's for a model that takes images. An int8 file is right on images like those it was
            calibrated on alone.

    Raises:
        UsageError: arguments that don't go together, or an unknown backend.
        ModelError: the file is unreadable, does not belong to the source, or no backend takes it.
        InputError: ``inputs`` can't be read.
        MissingDependencyError: one of ``backends`` is not there.
    """
    from stn_infer.graph.load import load_model

    if against is not None and source is not None:
        raise UsageError("--against names the reference, --source another; give one of them")
    if against is not None and weights is not None:
        raise UsageError("--against names the reference; --weights belong to a source, which then is not used")
    unknown = next((name for name in backends or () if name not in RUNNERS), None)
    if unknown is not None:
        raise UsageError(f"a backend is one of {', '.join(RUNNERS)}, not {unknown!r}")
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise UsageError(f"a tolerance is a number above 0, not {tolerance}")
    if _is_onnx(Path(model)):
        proto = load_model(Path(model))
        loaded = None if against is not None else _source(proto, source, weights, input_shapes)
    else:
        if source is not None:
            raise UsageError(f"--source is for ONNX files; {model} is a source itself")
        loaded, proto = _exported(str(model), weights, input_shapes)
    notes: list[str] = []
    own: tuple[Batch, ...] | None = None
    if inputs:
        own, notes = _own_batches(proto, inputs, None if loaded is None else loaded.metadata)
    reference: ReferenceModel
    if loaded is not None and against is None:
        reference = Reference(loaded.module, loaded.input_shapes)
        batches = own or sample_batches(loaded)
    else:
        batches = own or _file_batches(proto, input_shapes)
        right = proto if against is None else load_model(Path(against))
        reference, problem = _file_reference(right, "the file" if against is None else Path(against).name, batches)
        notes += [f"the file can't be evaluated in float64: {problem}"] if problem else []
    if (
        _lower_precision(proto) == "int8" and not own
    ):  # its ranges come from images; noise leaves them, in a right file too
        batches = tuple(batch for batch in batches if batch.kind == "images") or batches
        notes.append("an int8 file is right on images like those it was calibrated on; give such with --inputs")
    limits, more = _limits(proto, reference, loaded, batches, tolerance)
    found = expect(reference, batches)
    names = list(dict.fromkeys(backends)) if backends is not None else _backends_for(proto)
    reports = []
    for name in names:
        try:
            judgement = _judge_one(name, proto, loaded, device, lambda runner: judge(runner, reference, found, limits))
        except StnInferError as error:
            if backends is not None and isinstance(error, (UsageError, MissingDependencyError)):
                raise type(error)(f"{name}: {error}") from None
            failed = isinstance(error, _Failed)
            reports.append(BackendReport(name, "failed" if failed else "unavailable", (str(error),)))
            continue
        reports.append(judgement.report)
        notes += [note for note in judgement.notes if note not in notes]
    result = _result(reference, limits, reports, batches, (*notes, *more))
    if result.emulated:
        result = _noted(result, "no backend here runs the file itself: it ran in float32 with every half value rounded")
    elif not result.ran_the_file:
        result = _noted(result, "no backend here runs the file itself")
    if not result.ran or (result.passed and not result.ran_the_file and backends is None):
        # that PyTorch runs the source right says nothing of the file
        refused = next((report for report in reports if report.backend == "ort"), reports[0])
        raise ModelError(f"{model} is not verified: no backend here runs it; {refused.backend}: {refused.reason}")
    return result


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
        model: the portable or the plain file; extra outputs (theta) are passed over.
        tolerance: on each output's scaled error; None: as for :func:`verify`.
        grid_tolerance: on a sampling point's distance, in pixels; None: 1e-3, ten times that with a float32 reference.
        batches: what to run; None: random inputs at two batch sizes, and real images.

    Raises:
        ModelError: onnxruntime refuses the model, or it has fewer outputs than the source.
    """
    reference = Reference(loaded.module, loaded.input_shapes)
    batches = sample_batches(loaded) if batches is None else batches
    limits, notes = _limits(model, reference, loaded, batches, tolerance)
    if grid_tolerance is not None:
        limits = replace(limits, grid_px=grid_tolerance)
    runner = open_runner("ort", model, loaded, "cpu")
    try:
        judgement = judge(runner, reference, expect(reference, batches), limits)
    finally:
        runner.close()
    return _result(reference, limits, [judgement.report], batches, (*notes, *judgement.notes))


class _Failed(StnInferError):
    """A backend that opened the model and then failed."""


def _judge_one(name: str, proto: onnx.ModelProto, loaded: LoadedModel | None, device: str, judge_it: Any) -> Judgement:
    runner = open_runner(name, proto, loaded, device)
    try:
        judgement: Judgement = judge_it(runner)
        return judgement
    except StnInferError as error:
        raise _Failed(str(error)) from error
    finally:
        runner.close()


def _is_onnx(path: Path) -> bool:
    """Whether a path is meant as an ONNX file: by its suffix, or a file of none that a source has."""
    suffix = path.suffix.lower()
    return suffix == ".onnx" or (suffix not in (".toml", ".pt2") and path.is_file())


def _noted(result: Verification, note: str) -> Verification:
    return replace(result, notes=(note, *result.notes))


def _result(
    reference: ReferenceModel,
    limits: Limits,
    reports: Sequence[BackendReport],
    batches: Sequence[Batch],
    notes: tuple[str, ...],
) -> Verification:
    described = ", ".join(f"{len(batch.inputs[0])} {batch.kind}" for batch in batches)
    return Verification(reference.dtype, reference.title, limits.output, tuple(reports), described, notes)


def _limits(
    model: onnx.ModelProto,
    reference: ReferenceModel,
    loaded: LoadedModel | None,
    batches: Sequence[Batch],
    tolerance: float | None,
) -> tuple[Limits, list[str]]:
    """What is tolerated, and why it is more than usual."""
    notes = []
    single = reference.dtype != "float64"
    grid_px = GRID_TOLERANCE_PX * (10 if single else 1)
    if single:
        notes.append("the model can't be run in float64: compared with float32")
    lower = _lower_precision(model)
    if lower:
        usual = _LOWER[lower]
        notes.append(
            f"{lower} weights: outputs are held to {tolerance or usual.output:.0e}, grids to {usual.grid_px} px"
        )
        limit = tolerance or usual.output
        return Limits(limit, usual.grid_px, image=max(limit, usual.output)), notes
    if single or loaded is None:
        usual_limit = TOLERANCE_FP32_REFERENCE if single else _TOLERANCE_FILE
        limit = tolerance or usual_limit
        return Limits(limit, grid_px, image=max(limit, usual_limit)), notes
    assert isinstance(reference, Reference)
    inputs = [batch.inputs for batch in batches]
    deviation = float32_deviation(loaded, reference, inputs)
    image = attainable(TOLERANCE, deviation.images)
    if tolerance is not None:
        return Limits(tolerance, grid_px, image=max(tolerance, image)), notes
    limit = attainable(TOLERANCE, deviation.outputs)
    if limit <= TOLERANCE:
        return Limits(limit, grid_px, image=image), notes
    notes.append(f"float32 PyTorch itself is off by {deviation.outputs:.1e} here: held to {limit:.1e}")
    # what comes after the samplers is seldom as sensitive as they are
    rest = attainable(TOLERANCE, rest_deviation(loaded, reference, inputs))
    return Limits(limit, grid_px, rest, image), notes


def _backends_for(model: onnx.ModelProto) -> list[str]:
    """All backends; rounding in float32 stands in where the CPU lacks the type: onnxruntime has float16 there."""
    import onnx

    from stn_infer.graph.rounding import half_types

    lacking = onnx.TensorProto.BFLOAT16 in half_types(model)
    return [name for name in RUNNERS if name != "ort-rounded" or lacking]


def _lower_precision(model: onnx.ModelProto) -> str | None:
    """``float16`` or ``bfloat16`` where a constant that is no mere number has that type; ``int8`` for Q/DQ files."""
    import onnx

    names = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
    found = {names.get(tensor.data_type) for tensor in model.graph.initializer if int(np.prod(tensor.dims)) > 4}
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return "int8"
    return next((name for name in ("bfloat16", "float16") if name in found), None)


def _source(
    proto: onnx.ModelProto,
    source: str | None,
    weights: Path | None,
    input_shapes: Sequence[tuple[int, ...]] | None,
) -> LoadedModel | None:
    """The PyTorch source of a file, where it is known."""
    from stn_infer.sources.load import load_source

    metadata = ModelMetadata.from_props({prop.key: prop.value for prop in proto.metadata_props})
    source = source or metadata.source
    if not source:
        if weights is not None:
            raise UsageError("--weights belong to a source; name it with --source SOURCE")
        return None
    own = _shapes(proto)
    if input_shapes and own and [tuple(shape) for shape in input_shapes] != list(own):
        given, fixed = (", ".join("x".join(map(str, shape)) for shape in shapes) for shapes in (input_shapes, own))
        raise UsageError(f"the file's inputs are {fixed}, not {given}; leave out --input-shape")
    return load_source(source, weights=weights, input_shapes=input_shapes or own or None)


def _exported(
    source: str, weights: Path | None, input_shapes: Sequence[tuple[int, ...]] | None
) -> tuple[LoadedModel, onnx.ModelProto]:
    from stn_infer.exporter import build_portable
    from stn_infer.sources.load import load_source

    loaded = load_source(source, weights=weights, input_shapes=input_shapes)
    return loaded, build_portable(loaded)[0]


def _shapes(model: onnx.ModelProto) -> tuple[tuple[int, ...], ...]:
    """The inputs' shapes without batch; empty where a size is open, so that the source's own example is taken."""
    shapes = tuple(
        tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim[1:]) for value in model.graph.input
    )
    return shapes if all(all(shape) for shape in shapes) else ()


def _file_reference(model: onnx.ModelProto, name: str, batches: Sequence[Batch]) -> tuple[ReferenceModel, str]:
    """An ONNX file in float64, or, with the reason, in float32."""
    from stn_infer.reference.onnx_file import OnnxReference, OrtReference

    try:
        exact = OnnxReference(model, name)
        exact.run([value[:1] for value in batches[-1].inputs])
        return exact, ""
    except ModelError as error:
        return OrtReference(model, name), str(error)


def sample_batches(loaded: LoadedModel) -> tuple[Batch, ...]:
    """Random inputs at batch sizes 3 and 1, and 8 real images where the first input is an image.

    Random images are noise over all pixel values, pre-processed as images are; other inputs are normal.
    """
    return _batches(loaded.input_shapes, loaded.metadata)


def _batches(shapes: Sequence[tuple[int, ...]], metadata: ModelMetadata) -> tuple[Batch, ...]:
    from stn_infer.data.samples import noise_images, sample_images

    generator = np.random.default_rng(7)
    first, *others = shapes
    is_image = len(first) == 3 and first[0] in (1, 3)
    rule = metadata.preprocess

    def batch(kind: str, count: int, values: Array | None) -> Batch:
        if values is None:
            values = generator.standard_normal((count, *first)).astype(np.float32)
        rest = tuple(generator.standard_normal((count, *shape)).astype(np.float32) for shape in others)
        return Batch(kind, (values, *rest))

    batches = [
        batch("random", count, noise_images(count, first, generator, rule) if is_image else None) for count in (3, 1)
    ]
    return (*batches, batch("images", 8, sample_images(8, first, rule))) if is_image else tuple(batches)


def _own_batches(
    model: onnx.ModelProto, sources: Sequence[str | Path], metadata: ModelMetadata | None
) -> tuple[tuple[Batch, ...], list[str]]:
    """The user's samples, and what to say of them; pre-processed as the source says, else as the file does."""
    from stn_infer.precision.calibration import load_for_file

    metadata = metadata or ModelMetadata.from_props({prop.key: prop.value for prop in model.metadata_props})
    found = load_for_file(sources, model, metadata.preprocess, most=_OWN_SAMPLES)
    return tuple(Batch("of yours", tuple(batch.values())) for batch in found.batches), list(found.notes)


def _file_batches(model: onnx.ModelProto, input_shapes: Sequence[tuple[int, ...]] | None) -> tuple[Batch, ...]:
    """Inputs for a file: as for its source where they are all float32, else random ones of its types.

    Raises:
        UsageError: a size is open and no shape is given.
    """
    import onnx

    from stn_infer.graph.inputs import batch_symbols, plan_inputs, random_feeds, size_symbols

    names = [value.name for value in model.graph.input]
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [name for name in names if name not in constants]
    if input_shapes is not None and len(input_shapes) != len(names):
        raise UsageError(f"--input-shape is given {len(input_shapes)} times; the inputs are {', '.join(names)}")
    plans = plan_inputs(model, dict(zip(names, input_shapes, strict=True)) if input_shapes else None)
    if size_symbols(plans):
        open_sizes = ", ".join(plan.name for plan in plans if any(isinstance(size, str) for size in plan.dims[1:]))
        raise UsageError(f"the file leaves sizes of {open_sizes} open; give --input-shape C,H,W, once an input")
    plain = all(plan.elem_type == onnx.TensorProto.FLOAT and plan.dims for plan in plans)
    if plain and batch_symbols(plans) and all(isinstance(plan.dims[0], str) for plan in plans):
        shapes = [tuple(int(size) for size in plan.dims[1:]) for plan in plans]
        metadata = ModelMetadata.from_props({prop.key: prop.value for prop in model.metadata_props})
        return _batches(shapes, metadata)
    generator = np.random.default_rng(7)
    return tuple(Batch("random", tuple(random_feeds(plans, count, 1, generator).values())) for count in (3, 1))
