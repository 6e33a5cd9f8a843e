"""One call that opens a model, whatever it comes from, in the backend that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.errors import UsageError

if TYPE_CHECKING:
    from stn_infer.backends.base import Backend
    from stn_infer.sources.load import LoadedModel

BACKENDS = ("ort", "eager", "compile", "tensorrt", "tensorrt-rtx")


def open_backend(
    model: str | Path | bytes | LoadedModel,
    backend: str = "ort",
    device: str = "cpu",
    threads: int | None = None,
) -> Backend:
    """Open ``model`` in a backend.

    Args:
        model: an ``.onnx`` file, the bytes of one, a loaded model, or any source that ``stn-infer export`` takes
            (a shipped model's name, a recipe, a ``.pt2``, ``package.module:factory``).
        backend: ``ort``, ``eager``, ``compile``, ``tensorrt`` or ``tensorrt-rtx``. ``eager`` and ``compile`` run
            PyTorch and cannot take an ONNX file; the others export a source in memory first. TensorRT also takes
            engines.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: threads inside one operator; None: the runtime's own choice.

    Raises:
        UsageError: an unknown backend or device, or an ONNX file for a PyTorch backend.
        SourceError, ModelError, ExportError: the model cannot be had, or the runtime refuses it.
    """
    if backend not in BACKENDS:
        raise UsageError(f"a backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend in ("tensorrt", "tensorrt-rtx"):
        from stn_infer.backends.tensorrt.backend import ENGINE_SUFFIXES, open_tensorrt

        if isinstance(model, (str, Path)) and str(model).endswith((".onnx", *ENGINE_SUFFIXES)):
            return open_tensorrt(Path(model), backend, device)
        if isinstance(model, bytes):
            return open_tensorrt(model, backend, device)
        from stn_infer.api.export import export_bytes

        loaded = _loaded(model)
        return open_tensorrt(export_bytes(loaded), backend, device, name=loaded.name)
    is_onnx = isinstance(model, bytes) or (isinstance(model, (str, Path)) and str(model).endswith(".onnx"))
    if is_onnx and backend != "ort":
        raise UsageError(
            f"backend {backend!r} runs PyTorch models, not an ONNX file; use --backend ort, or give the model's source"
        )
    if backend == "ort":
        from stn_infer.backends.ort import OrtBackend

        if isinstance(model, bytes):
            return OrtBackend(model, device, threads)
        if isinstance(model, (str, Path)) and is_onnx:
            return OrtBackend(Path(model), device, threads)
        from stn_infer.api.export import export_bytes

        return OrtBackend(export_bytes(_loaded(model)), device, threads)

    from stn_infer.backends.eager import EagerBackend

    return EagerBackend(_loaded(model), device, compile=backend == "compile", threads=threads)


def _loaded(model: str | Path | bytes | LoadedModel) -> LoadedModel:
    if isinstance(model, (str, Path)):
        from stn_infer.sources.load import load_source

        return load_source(str(model))
    assert not isinstance(model, bytes), "bytes are an ONNX file"
    return model
