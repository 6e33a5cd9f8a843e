"""The ways of running a model that a benchmark compares, and why one cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.errors import StnInferError

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.base import Backend
    from stn_infer.sources import LoadedModel

#: Name to what it is.
VARIANTS = {
    "eager": "PyTorch as it is",
    "compile": "torch.compile, compiled for each batch size",
    "ort-plain": "onnxruntime on the file that torch.onnx.export writes",
    "ort": "onnxruntime on the file that stn-infer writes, its spatial transformers as plain ONNX",
    "ort-fused": "onnxruntime on the same file, its spatial transformers by the plugin library's op",
}


@dataclass(frozen=True)
class Variant:
    """One way of running the model: an open backend, or the reason why there is none."""

    name: str
    backend: Backend | None
    reason: str = ""


def open_variants(
    names: tuple[str, ...], loaded: LoadedModel, portable: Path | None, device: str, threads: int | None
) -> tuple[Variant, ...]:
    """Open each of ``names``; one that fails keeps its reason instead.

    Args:
        names: keys of :data:`VARIANTS`.
        loaded: the model in PyTorch.
        portable: a file that stn-infer wrote; None: it is made from ``loaded`` in memory.
        device, threads: as for :func:`stn_infer.backends.open_backend`.
    """
    files = _Files(loaded)
    openers: dict[str, Callable[[], Backend]] = {
        "eager": lambda: _torch(loaded, device, threads, False),
        "compile": lambda: _torch(loaded, device, threads, True),
        "ort-plain": lambda: _ort(files.plain.SerializeToString(), device, threads, False),
        "ort": lambda: _ort(portable or files.portable, device, threads, False),
        "ort-fused": lambda: _ort(portable or files.portable, device, threads, True),
    }
    return tuple(_open(name, openers[name]) for name in names)


class _Files:
    """The exported files in memory; the export, which takes seconds, is made once."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @cached_property
    def plain(self) -> onnx.ModelProto:
        from stn_infer.graph.export import export_plain

        return export_plain(self._loaded.module, self._loaded.input_shapes, self._loaded.name)

    @cached_property
    def portable(self) -> bytes:
        from stn_infer.graph.spatial import fuse

        content: bytes = fuse(self.plain)[0].SerializeToString()
        return content


def _open(name: str, opener: Callable[[], Backend]) -> Variant:
    try:
        return Variant(name, opener())
    except StnInferError as error:
        return Variant(name, None, str(error))


def _torch(loaded: LoadedModel, device: str, threads: int | None, compile: bool) -> Backend:
    from stn_infer.backends.eager import EagerBackend

    return EagerBackend(loaded, device, compile=compile, threads=threads)


def _ort(model: Path | bytes, device: str, threads: int | None, plugin: bool) -> Backend:
    from stn_infer.backends.ort import OrtBackend

    # Threads of a session that is not running must sleep: they would take the cores of the next variant.
    return OrtBackend(model, device, threads, spin="while-running", plugin=plugin)
