"""Builds a TensorRT engine from an ONNX model, or reuses a cached one whose sidecar matches."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.backends.tensorrt.compatibility import check_settings, key_gpu
from stn_infer.backends.tensorrt.engine_cache import (
    EngineCache,
    EngineKey,
    Sidecar,
    default_cache_folder,
    read_sidecar,
    why_stale,
)
from stn_infer.backends.tensorrt.identity import hashes, structure, weight_hashes
from stn_infer.backends.tensorrt.options import BuildOptions
from stn_infer.backends.tensorrt.profiles import resolve_profiles
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT, current_device, current_gpu, load_runtime
from stn_infer.backends.tensorrt.timing_cache import TimingCache
from stn_infer.budget import Budget
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.plugin import sha256_of
from stn_infer.progress import step

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.tensorrt.builder import Plan

_OLDEST = (10, 1)  # the first version with IPluginV3 in the parser and the builder flags used here


@dataclass(frozen=True)
class Engine:
    """An engine in memory: its bytes and sidecar, whether it was built now, and why (or why not).

    ``warnings`` are those that TensorRT gave while it was built now.
    """

    data: bytes
    sidecar: Sidecar
    built: bool
    reason: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def engine_for(
    model: Path | bytes,
    options: BuildOptions,
    *,
    name: str | None = None,
    cache: Path | None = None,
    budget: Budget | None = None,
) -> Engine:
    """The engine of an ONNX file or its bytes, from the cache or built and cached; raises the errors of ``build``."""
    request = request_engine(model, options, name)
    return build_or_reuse(request, EngineCache(cache or default_cache_folder()), False, None, budget)


@dataclass(frozen=True)
class EngineRequest:
    """A model with resolved build options and cache key, ready to build; ``gpu`` is the one it is built for."""

    source: str
    model: onnx.ModelProto
    runtime: TensorRT
    options: BuildOptions
    gpu: Gpu
    plugin: Path | None
    key: EngineKey
    notes: tuple[str, ...]


def check_runtime(options: BuildOptions) -> tuple[TensorRT, Gpu, Path | None, tuple[str, ...]]:
    """The runtime, the GPU to build for, the plugin library and notes on it, checked before any other work.

    Raises:
        MissingDependencyError: the runtime, a GPU or the plugin library is missing.
        UsageError: incompatible options.
        OutputError: the named timing cache cannot be written.
    """
    runtime = load_runtime(options.runtime)
    if runtime.name == "tensorrt" and runtime.release < _OLDEST:
        raise MissingDependencyError(f"TensorRT {runtime.version} is too old; 10.1 or newer is required")
    plugin, notes = _plugin_library(options)
    gpu = _target(runtime, options)
    check_settings(options, runtime, gpu)
    if options.timing_cache is not None:
        if runtime.name == "tensorrt-rtx":
            raise UsageError("TensorRT-RTX measures no kernels when it builds; leave out --timing-cache")
        TimingCache(options.timing_cache).check()
    return runtime, gpu, plugin, notes


def request_engine(content: Path | bytes, options: BuildOptions, name: str | None = None) -> EngineRequest:
    """The build request for an ONNX file or its bytes; ``name`` is the model's name in messages.

    Raises:
        MissingDependencyError: the runtime, a GPU or the plugin library is missing.
        UsageError: incompatible options, or a profile that does not match the model.
        ModelError: the file is missing or unreadable.
    """
    from stn_infer.proto.load import load_model, parse_model

    runtime, gpu, plugin, notes = check_runtime(options)
    model = parse_model(content) if isinstance(content, bytes) else load_model(content)
    name = name or (str(content) if isinstance(content, Path) else model.graph.name or "the model")
    if plugin is not None and not _has_sampler(model):
        plugin, notes = None, ("the model has no spatial transformer for the plugin",)
    graph, weights = hashes(model)
    runs_on = key_gpu(gpu, options.hardware)
    key = EngineKey(
        graph_sha256=graph,
        weights_sha256=weights,
        runtime=runtime.name,
        runtime_version=runtime.version,
        gpu=runs_on.name,
        sm=runs_on.sm,
        plugin_sha256="" if plugin is None else sha256_of(plugin),
        profiles=resolve_profiles(model, options.profile),
        precision="+".join(_precisions(model)),
        flags=options.flags,
    )
    return EngineRequest(name, model, runtime, options, gpu, plugin, key, notes)


def build_or_reuse(
    request: EngineRequest, cache: EngineCache, rebuild: bool, path: Path | None, budget: Budget | None = None
) -> Engine:
    """The engine from the cache, else built and cached.

    Args:
        request: the model and how to build it.
        cache: where engines are looked up and stored.
        rebuild: whether to build it in any case.
        path: the previously built engine, if any.
        budget: limits for parsing the model, in a process of its own; None: the environment's.
    """
    previous = None if path is None else _previous(path)
    with cache.locked(request.key):
        found = None if rebuild else cache.find(request.key)
        if found is not None:
            return Engine(*found, False, "the same engine is in the cache", request.notes)
        if rebuild:
            reason = "it was requested"
        elif previous is not None and previous.key != request.key:
            reason = why_stale(request.key, previous)
        else:
            reason = cache.why_missing(request.key, request.source)
        step(f"building an engine for {request.key.gpu or request.key.sm}: {reason}")
        plan, sidecar = _build(request, _timing(request, cache, fresh=rebuild), budget)
        engine = Engine(plan.engine, sidecar, True, reason, request.notes, plan.warnings)
        cache.store(engine.data, engine.sidecar)
    return engine


def _timing(request: EngineRequest, cache: EngineCache, fresh: bool) -> TimingCache | None:
    """The file with the times of kernels; ``fresh``: one that the user did not name is not read."""
    if request.runtime.name == "tensorrt-rtx":
        return None
    if request.options.timing_cache is not None:
        return TimingCache(request.options.timing_cache, named=True)
    return TimingCache(cache.timing_path(request.runtime.version, str(request.gpu)), fresh=fresh)


def _build(request: EngineRequest, timing: TimingCache | None, budget: Budget | None) -> tuple[Plan, Sidecar]:
    from stn_infer.backends.tensorrt.builder import build_plan, prepare
    from stn_infer.backends.tensorrt.trial import try_parser

    start = time.perf_counter()
    prepared = prepare(request.model, request.runtime, plugin=request.plugin is not None)
    device = request.options.device if request.gpu.name else None
    try_parser(prepared, request.runtime.name, request.plugin, request.source, device, budget)
    with current_device(device):
        plan = build_plan(
            request.runtime,
            prepared,
            request.key.profiles,
            target=request.options.target if request.runtime.name == "tensorrt-rtx" else None,
            plugin=request.plugin,
            settings=request.options,
            timing=timing,
        )
    sidecar = Sidecar(
        key=request.key,
        engine_sha256=hashlib.sha256(plan.engine).hexdigest(),
        engine_size=len(plan.engine),
        source=request.source,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        build_seconds=round(time.perf_counter() - start, 3),
        fused=plan.fused,
        metadata=metadata_of(request.model),
        batch_axes=_batch_axes(request.model),
        structure=structure(request.model) if request.options.refittable else "",
        weights=weight_hashes(request.model) if request.options.refittable else {},
    )
    return plan, sidecar


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's ``metadata_props``, with what its graph shows and an engine no longer does."""
    from stn_infer.proto.activation import with_scores

    props = {entry.key: entry.value for entry in model.metadata_props}
    return props | with_scores(model, ModelMetadata.from_props(props)).to_props()


