"""``export``: export a PyTorch model to a portable ONNX file, fuse it, verify it, and only then write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from stn_infer.activation import Scores, resolve_scores
from stn_infer.errors import ExportError, ModelError, UsageError, VerificationError
from stn_infer.extras import require
from stn_infer.files import check_writable, write_atomically
from stn_infer.metadata import FUNCTIONS, PRECISIONS, Functions, ModelMetadata, Precision
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import Printed
from stn_infer.sources.reference import Weights, WeightsLike
from stn_infer.torch_export.portable import build_portable, describe, file_metadata

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from stn_infer.data.batches import Calibration
    from stn_infer.fusion.fuse import Finding
    from stn_infer.precision.lower import PrecisionReport
    from stn_infer.sources.load import LoadedModel
    from stn_infer.verification.report import Verification


@dataclass(frozen=True)
class ExportReport(Printed):
    """The result of ``export``; as text, what the command prints.

    Attributes:
        path: the file written.
        size: its size in bytes.
        findings: for each GridSample, whether it was fused, and why not.
        verification: the comparison with eager PyTorch; in reduced precision, the float32 file's.
        inputs: name and shape of each input, with ``batch`` for the dynamic axis.
        outputs: name and shape of each output.
        notes: remarks for the user.
        precision: the errors of reduced precision against float32; None in float32.
        torch_seconds: CPU time of PyTorch's exporter.
        own_seconds: CPU time of all the rest: fusion, verification, reduced precision.
        warnings: what may be a mistake, such as random weights.
    """

    path: Path
    size: int
    findings: tuple[Finding, ...]
    verification: Verification
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    precision: PrecisionReport | None = None
    torch_seconds: float = 0.0
    own_seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was done to each sampler, what was compared, and the file."""
        from stn_infer.fusion.fuse import describe as describe_findings

        costs: list[str] = []
        if self.precision is not None:
            costs = [*self.precision.table().splitlines(), f"compared with the fp32 file on {self.precision.inputs}"]
            if self.precision.eager_error is not None:
                costs[-1] += f"; eager bfloat16 PyTorch within {self.precision.eager_error:.1e}"
        return [
            *(f"warning: {warning}" for warning in self.warnings),
            *(f"note: {note}" for note in self.notes),
            *describe_findings(self.findings).splitlines(),
            f"verified: {self.verification.summary()} (inputs: {self.verification.inputs})",
            *costs,
            f"wrote {self.path} ({self.size / 1024:.0f} KiB): {'; '.join(self.inputs)} -> {'; '.join(self.outputs)}",
        ]


