"""``build``: build a TensorRT engine with its sidecar from an ONNX file or a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.engines.paths import check_output
from stn_infer.api.open import exported
from stn_infer.api.source import OnnxModel, names_the_file, resolve_model
from stn_infer.backends.tensorrt.engine import Engine, build_or_reuse, check_runtime, request_engine
from stn_infer.backends.tensorrt.engine_cache import (
    EngineCache,
    default_cache_folder,
    load_engine,
    profile_lines,
    write_engine,
)
from stn_infer.backends.tensorrt.options import BuildOptions
from stn_infer.budget import Budget
from stn_infer.errors import ModelError
from stn_infer.printing import Printed
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BuildReport(Printed, Engine):
    """The result of ``build``: the engine and its file; as text, what the command prints.

    Attributes:
        path: the file.
    """

    path: Path

    def lines(self) -> list[str]:
        """Whether it was built and why, what it is for, and the file."""
        sidecar, key = self.sidecar, self.sidecar.key
        did = f"built in {sidecar.build_seconds:.1f} s" if self.built else "reused"
        fused = f"{len(sidecar.fused)} by the plugin" if key.plugin_sha256 else "by native layers"
        return [
            *(f"note: {note}" for note in self.notes),
            f"{did}: {self.reason}",
            f"{key.runtime} {key.runtime_version} for {key.gpu or key.sm}, {key.precision}, spatial transformers "
            f"{fused}",
            *profile_lines(key.profiles),
            *((", ".join(key.flags),) if key.flags else ()),
            f"{self.path} ({sidecar.engine_size / 1024:.0f} KiB)",
        ]

    def json_content(self) -> dict[str, object]:
        """The fields, without the engine's bytes."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "data"}


@names_the_file
def build(
    model: str | Path | nn.Module,
    output: str | Path,
    options: BuildOptions | None = None,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    cache: Path | None = None,
    rebuild: bool = False,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> BuildReport:
    """Build an engine and write it, with its sidecar, to ``output``.

    Args:
        model: an ONNX file, a module, or any source that ``stn-infer export`` takes.
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
        OutputError: ``output``, the cache or the timing cache cannot be written, or ``output`` is not an engine.
    """
    options, path = options or BuildOptions(), Path(output)
    check_output(path)
    check_runtime(options)
    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    request = request_engine(exported(found), options, str(model) if isinstance(found, OnnxModel) else found.name)
    if not rebuild:
        try:
            data, sidecar = load_engine(path)
        except ModelError:
            sidecar = None  # missing or damaged: it is built again
        if sidecar is not None and sidecar.key == request.key:
            return BuildReport(data, sidecar, False, "it is up to date", request.notes, path=path)
    engine = build_or_reuse(request, EngineCache(cache or default_cache_folder()), rebuild, path, budget)
    write_engine(path, engine.data, engine.sidecar)
    return BuildReport(
        engine.data, engine.sidecar, engine.built, engine.reason, engine.notes, engine.warnings, path=path
    )
