"""ONNX file to TensorRT engine: kept with a sidecar that says what it was built from, built again only for a reason."""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stn_infer.engines.cache import (
    EngineCache,
    EngineKey,
    Sidecar,
    default_cache_folder,
    load_engine,
    read_sidecar,
    why_stale,
    write_engine,
)
from stn_infer.engines.profiles import Profile, resolve_profiles
from stn_infer.engines.runtime import Gpu, RuntimeName, TensorRT, current_gpu, load_runtime
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.files import check_writable

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources.load import LoadedModel

_OLDEST = (10, 1)  # IPluginV3 in the parser, and this project's flags


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        target: an architecture such as ``sm89`` (TensorRT-RTX only); None: the GPU that is there.
        profile: shapes of the dynamic inputs; None: batches of 1 to 256.
        plugin: True: our plugin runs the spatial transformers, False: TensorRT's own layers; None: the plugin where
            there is one.
        tf32: allow TF32, which moves samples by 0.1 pixels at a width of 1,000.
        device: index of the GPU.
    """

    runtime: RuntimeName = "tensorrt"
    target: str | None = None
    profile: Profile | None = None
    plugin: bool | None = None
    tf32: bool = False
    device: int = 0


@dataclass(frozen=True)
class Engine:
    """An engine in memory: its bytes, what they are, whether they were built now, and why (or why not)."""

    data: bytes
    sidecar: Sidecar
    built: bool
    reason: str
    notes: tuple[str, ...] = ()


def build(
    model: str | Path,
    output: str | Path,
    options: BuildOptions | None = None,
    *,
    cache: Path | None = None,
    rebuild: bool = False,
) -> Engine:
    """Build an engine and write it, with its sidecar, to ``output``.

    Args:
        model: an ``.onnx`` file or any source that ``stn-infer export`` takes.
        output: the engine's file; one that is up to date is left alone.
        options: how.
        cache: the folder of the engine cache; None: the user's.
        rebuild: build even where the same engine is there.

    Raises:
        UsageError: options that don't go together, or a profile that the model doesn't take.
        MissingDependencyError: the runtime, the plugin library or the GPU is missing.
        ModelError, SourceError: the model cannot be had, or the runtime refuses it.
        OutputError: ``output`` or the cache cannot be written.
    """
    options, path = options or BuildOptions(), Path(output)
    check_writable(path)
    request = _request(model, options)
    if not rebuild:
        try:
            data, sidecar = load_engine(path)
        except ModelError:
            sidecar = None  # missing or damaged: it is built again
        if sidecar is not None and sidecar.key == request.key:
            return Engine(data, sidecar, False, "it is up to date", request.notes)
    engine = _from_cache(request, EngineCache(cache or default_cache_folder()), rebuild, _previous(path))
    write_engine(path, engine.data, engine.sidecar)
    return engine


def engine_for(model: str | Path | bytes | LoadedModel, options: BuildOptions, *, cache: Path | None = None) -> Engine:
    """The engine of ``model``, from the cache or built into it; raises as ``build`` does.

    ``model`` may also be the bytes of an ONNX file, or a loaded model.
    """
    return _from_cache(_request(model, options), EngineCache(cache or default_cache_folder()), False, None)


@dataclass(frozen=True)
class _Request:
    """A model and the options, worked out: everything but the building."""

    source: str
    model: onnx.ModelProto
    runtime: TensorRT
    options: BuildOptions
    plugin: Path | None
    key: EngineKey
    notes: tuple[str, ...]


def _request(source: str | Path | bytes | LoadedModel, options: BuildOptions) -> _Request:
    runtime = load_runtime(options.runtime)
    if runtime.name == "tensorrt" and runtime.release < _OLDEST:
        raise MissingDependencyError(f"TensorRT {runtime.version} is too old; 10.1 or newer is needed")
    plugin, notes = _plugin_library(options)
    gpu = _target(runtime, options)
    name, model = _read(source)
    if plugin is not None and not _has_sampler(model):
        plugin, notes = None, ("the model has no spatial transformer for the plugin",)
    graph, weights = _hashes(model)
    key = EngineKey(
        graph_sha256=graph,
        weights_sha256=weights,
        runtime=runtime.name,
        runtime_version=runtime.version,
        gpu=gpu.name,
        sm=gpu.sm,
        plugin_sha256="" if plugin is None else hashlib.sha256(plugin.read_bytes()).hexdigest(),
        profiles=resolve_profiles(model, options.profile),
        precision="+".join(_precisions(model)),
        flags=("tf32",) if options.tf32 else (),
    )
    return _Request(name, model, runtime, options, plugin, key, notes)


def _from_cache(request: _Request, cache: EngineCache, rebuild: bool, previous: Sidecar | None) -> Engine:
    found = None if rebuild else cache.find(request.key)
    if found is not None:
        return Engine(*found, False, "the same engine is in the cache", request.notes)
    if rebuild:
        reason = "it was asked for"
    elif previous is not None and previous.key != request.key:
        reason = why_stale(request.key, previous)
    else:
        reason = cache.why_missing(request.key, request.source)
    engine = Engine(*_build(request), True, reason, request.notes)
    cache.store(engine.data, engine.sidecar)
    return engine


def _build(request: _Request) -> tuple[bytes, Sidecar]:
    from stn_infer.engines.builder import build_plan, prepare

    start = time.perf_counter()
    with _on_device(request):
        plan = build_plan(
            request.runtime,
            prepare(request.model, request.runtime, plugin=request.plugin is not None),
            request.key.profiles,
            target=request.options.target if request.runtime.name == "tensorrt-rtx" else None,
            plugin=request.plugin,
            tf32=request.options.tf32,
        )
    sidecar = Sidecar(
        key=request.key,
        engine_sha256=hashlib.sha256(plan.engine).hexdigest(),
        engine_size=len(plan.engine),
        source=request.source,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        build_seconds=round(time.perf_counter() - start, 3),
        fused=plan.fused,
        metadata={entry.key: entry.value for entry in request.model.metadata_props},
    )
    return plan.engine, sidecar


def _on_device(request: _Request) -> AbstractContextManager[Any]:
    """TensorRT builds for whichever GPU is the current one; a target that is named needs none."""
    if not request.key.gpu:
        return nullcontext()
    import torch

    return torch.cuda.device(request.options.device)


def _read(source: str | Path | bytes | LoadedModel) -> tuple[str, onnx.ModelProto]:
    """(what to call it, the ONNX model)."""
    if isinstance(source, (str, Path)) and str(source).endswith(".onnx"):
        from stn_infer.graph.load import load_model

        return str(source), load_model(Path(source))
    import onnx

    if isinstance(source, bytes):
        from stn_infer.graph.load import parse_model

        model = parse_model(source)
        return model.graph.name or "the model", model
    from stn_infer.exporter import export_bytes
    from stn_infer.sources.load import load_source

    loaded = load_source(str(source)) if isinstance(source, (str, Path)) else source
    return loaded.name, onnx.load_from_string(export_bytes(loaded))


def _has_sampler(model: onnx.ModelProto) -> bool:
    from stn_infer.graph.op import DOMAIN

    return any(node.domain == DOMAIN or node.op_type == "GridSample" for node in model.graph.node)


def _previous(path: Path) -> Sidecar | None:
    try:
        return read_sidecar(path)
    except ModelError:
        return None


def _plugin_library(options: BuildOptions) -> tuple[Path | None, tuple[str, ...]]:
    """The plugin library to use, if any, and what to tell the user about that."""
    if options.runtime == "tensorrt-rtx":
        if options.plugin:
            raise UsageError(
                "TensorRT-RTX takes no plugins of users; build with --native (its own layers) or --runtime tensorrt"
            )
        return None, ()
    if options.plugin is False:
        return None, ()
    try:
        return _cuda_library(), ()
    except MissingDependencyError as error:
        if options.plugin:
            raise
        return None, (f"native layers, no plugin: {error}",)


def _cuda_library() -> Path:
    from stn_infer import plugin

    if not plugin.load().stn_has_cuda():
        raise MissingDependencyError(
            f"{plugin.library_path()} was built without CUDA; `stn-infer plugin build` where nvcc is installed"
        )
    return plugin.library_path()


def _target(runtime: TensorRT, options: BuildOptions) -> Gpu:
    """What to build for."""
    if runtime.name == "tensorrt":
        gpu = current_gpu(options.device)
        if options.target not in (None, gpu.sm):
            raise UsageError(f"TensorRT builds for the GPU it runs on, {gpu}, not for {options.target}")
        return gpu
    targets = sorted(name.lower() for name in dir(runtime.module.ComputeCapability) if re.fullmatch(r"SM\d+", name))
    if options.target is not None:
        gpu = Gpu("", options.target)
    else:
        try:
            gpu = current_gpu(options.device)
        except MissingDependencyError as error:
            raise MissingDependencyError(f"{error}; `stn-infer build --target sm89` builds for one elsewhere") from None
    if gpu.sm not in targets:
        raise UsageError(f"TensorRT-RTX {runtime.version} has the targets {', '.join(targets)}, not {gpu}")
    return gpu


def _hashes(model: onnx.ModelProto) -> tuple[str, str]:
    """SHA-256 of the graph without its initializers' values, and of those values."""
    import onnx
    from onnx import numpy_helper

    weights = hashlib.sha256()
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for tensor in sorted(graph.graph.initializer, key=lambda tensor: tensor.name):
        weights.update(f"{tensor.name}\0{tensor.data_type}\0{list(tensor.dims)}\0".encode())
        weights.update(numpy_helper.to_array(tensor).tobytes())
        empty: Any = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(empty)
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(), weights.hexdigest()


def _precisions(model: onnx.ModelProto) -> list[str]:
    """The floating-point types of the file's inputs and weights: what the engine, being strongly typed, computes in."""
    from onnx import TensorProto

    names = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
        TensorProto.DOUBLE: "float64",
    }
    found = {tensor.data_type for tensor in model.graph.initializer}
    found |= {value.type.tensor_type.elem_type for value in model.graph.input}
    return sorted(names[kind] for kind in found if kind in names)