def export(
    source: str | Path | nn.Module | LoadedModel,
    output: str | Path,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[int] | Sequence[Sequence[int]] | None = None,
    example_inputs: object = None,
    with_theta: bool = False,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    embed_preprocess: bool = False,
    source_size: tuple[int, int] | None = None,
    tolerance: float | None = None,
    precision: Precision = "fp32",
    calibration: Sequence[str | Path] | None = None,
    grid_tolerance: float | None = None,
    dynamic_size: bool = False,
    functions: Functions = "keep",
    fixed_batch: int | None = None,
    inputs: Sequence[str] | None = None,
    allow_code: bool = False,
) -> ExportReport:
    """Export a trained network to a portable ONNX file (opset 18, dynamic batch) that is verified before it is written.

    A module is copied: its mode, device, values and hooks stay, and so do the random states. The copy is exported in
    evaluation mode, in float32 and on the CPU; the wrappers of DataParallel, AveragedModel and torch.compile are left
    out.

    A network whose code needs a fixed batch, such as one with a loop over its samples, is exported with a batch of 1;
    the backends run any number of samples through such a file.

    In reduced precision, inputs, outputs, theta and sampling arithmetic stay in float32. The file is compared with the
    verified float32 file. A ``bf16`` file has opset 22, and onnxruntime cannot run it on a CPU.

    Args:
        source: a module; a shipped model's name, a network, a recipe, a ``.pt2`` file, or ``package.module:factory``;
            or a loaded model.
        output: the file to write; an existing one is replaced, but kept if an error occurs.
        weights: a checkpoint, ``.safetensors`` or ``.pt``.
        input_shapes: one shape per input, without the batch, or that of the only input. A module or a factory needs
            these, ``example_inputs`` or ``inputs``.
        example_inputs: instead, inputs [N, ...], which define shapes and types, and on which the file is verified: a
            tensor or an array, a tuple of them, a dict by the parameters of ``forward``, or a file (.npz, .npy, .pt).
        with_theta: add theta [N, D, K] of every spatial transformer as outputs.
        preprocess: how images become inputs, written into the file; as text, changes to what the source defines, or to
            gray or rgb with values 0..1; None: as the source defines.
        labels: one name per class, written into the file; None: as the source defines.
        activation: what turns the scores of the classes into probabilities, written into the file: ``softmax``,
            ``sigmoid`` or ``none``; None: as the source defines, or what it ends in.
        embed_preprocess: put the preprocessing into the graph: the input is uint8 [N, H, W, C], RGB or gray.
        source_size: (height, width) of all pictures, which the graph then resizes as Pillow does, within one level;
            None: the caller resizes and crops them.
        tolerance: the limit on the outputs' scaled error; None: 1e-5 against float64, and in reduced precision, against
            float32, as in ``stn_infer.precision.lower.TOLERANCES``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        calibration: images or array files, as ``run`` takes them: the INT8 calibration data, and the only samples on
            which reduced precision is compared.
        grid_tolerance: the largest distance in pixels of sampling points from float32's in reduced precision; None: as
            above.
        dynamic_size: export dynamic height and width of image inputs; ``input_shapes`` are then examples, and the
            float32 file is verified at a second size as well.
        functions: ``keep``: spatial transformers are ops of domain ``stn`` with functions, which the plugin library
            runs fused; ``inline``: plain operators only, for importers that know no model-local functions.
        fixed_batch: export this batch size instead of a dynamic one.
        inputs: instead of both, one declaration NAME:TYPE:SHAPE per input, such as ``lengths:int64:20``.
        allow_code: let a file, such as a recipe, name Python code to run; a factory as ``source`` always may.

    Raises:
        SourceError, WeightsError: the model cannot be loaded.
        UsageError: the model cannot run on inputs of these shapes, ``preprocess`` or ``labels`` do not fit it, int8 has
            no calibration data, or an argument is of another type.
        ExportError: the model cannot be exported.
        InputError: the calibration samples or a file of example inputs cannot be read.
        VerificationError: the file differs from the model; no file is written.
        OutputError: the file cannot be written.
        MissingDependencyError: PyTorch or onnxscript is not installed.
    """
    path = Path(_checked(output, "output", (str, Path), "the path of the ONNX file to write"))
    _checked(weights, "weights", (str, Path, Weights, type(None)), "the path of a checkpoint")
    _checked(preprocess, "preprocess", (str, Preprocess, type(None)), "a text such as 'imagenet', or a Preprocess")
    for limit in (tolerance, grid_tolerance):
        if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < float("inf")):
            raise UsageError(f"a tolerance must be a positive number, not {limit}")
    if fixed_batch is not None and not (isinstance(fixed_batch, int) and fixed_batch >= 1):
        raise UsageError(f"the fixed batch is an integer of at least 1, not {fixed_batch}")
    if isinstance(calibration, (str, Path)):
        calibration = [calibration]
    if (
        isinstance(labels, str)
        or not isinstance(labels or (), Sequence)
        or not all(isinstance(it, str) for it in labels or ())
    ):
        raise UsageError(f"labels is a list with one name per class, not {labels!r}")
    resolve_scores(None, activation)
    _check_precision(precision, calibration, grid_tolerance)
    if functions not in FUNCTIONS:
        raise UsageError(f"functions is one of {', '.join(FUNCTIONS)}, not {functions!r}")
    for module in ("torch", "onnxscript"):
        require(module, "export needs")
    file = None if weights is None else Weights.of(weights).file
    check_writable(path, inputs=(source, file, example_inputs, *(calibration or ())))

    from stn_infer.data.batches import check_sources
    from stn_infer.data.examples import load_with_inputs
    from stn_infer.sources.objects import undisturbed

    if calibration:
        check_sources(calibration)
    with undisturbed():
        loaded = load_with_inputs(
            source,
            weights=weights,
            input_shapes=input_shapes,
            inputs=inputs,
            example_inputs=example_inputs,
            allow_code=allow_code,
        )
        if fixed_batch is not None:
            loaded = replace(loaded, fixed_batch=fixed_batch)
        return _export(
            loaded,
            path,
            with_theta=with_theta,
            preprocess=preprocess,
            labels=labels,
            activation=activation,
            embed_preprocess=embed_preprocess,
            source_size=source_size,
            tolerance=tolerance,
            precision=precision,
            calibration=calibration,
            grid_tolerance=grid_tolerance,
            dynamic_size=dynamic_size,
            functions=functions,
        )


def _checked(value: Any, name: str, types: tuple[type, ...], expected: str) -> Any:
    """``value``, which must be of one of these types."""
    if not isinstance(value, types):
        raise UsageError(f"{name} is {expected}, not {type(value).__name__}")
    return value


