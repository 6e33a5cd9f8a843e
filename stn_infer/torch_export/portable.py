"""Converts a PyTorch model to the portable ONNX model, not yet verified: export, fusion, metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stn_infer.metadata import ModelMetadata, Precision
from stn_infer.progress import step
from stn_infer.version import __version__

if TYPE_CHECKING:
    import onnx

    from stn_infer.fusion.fuse import Finding
    from stn_infer.sources.load import LoadedModel
    from stn_infer.torch_export.plain import PlainExport


@dataclass(frozen=True)
class Portable:
    """A portable float32 model in memory, not yet verified.

    Attributes:
        model: the model.
        findings: one per GridSample.
        loaded: its source, with the batch size that the model is fixed to.
        notes: remarks of the export for the user.
        torch_seconds: CPU time of PyTorch's exporter.
    """

    model: onnx.ModelProto
    findings: tuple[Finding, ...]
    loaded: LoadedModel
    notes: tuple[str, ...] = ()
    torch_seconds: float = 0.0


def build_plain(loaded: LoadedModel, precision: Precision = "fp32", dynamic_size: bool = False) -> PlainExport:
    """Exports with PyTorch's exporter, in float32 at the opset that ``precision`` requires.

    Raises:
        ExportError, UsageError: as for :func:`build_portable`.
    """
    from stn_infer.torch_export.plain import BF16_OPSET, OPSET, export_program

    step(f"exporting {loaded.name} with torch.onnx.export")
    return export_program(loaded, dynamic_size, opset=BF16_OPSET if precision == "bf16" else OPSET)


def build_portable(loaded: LoadedModel, precision: Precision = "fp32", dynamic_size: bool = False) -> Portable:
    """Exports and fuses a source.

    Args:
        loaded: the source.
        precision: determines the file's opset.
        dynamic_size: export dynamic height and width of image inputs.

    Raises:
        ExportError: the model cannot be exported.
        UsageError: the model does not accept inputs of the shapes given by ``loaded``.
    """
    from stn_infer.fusion.fuse import fuse
    from stn_infer.torch_export.plain import other_shapes

    exported = build_plain(loaded, precision, dynamic_size)
    sizes: list[dict[str, tuple[int, ...]]] = []
    if dynamic_size:
        names = [value.name for value in exported.model.graph.input]
        both = (loaded.input_shapes, other_shapes(loaded.input_shapes))
        sizes = [dict(zip(names, shapes, strict=True)) for shapes in both]
    step("fusing spatial transformers")
    model, findings = fuse(exported.model, sizes)
    if exported.fixed_batch is not None:
        loaded = replace(loaded, fixed_batch=exported.fixed_batch)
    loaded = replace(loaded, batch_axes=exported.batch_axes)
    return Portable(model, findings, loaded, exported.notes, exported.torch_seconds)


def file_metadata(loaded: LoadedModel, precision: Precision = "fp32") -> ModelMetadata:
    """Returns the metadata of a file made from ``loaded``; a source is named only if it is a shipped model."""
    source = loaded.name if loaded.origin == "shipped" else ""
    return replace(loaded.metadata, source=source, precision=precision)


def describe(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Writes the producer and ``metadata`` to ``model``; replaces all other metadata."""
    model.producer_name, model.producer_version = "stn-infer", __version__
    from onnx.helper import set_model_props

    set_model_props(model, dict(sorted(metadata.to_props().items())))
