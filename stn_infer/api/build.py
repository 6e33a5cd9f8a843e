"""``build``: build a TensorRT engine with its sidecar from an ONNX file or a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stn_infer.api.open import exported
from stn_infer.api.source import OnnxModel, names_the_file, resolve_model
from stn_infer.backends.tensorrt.engine import BuildOptions, Engine, build_or_reuse, check_runtime, request_engine
from stn_infer.backends.tensorrt.engine_cache import EngineCache, default_cache_folder, load_engine, write_engine
from stn_infer.budget import Budget
from stn_infer.errors import ModelError
from stn_infer.files import check_writable
from stn_infer.sources.reference import WeightsLike


@names_the_file
def build(
    model: str | Path,
    output: str | Path,
    options: BuildOptions | None = None,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    cache: Path | None = None,
    rebuild: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> Engine:
    """Build an engine and write it, with its sidecar, to ``output``.

    Args:
        model: an ONNX file or any source that ``stn-infer export`` takes.
        output: the engine's file; one that is up to date is not changed.
        options: how to build it; None: the defaults.
        weights: a checkpoint for a source, as for ``export``.
        input_shapes: the shapes of a source's inputs, as for ``export``.
        cache: the folder of the engine cache; None: the user's cache.
        rebuild: build even if the same engine exists.
        allow_code: let a file, such as a recipe, name Python code to run; a factory as ``model`` always may.
        budget: as for ``lint``.

    Raises:
        UsageError: options that cannot be combined, or a profile that does not fit the model.
        MissingDependencyError: the runtime, the plugin library or the GPU is missing.
        ModelError, SourceError: the model cannot be loaded, or the runtime cannot build it.
        OutputError: ``output`` or the cache cannot be written.
    """
    options, path = options or BuildOptions(), Path(output)
    check_writable(path)
    check_runtime(options)
    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    request = request_engine(exported(found), options, str(model) if isinstance(found, OnnxModel) else found.name)
    if not rebuild:
        try:
            data, sidecar = load_engine(path)
        except ModelError:
            sidecar = None  # missing or damaged: it is built again
        if sidecar is not None and sidecar.key == request.key:
            return Engine(data, sidecar, False, "it is up to date", request.notes)
    engine = build_or_reuse(request, EngineCache(cache or default_cache_folder()), rebuild, path, budget)
    write_engine(path, engine.data, engine.sidecar)
    return engine