def _export(
    loaded: LoadedModel,
    path: Path,
    *,
    with_theta: bool,
    preprocess: Preprocess | str | None,
    labels: Sequence[str] | None,
    activation: str | None,
    embed_preprocess: bool,
    source_size: tuple[int, int] | None,
    tolerance: float | None,
    precision: Precision,
    calibration: Sequence[str | Path] | None,
    grid_tolerance: float | None,
    dynamic_size: bool,
    functions: Functions,
) -> ExportReport:
    """Export a loaded model; arguments and errors as for :func:`export`."""
    from stn_infer.api.trusted import mark_tried
    from stn_infer.data.embedding import check_embedding, embedded
    from stn_infer.fusion.samplers import with_theta as add_theta
    from stn_infer.repairs.inlined import NOTE, inlined

    metadata = file_metadata(loaded, precision)
    if preprocess is not None:
        metadata = replace(metadata, preprocess=_preprocess(loaded, metadata.preprocess, preprocess))
    if labels is not None:
        metadata = replace(metadata, labels=tuple(labels))
    check_embedding(metadata.preprocess, embed_preprocess, source_size)
    began = process_time()
    built = build_portable(loaded, precision, dynamic_size)
    model, findings, loaded = built.model, built.findings, built.loaded
    metadata = replace(metadata, scores=_scores(model, metadata, activation))
    if with_theta:
        if not any(finding.fused for finding in findings):
            raise ExportError(f"{loaded.name}: no spatial transformer was fused, so there is no theta to add")
        model = add_theta(model)
    inline = functions == "inline"
    if inline and precision == "fp32":
        model = inlined(model)
    samples = _checked_metadata(model, metadata, calibration)
    verification = _verified(loaded, model, tolerance if precision == "fp32" else None)
    metadata = replace(metadata, batch_dependent=verification.batch_dependent)
    if dynamic_size:
        _verify_other_size(loaded, model, tolerance if precision == "fp32" else None)
    notes = [
        loaded.note,
        *built.notes,
        _made_up(loaded),
        _assumed(loaded, metadata),
        *verification.notes,
        NOTE if inline else "",
    ]
    lowered: PrecisionReport | None = None
    if precision != "fp32":
        from stn_infer.precision.lower import lower

        describe(model, metadata)
        model, lowered = lower(loaded, model, precision, samples, tolerance=tolerance, grid_tolerance=grid_tolerance)
        lowered.check(loaded.name)
        notes += lowered.notes
        if inline:
            model = _inlined_alike(model, loaded.name)
    if embed_preprocess:
        model, metadata = embedded(model, metadata, source_size)
    describe(model, metadata)
    content = model.SerializeToString()
    own_seconds = process_time() - began - built.torch_seconds
    write_atomically(path, content)
    mark_tried(path, verification.batch_dependent)
    return ExportReport(
        path,
        len(content),
        findings,
        verification,
        _shapes(model.graph.input),
        _shapes(model.graph.output),
        tuple(filter(None, notes)),
        lowered,
        built.torch_seconds,
        own_seconds,
        tuple(filter(None, [loaded.warning])),
    )


