"""Converts a PyTorch model to the portable ONNX model, not yet verified: export, fusion, metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stn_infer.errors import ExportError
from stn_infer.metadata import ModelMetadata, Precision
from stn_infer.version import __version__

if TYPE_CHECKING:
    import onnx

    from stn_infer.fusion.fuse import Finding
    from stn_infer.sources.load import LoadedModel


def build_plain(loaded: LoadedModel, precision: Precision = "fp32", dynamic_size: bool = False) -> onnx.ModelProto:
    """Exports with PyTorch's exporter, in float32 at the opset that ``precision`` requires.

    Raises:
        ExportError, UsageError: as for :func:`build_portable`.
    """
    from stn_infer.torch_export.plain import BF16_OPSET, OPSET, export_plain

    if loaded.fixed_batch is not None:
        raise ExportError(
            f"{loaded.name}: the .pt2 is tied to batch size {loaded.fixed_batch}; "
            "make it with torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )
    opset = BF16_OPSET if precision == "bf16" else OPSET
    return export_plain(loaded.module, loaded.input_shapes, loaded.name, dynamic_size, opset=opset)


def build_portable(
    loaded: LoadedModel, precision: Precision = "fp32", dynamic_size: bool = False
) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """Returns the portable float32 model in memory, not yet verified, and one finding per GridSample.

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

    plain = build_plain(loaded, precision, dynamic_size)
    if not dynamic_size:
        return fuse(plain)
    names = [value.name for value in plain.graph.input]
    sizes = (loaded.input_shapes, other_shapes(loaded.input_shapes))
    return fuse(plain, [dict(zip(names, shapes, strict=True)) for shapes in sizes])


def file_metadata(loaded: LoadedModel, precision: Precision = "fp32") -> ModelMetadata:
    """Returns the metadata of a file made from ``loaded``; a source is named only if it is a shipped model."""
    source = loaded.name if loaded.origin == "shipped" else ""
    return ModelMetadata(loaded.metadata.preprocess, loaded.metadata.labels, source, precision)


def describe(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Writes the producer and ``metadata`` to ``model``; replaces all other metadata."""
    model.producer_name, model.producer_version = "stn-infer", __version__
    del model.metadata_props[:]
    for key, value in sorted(metadata.to_props().items()):
        model.metadata_props.add(key=key, value=value)
