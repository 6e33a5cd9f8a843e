"""A PyTorch model to the portable ONNX file, not yet verified: export, repair, fuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stn_infer.errors import ExportError
from stn_infer.metadata import Precision

if TYPE_CHECKING:
    import onnx

    from stn_infer.fusion.fuse import Finding
    from stn_infer.sources.load import LoadedModel


def build_portable(
    loaded: LoadedModel, precision: Precision = "fp32", dynamic_size: bool = False
) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """The portable float32 model in memory, not yet verified, and what became of each GridSample.

    Args:
        loaded: the source.
        precision: the file's opset is what this needs.
        dynamic_size: leave height and width of image inputs open.

    Raises:
        ExportError: it cannot be exported.
        UsageError: it does not take inputs of the shapes that ``loaded`` names.
    """
    from stn_infer.fusion.fuse import fuse
    from stn_infer.torch_export.plain import BF16_OPSET, OPSET, export_plain, other_shapes

    if loaded.fixed_batch is not None:
        raise ExportError(
            f"{loaded.name}: the .pt2 is tied to batch size {loaded.fixed_batch}; "
            "make it with torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )
    opset = BF16_OPSET if precision == "bf16" else OPSET
    plain = export_plain(loaded.module, loaded.input_shapes, loaded.name, dynamic_size, opset=opset)
    if not dynamic_size:
        return fuse(plain)
    names = [value.name for value in plain.graph.input]
    sizes = (loaded.input_shapes, other_shapes(loaded.input_shapes))
    return fuse(plain, [dict(zip(names, shapes, strict=True)) for shapes in sizes])