def _inlined_alike(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Inlines the functions of a file in reduced precision, and compares it with the file that has them."""
    from stn_infer.proto.inputs import plan_inputs
    from stn_infer.proto.session import Stored
    from stn_infer.repairs.equivalence import compare
    from stn_infer.repairs.inlined import inlined

    plain = inlined(model)
    try:
        compare(Stored(model), Stored(plain), plan_inputs(model))
    except (ModelError, VerificationError) as error:
        raise VerificationError(f"{name}: the file with inlined functions cannot be verified: {error}") from error
    return plain


def _made_up(loaded: LoadedModel) -> str:
    """A note if integers, which mean something to the model, were made up for verification."""
    if loaded.examples or not any("int" in dtype and dtype != "uint8" for dtype in loaded.dtypes):
        return ""
    return "integer inputs were verified with 0 and 1 only; give your own with --inputs FILE"


def _preprocess(loaded: LoadedModel, own: Preprocess | None, given: Preprocess | str | None) -> Preprocess | None:
    """The preprocessing for a source, as :func:`~stn_infer.data.loader.resolve_preprocess` finds it for a file."""
    import numpy as np

    from stn_infer.backends.base import TensorSpec
    from stn_infer.data.loader import resolve_preprocess

    float32 = np.dtype(np.float32)
    specs = [TensorSpec(f"input {i}", (None, *shape), float32) for i, shape in enumerate(loaded.input_shapes)]
    return resolve_preprocess(specs, own, given)


def _scores(model: onnx.ModelProto, metadata: ModelMetadata, given: str | None) -> Scores | None:
    """What the scores are: an activation at the end of the graph is a fact, whatever else is said."""
    from stn_infer.proto.activation import final_activation

    found = final_activation(model)
    own = found if found is not None and found.applied else metadata.scores or found
    return own if given is None else resolve_scores(own, given)


def _assumed(loaded: LoadedModel, metadata: ModelMetadata) -> str:
    """A note on what the file leaves open."""
    if metadata.preprocess is not None or len(loaded.input_shapes) != 1:
        return ""
    how = _preprocess(loaded, None, None)
    if how is None:
        return ""
    return (
        f"the file does not say what its pixels mean, so `run` will assume {how.describe()} with values 0..1; "
        "--preprocess stores it, for example --preprocess imagenet"
    )


def export_bytes(loaded: LoadedModel) -> bytes:
    """The portable file's bytes, verified, for running a source without writing a file.

    Raises:
        ExportError, UsageError: as :func:`build_portable`.
        VerificationError: it would not compute what the model does.
    """
    built = build_portable(loaded)
    verification = _verified(built.loaded, built.model, None)
    scores = _scores(built.model, loaded.metadata, None)
    describe(built.model, replace(loaded.metadata, batch_dependent=verification.batch_dependent, scores=scores))
    content: bytes = built.model.SerializeToString()
    return content


def _verified(loaded: LoadedModel, model: onnx.ModelProto, tolerance: float | None) -> Verification:
    from stn_infer.verification.model import verify_model

    verification = verify_model(loaded, model, tolerance=tolerance)
    try:
        verification.check(loaded.name)
    except VerificationError as error:
        if _changes(loaded):
            raise VerificationError(
                f"{error}; the model returns different outputs for the same inputs: check its forward for dropout, "
                "random numbers or state"
            ) from None
        raise
    return verification


def _changes(loaded: LoadedModel) -> bool:
    """Whether the model returns different outputs for the same inputs."""
    from stn_infer.deviation import largest_error
    from stn_infer.reference.model import Reference
    from stn_infer.reference.samples import sample_batches

    reference = Reference.of(loaded)
    inputs = sample_batches(loaded)[0].inputs
    first, again = reference.run(inputs)[0], reference.run(inputs)[0]
    return any(map(largest_error, first, again))


def _verify_other_size(loaded: LoadedModel, model: onnx.ModelProto, tolerance: float | None) -> None:
    """Verify at another size than the example's: a size baked in as a constant gives a wrong result or an error."""
    from stn_infer.torch_export.plain import other_shapes

    metadata = loaded.metadata
    if metadata.preprocess is not None:  # its size is the example's
        metadata = replace(metadata, preprocess=metadata.preprocess.unsized())
    other = replace(loaded, input_shapes=other_shapes(loaded.input_shapes), examples=(), metadata=metadata)
    sizes = "; ".join("x".join(map(str, shape[1:])) for shape in other.input_shapes if len(shape) > 2)
    try:
        _verified(other, model, tolerance)
    except (ModelError, VerificationError) as error:
        raise VerificationError(
            f"the file is right at the example's size but wrong at {sizes}: the exporter baked a size in as a constant "
            f"({error}); export it without --dynamic-size"
        ) from error


def _check_precision(
    precision: Precision, calibration: Sequence[str | Path] | None, grid_tolerance: float | None
) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not calibration:
        raise UsageError("int8 is calibrated on your own images; add --calibrate PATH")
    if precision == "fp32" and calibration:
        raise UsageError("--calibrate applies only to reduced precision; add --precision int8")
    if precision == "fp32" and grid_tolerance is not None:
        raise UsageError("--grid-tolerance applies only to reduced precision; a float32 grid's tolerance is 1e-3 px")


def _checked_metadata(
    model: onnx.ModelProto, metadata: ModelMetadata, calibration: Sequence[str | Path] | None
) -> Calibration | None:
    """Check the metadata as ``run`` will check the file's, and read the calibration samples as ``run`` does."""
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.data.batches import load_calibration
    from stn_infer.data.loader import resolve_preprocess
    from stn_infer.pipeline.decoder import Decoder
    from stn_infer.pipeline.formats import check_classes

    backend = OrtBackend(model.SerializeToString(), threads=1)
    if metadata.preprocess is not None:
        resolve_preprocess(backend.inputs, None, metadata.preprocess)
    check_classes(backend.outputs, metadata.labels)
    Decoder(metadata.decodings, backend.inputs, backend.outputs)
    if not calibration:
        return None
    how = resolve_preprocess(backend.inputs, metadata.preprocess, None)
    return load_calibration(calibration, backend.inputs, how, outputs=backend.outputs)


def _shapes(values: Sequence[onnx.ValueInfoProto]) -> tuple[str, ...]:
    described = []
    for value in values:
        sizes = [dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        described.append(f"{value.name} [{', '.join(sizes)}]")
    return tuple(described)