def _batch_axes(model: onnx.ModelProto) -> dict[str, str]:
    """The name of axis 0 of each input and output where it has one; an engine keeps no names."""
    from stn_infer.proto.traversal import given_inputs

    shapes = {
        value.name: value.type.tensor_type.shape.dim for value in (*given_inputs(model.graph), *model.graph.output)
    }
    return {name: dims[0].dim_param for name, dims in shapes.items() if dims and dims[0].dim_param}


def _has_sampler(model: onnx.ModelProto) -> bool:
    from stn_infer.fusion.op import DOMAIN

    return any(node.domain == DOMAIN or node.op_type == "GridSample" for node in model.graph.node)


def _previous(path: Path) -> Sidecar | None:
    try:
        return read_sidecar(path)
    except ModelError:
        return None


def _plugin_library(options: BuildOptions) -> tuple[Path | None, tuple[str, ...]]:
    """The plugin library to use, if any, and notes for the user."""
    if options.runtime == "tensorrt-rtx":
        if options.plugin:
            raise UsageError(
                "TensorRT-RTX does not support custom plugins; build with --native (its own layers) or "
                "--runtime tensorrt"
            )
        return None, ()
    if options.plugin is False:
        return None, ()
    if options.version_compatible:
        if options.plugin:
            raise UsageError("a version-compatible engine has TensorRT's own layers only; build with --native")
        return None, ("native layers, no plugin: the engine is version-compatible",)
    try:
        return _cuda_library(options.device), ()
    except MissingDependencyError as error:
        if options.plugin:
            raise
        return None, (f"native layers, no plugin: {error}",)


def _cuda_library(device: int) -> Path:
    from stn_infer import plugin

    plugin.require("cuda", device)
    return plugin.library_path()


def _target(runtime: TensorRT, options: BuildOptions) -> Gpu:
    """The GPU to build for."""
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
            raise MissingDependencyError(
                f"{error}; `stn-infer build --target sm89` builds for another machine"
            ) from None
    if gpu.sm not in targets:
        raise UsageError(f"TensorRT-RTX {runtime.version} supports the targets {', '.join(targets)}, not {gpu}")
    return gpu


def _precisions(model: onnx.ModelProto) -> list[str]:
    """The floating-point types of the model's inputs and weights, in which a strongly typed engine computes."""
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
