"""``refit``: put other weights of the same network into a TensorRT engine that was built refittable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.engines.paths import check_engine, check_output
from stn_infer.api.open import exported
from stn_infer.api.source import OnnxModel, names_the_file, resolve_model
from stn_infer.backends.device import Device
from stn_infer.backends.tensorrt.engine_cache import Sidecar, load_engine, write_engine
from stn_infer.budget import Budget
from stn_infer.errors import UsageError, one_line
from stn_infer.printing import Printed
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class RefitReport(Printed):
    """The result of ``refit``.

    Attributes:
        path: the engine with the new weights.
        data: the engine.
        sidecar: its record.
        changed: names of the weights that differ from those before.
        warnings: TensorRT's.
    """

    path: Path
    data: bytes
    sidecar: Sidecar
    changed: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """How many weights are new, and the file."""
        return [
            f"refitted with {self.sidecar.source} in {self.sidecar.build_seconds:.1f} s: {len(self.changed)} of "
            f"{len(self.sidecar.weights)} weights are new",
            f"{self.path} ({self.sidecar.engine_size / 1024:.0f} KiB)",
        ]

    def json_content(self) -> dict[str, object]:
        """The fields, without the engine's bytes."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "data"}


def refit(
    engine: str | Path,
    model: str | Path | nn.Module,
    output: str | Path,
    *,
    device: str = "cuda",
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> RefitReport:
    """Write an engine with the weights of ``model``; seconds instead of a build.

    Args:
        engine: an engine that was built refittable, with its sidecar.
        model: what has the new weights, as for ``build``: the network that the engine was built from.
        output: the file to write, with its sidecar; it may be ``engine``.
        device: the GPU to load the engine on, ``cuda`` or ``cuda:N``.
        weights, input_shapes, allow_code, budget: as for ``build``.

    Raises:
        UsageError: the device is not a GPU.
        MissingDependencyError: the runtime, a GPU or the plugin library is missing, or it is too old.
        ModelError: the engine takes no weights, cannot be used here, or cannot take one of those that differ; or the
            model differs in more than weights.
        SourceError: the model cannot be loaded.
        OutputError: ``output`` cannot be written, or is a file but not an engine.
    """
    from stn_infer.backends.tensorrt.backend import register_plugins
    from stn_infer.backends.tensorrt.compatibility import check_usable
    from stn_infer.backends.tensorrt.engine import metadata_of
    from stn_infer.backends.tensorrt.identity import hashes, weight_hashes
    from stn_infer.backends.tensorrt.refitting import refit_plan, replacement_for
    from stn_infer.backends.tensorrt.runtime import current_gpu, load_runtime, make_logger, runtime_name

    start = time.perf_counter()
    gpu, path, label = Device.parse(device), Path(output), str(engine)
    if gpu.kind != "cuda":
        raise UsageError(f"engines run on GPUs: --device must be cuda or cuda:N, not {device!r}")
    check_output(path)
    check_engine(Path(engine))
    plan, sidecar = load_engine(Path(engine))
    proto, name = _loaded(model, weights, input_shapes, allow_code, budget)
    new = replacement_for(label, sidecar, proto, name)
    assert sidecar is not None  # else there is no replacement
    runtime = load_runtime(runtime_name(sidecar.key.runtime))
    check_usable(label, sidecar, runtime, current_gpu(gpu.index))
    logger = make_logger(runtime.module)
    register_plugins(label, sidecar, runtime, logger)
    data = refit_plan(runtime, plan, new, logger, device=gpu.index, plugin=bool(sidecar.key.plugin_sha256))
    graph, digest = hashes(proto)
    made = replace(
        sidecar,
        key=replace(sidecar.key, graph_sha256=graph, weights_sha256=digest),
        engine_sha256=hashlib.sha256(data).hexdigest(),
        engine_size=len(data),
        source=name,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        build_seconds=round(time.perf_counter() - start, 3),
        metadata=metadata_of(proto),
        weights=weight_hashes(proto),
    )
    write_engine(path, data, made)
    return RefitReport(
        path=path,
        data=data,
        sidecar=made,
        changed=tuple(sorted(new.changed)),
        warnings=tuple(dict.fromkeys(map(one_line, logger.warnings))),
    )


@names_the_file
def _loaded(
    model: str | Path | nn.Module,
    weights: WeightsLike | None,
    input_shapes: Sequence[tuple[int, ...]] | None,
    allow_code: bool,
    budget: Budget | None,
) -> tuple[onnx.ModelProto, str]:
    """The model as ONNX, and its name in messages."""
    from stn_infer.proto.load import load_model, parse_model

    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    content = exported(found)
    proto = parse_model(content) if isinstance(content, bytes) else load_model(content)
    return proto, str(model) if isinstance(found, OnnxModel) else found.name
