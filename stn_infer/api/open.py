"""Open a model from any source in any backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.source import EngineFile, OnnxModel, names_the_file, resolve
from stn_infer.budget import Budget
from stn_infer.errors import SourceError, UsageError
from stn_infer.extras import is_installed, require
from stn_infer.pipeline.formats import has_classes
from stn_infer.progress import step
from stn_infer.sources.load import ENGINE_PROBLEM, LoadedModel

if TYPE_CHECKING:
    from torch import nn

    from stn_infer.backends.base import Backend
    from stn_infer.sources.reference import WeightsLike

BACKENDS = ("ort", "eager", "compile", "openvino", "tensorrt", "tensorrt-rtx")


@names_the_file
def open_backend(
    model: str | Path | bytes | LoadedModel | nn.Module,
    backend: str = "ort",
    device: str = "cpu",
    threads: int | None = None,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
    graphs: bool = False,
) -> Backend:
    """Open ``model`` in a backend.

    Args:
        model: an ONNX file, the bytes of one, a module, a loaded model, or any source that ``stn-infer export`` takes
            (a shipped model's name, a recipe, a ``.pt2``, ``package.module:factory``).
        backend: ``ort``, ``eager``, ``compile``, ``openvino`` (on the CPU), ``tensorrt`` or ``tensorrt-rtx``.
            ``eager`` and ``compile`` run PyTorch and cannot take an ONNX file; the others export a source in memory
            first. TensorRT also takes engines.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: threads inside one operator; None: the runtime's default.
        weights: a checkpoint for a source, as for ``export``.
        input_shapes: the shapes of a source's inputs, as for ``export``.
        allow_code: as for ``export``.
        budget: as for ``lint``.
        graphs: whether ``ort`` may use CUDA graphs on a GPU. onnxruntime records them in CUDA's strictest mode, in
            which no other thread of the process may use a GPU; the other backends use them without this condition.

    Raises:
        UsageError: an unknown backend or device, or an ONNX file for a PyTorch backend.
        SourceError, ModelError, ExportError: the model cannot be loaded, or the runtime cannot run it.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    found = resolve(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    return open_resolved(found, backend, device, threads, budget, graphs)


def open_resolved(
    found: OnnxModel | EngineFile | LoadedModel,
    backend: str,
    device: str = "cpu",
    threads: int | None = None,
    budget: Budget | None = None,
    graphs: bool = False,
) -> Backend:
    """:func:`open_backend` for a resolved source; raises as there."""
    step(f"opening the model in {backend}")
    opened = _opened(found, backend, device, threads, budget, graphs)
    if isinstance(found, OnnxModel) and opened.metadata.scores is None and has_classes(opened.outputs):
        from stn_infer.proto.activation import with_scores

        opened.metadata = with_scores(found.read(), opened.metadata)
    return opened


def _opened(
    found: OnnxModel | EngineFile | LoadedModel,
    backend: str,
    device: str,
    threads: int | None,
    budget: Budget | None,
    graphs: bool,
) -> Backend:
    if backend in ("tensorrt", "tensorrt-rtx"):
        require("torch", "engines need")  # it holds their inputs and outputs on the GPU
        from stn_infer.backends.tensorrt.backend import open_engine, open_tensorrt

        if isinstance(found, EngineFile):
            return open_engine(found.path, backend, device)
        name = found.name if isinstance(found, LoadedModel) else None
        return open_tensorrt(exported(found), backend, device, name=name, budget=budget)
    if isinstance(found, EngineFile):
        raise SourceError(f"{found.path} {ENGINE_PROBLEM}")
    if backend == "ort":
        if graphs and device != "cpu" and is_installed("torch"):  # which holds the memory of CUDA graphs
            from stn_infer.backends.ort_graphs import GraphedOrtBackend

            return GraphedOrtBackend(exported(found), device, threads)
        from stn_infer.backends.ort import OrtBackend

        return OrtBackend(exported(found), device, threads)
    if backend == "openvino":
        from stn_infer.backends.openvino.backend import OpenVinoBackend
        from stn_infer.backends.openvino.trial import try_openvino

        if isinstance(found, OnnxModel):
            try_openvino(found.content, found.name, budget)
        return OpenVinoBackend(exported(found), device, threads)
    if isinstance(found, OnnxModel):
        raise UsageError(
            f"backend {backend!r} runs PyTorch models, not an ONNX file; use --backend ort, or give the model's source"
        )
    from stn_infer.backends.eager import EagerBackend

    return EagerBackend(found, device, compile=backend == "compile", threads=threads)


def exported(found: OnnxModel | LoadedModel) -> Path | bytes:
    """The ONNX file or its bytes; a PyTorch model is exported in memory and verified."""
    if isinstance(found, OnnxModel):
        return found.content
    from stn_infer.api.export import export_bytes

    return export_bytes(found)
