"""Checkpoint to portable ONNX file: export, fuse, verify, and only then write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.errors import ExportError
from stn_infer.files import check_writable, write_atomically
from stn_infer.metadata import ModelMetadata, Preprocess

if TYPE_CHECKING:
    import onnx

    from stn_infer.graph.spatial import Finding
    from stn_infer.sources import LoadedModel
    from stn_infer.verification import Verification


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` did.

    Attributes:
        path: the file written.
        size: its size in bytes.
        findings: what became of each GridSample.
        verification: the comparison with eager PyTorch that it passed.
        inputs, outputs: name and shape of each, ``batch`` standing for the dynamic axis.
        notes: what the user should know, such as random weights.
    """

    path: Path
    size: int
    findings: tuple[Finding, ...]
    verification: Verification
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    source: str,
    output: str | Path,
    *,
    weights: str | Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    with_theta: bool = False,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    tolerance: float | None = None,
) -> ExportReport:
    """Export a trained network to a portable ONNX file (opset 18, dynamic batch) that is verified before it is written.

    Args:
        source: a shipped model's name, a recipe, a ``.pt2``, or ``package.module:factory``.
        output: the file to write; an existing one is replaced, and kept where anything fails.
        weights: a checkpoint, ``.safetensors`` or ``.pt``.
        input_shapes: one shape an input, without the batch; needed for a factory.
        with_theta: add theta [N, D, K] of every spatial transformer as outputs.
        preprocess: how images become inputs, written into the file; None: as the source says.
        labels: one name a class, written into the file; None: as the source says.
        tolerance: on the outputs' scaled error; None: 1e-5 against float64.

    Raises:
        SourceError, WeightsError: the model cannot be had.
        UsageError: it does not take inputs of these shapes, or ``preprocess`` or ``labels`` do not fit it.
        ExportError: it cannot be exported.
        VerificationError: the file would not compute what the model does; nothing is written.
        OutputError: the file cannot be written.
    """
    from stn_infer.graph.op import with_theta as add_theta
    from stn_infer.sources import load_source

    path = Path(output)
    check_writable(path)
    loaded = load_source(source, weights=None if weights is None else Path(weights), input_shapes=input_shapes)
    metadata = ModelMetadata(
        preprocess or loaded.metadata.preprocess,
        tuple(labels) if labels is not None else loaded.metadata.labels,
        loaded.name if loaded.origin == "shipped" and weights is None else "",
    )
    model, findings = build_portable(loaded)
    if with_theta:
        if not any(finding.fused for finding in findings):
            raise ExportError(f"{loaded.name}: no spatial transformer was fused, so that there is no theta to add")
        model = add_theta(model)
    _describe(model, metadata)
    content = model.SerializeToString()
    _check_metadata(content, metadata)
    verification = _verified(loaded, model, tolerance)
    write_atomically(path, content)
    notes = tuple(filter(None, (loaded.note, *verification.notes)))
    return ExportReport(
        path, len(content), findings, verification, _shapes(model.graph.input), _shapes(model.graph.output), notes
    )


def build_portable(loaded: LoadedModel) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """The portable model in memory, not yet verified, and what became of each GridSample.

    Raises:
        ExportError: it cannot be exported.
        UsageError: it does not take inputs of the shapes that ``loaded`` names.
    """
    from stn_infer.graph.export import export_plain
    from stn_infer.graph.spatial import fuse

    if loaded.fixed_batch is not None:
        raise ExportError(
            f"{loaded.name}: the .pt2 is tied to batch size {loaded.fixed_batch}; "
            "make it with torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )
    return fuse(export_plain(loaded.module, loaded.input_shapes, loaded.name))


def export_bytes(loaded: LoadedModel) -> bytes:
    """The portable file's bytes, verified, for running a source without writing a file.

    Raises:
        ExportError, UsageError: as :func:`build_portable`.
        VerificationError: it would not compute what the model does.
    """
    model, _ = build_portable(loaded)
    _describe(model, loaded.metadata)
    _verified(loaded, model, None)
    content: bytes = model.SerializeToString()
    return content


def _verified(loaded: LoadedModel, model: onnx.ModelProto, tolerance: float | None) -> Verification:
    from stn_infer.verification import verify_model

    verification = verify_model(loaded, model, tolerance=tolerance)
    verification.check(loaded.name)
    return verification


def _check_metadata(content: bytes, metadata: ModelMetadata) -> None:
    """Refuse what every later ``run`` of the file would refuse."""
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.data.loader import resolve_preprocess
    from stn_infer.outputs import make_format

    backend = OrtBackend(content, threads=1)
    if metadata.preprocess is not None:
        resolve_preprocess(backend.inputs, None, metadata.preprocess)
    make_format("npz", backend.outputs, metadata.labels)


def _describe(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    from stn_infer import __version__

    model.producer_name, model.producer_version = "stn-infer", __version__
    del model.metadata_props[:]
    for key, value in sorted(metadata.to_props().items()):
        model.metadata_props.add(key=key, value=value)


def _shapes(values: Sequence[onnx.ValueInfoProto]) -> tuple[str, ...]:
    described = []
    for value in values:
        sizes = [dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        described.append(f"{value.name} [{', '.join(sizes)}]")
    return tuple(described)
