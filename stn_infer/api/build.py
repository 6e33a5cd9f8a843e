"""``build``: an ONNX file or a source to a TensorRT engine with its sidecar."""

from __future__ import annotations

from pathlib import Path

from stn_infer.backends.tensorrt.engine import BuildOptions, Engine, build_or_reuse, check_runtime, request_engine
from stn_infer.backends.tensorrt.engine_cache import EngineCache, default_cache_folder, load_engine, write_engine
from stn_infer.errors import ModelError
from stn_infer.files import check_writable


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
    check_runtime(options)
    name, content = _resolved(model)
    request = request_engine(content, options, name)
    if not rebuild:
        try:
            data, sidecar = load_engine(path)
        except ModelError:
            sidecar = None  # missing or damaged: it is built again
        if sidecar is not None and sidecar.key == request.key:
            return Engine(data, sidecar, False, "it is up to date", request.notes)
    engine = build_or_reuse(request, EngineCache(cache or default_cache_folder()), rebuild, path)
    write_engine(path, engine.data, engine.sidecar)
    return engine


def _resolved(source: str | Path) -> tuple[str, Path | bytes]:
    """(what to call it, the ONNX file or its bytes)."""
    if str(source).endswith(".onnx"):
        return str(source), Path(source)
    from stn_infer.api.export import export_bytes
    from stn_infer.sources.load import load_source

    loaded = load_source(str(source))
    return loaded.name, export_bytes(loaded)
