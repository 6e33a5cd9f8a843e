"""``inspect_engine``: what is in a TensorRT engine, with or without the sidecar that ``build`` writes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.engines.paths import check_engine
from stn_infer.backends.device import Device
from stn_infer.backends.tensorrt.engine_cache import profile_lines
from stn_infer.errors import MissingDependencyError, ModelError, UsageError, one_line
from stn_infer.printing import Printed, counted, shown

if TYPE_CHECKING:
    from stn_infer.backends.tensorrt.engine_cache import Sidecar
    from stn_infer.backends.tensorrt.inspection import EngineContent, Layer
    from stn_infer.backends.tensorrt.plan import PlanHeader

_WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class EngineReport(Printed):
    """What is in an engine; as text, what the command prints, within 80 columns.

    Attributes:
        path: the file.
        header: which runtime built it, in which version, and its size in bytes.
        sidecar: what ``build`` recorded; None for an engine that was built otherwise.
        content: inputs, outputs, profiles and layers; None if it could not be loaded.
        notes: why it was not loaded, and what differs from what it was built with.
        warnings: TensorRT's.
    """

    path: Path
    header: PlanHeader
    sidecar: Sidecar | None
    content: EngineContent | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def plugins(self) -> tuple[str, ...]:
        """The plugins in it and what they run, one line for each layer."""
        if self.content is not None:
            ran = [it for it in self.content.layers if it.plugin]
            return tuple(f"{it.plugin} runs {', '.join(it.nodes) or it.name}" for it in ran)
        return tuple(f"the plugin library runs {name}" for name in self.sidecar.fused) if self.sidecar else ()

    def json_content(self) -> dict[str, object]:
        """The fields and the plugins."""
        return {**{each.name: getattr(self, each.name) for each in fields(self)}, "plugins": self.plugins}

    def lines(self) -> list[str]:
        """The engine, what it was built from, inputs and outputs, plugins, and a table of its layers."""
        header, sidecar, content = self.header, self.sidecar, self.content
        found = [
            f"{self.path}: {header.runtime} {header.version}, {header.size / 1024:.0f} KiB",
        ]
        if sidecar is not None:
            key = sidecar.key
            about = [key.gpu, key.sm, key.precision, *key.flags]
            found.append(f"built from {sidecar.source} at {sidecar.built_at}")
            found.append(f"for {', '.join(filter(None, about))}")
        else:
            found.append("no sidecar: it was not built by stn-infer, or was copied alone")
        if content is None:
            found += profile_lines(sidecar.key.profiles) if sidecar else []
        else:
            found.append(
                f"{counted(len(content.layers), 'layer')}, {content.device_memory / 2**20:.1f} MiB of device memory "
                f"per context, {'refittable' if content.refittable else 'not refittable'}"
            )
            for tensor in content.tensors:
                side = "input" if tensor.is_input else "output"
                shape = "x".join(str(size) if size >= 0 else "?" for size in tensor.shape)
                found.append(f"{side} {tensor.name}: {tensor.dtype} {shape}, {tensor.format}")
            for index, profile in enumerate(content.profiles):
                found += [f"profile {index}: {shapes}" for shapes in profile]
        found += [f"plugin {plugin}" if content else plugin for plugin in self.plugins]
        notes = (f"note: {note}" for note in self.notes)
        return [*notes, *_wrapped(found), *(_table(content.layers) if content else ())]


def inspect_engine(engine: str | Path, device: str = "cuda") -> EngineReport:
    """Read what is in a TensorRT or TensorRT-RTX engine.

    Layers, inputs and outputs need the runtime of the version that built it and a GPU that can load the engine; the
    rest does not, and a note says what is missing. An engine that was built with another plugin library is loaded with
    the one that is here, if that is possible.

    Args:
        engine: the file.
        device: ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: the file is not an engine, is truncated, is not the one that its sidecar describes, or TensorRT
            cannot load it although it was built with this version and plugin library.
        UsageError: the device is not a GPU.
    """
    from stn_infer.backends.tensorrt.engine_cache import load_engine
    from stn_infer.backends.tensorrt.plan import read_header

    path, gpu = Path(engine), Device.parse(device)
    if gpu.kind != "cuda":
        raise UsageError(f"engines run on GPUs: --device must be cuda or cuda:N, not {device!r}")
    check_engine(path)
    plan, sidecar = load_engine(path)
    header = read_header(plan, str(path))
    content, notes, warnings = _content(str(path), plan, header, sidecar, gpu.index)
    return EngineReport(path=path, header=header, sidecar=sidecar, content=content, notes=notes, warnings=warnings)


def _content(
    label: str, plan: bytes, header: PlanHeader, sidecar: Sidecar | None, device: int
) -> tuple[EngineContent | None, tuple[str, ...], tuple[str, ...]]:
    """What is in the engine, or why that is not known; and TensorRT's warnings."""
    from stn_infer.backends.tensorrt.backend import register_plugins
    from stn_infer.backends.tensorrt.compatibility import why_other_library, why_unusable
    from stn_infer.backends.tensorrt.inspection import inspect_plan
    from stn_infer.backends.tensorrt.options import VERSION_COMPATIBLE
    from stn_infer.backends.tensorrt.plan import why_other_version
    from stn_infer.backends.tensorrt.runtime import current_gpu, load_runtime, make_logger

    try:
        runtime = load_runtime(header.runtime)
        if sidecar is None:
            problem = why_other_version(header, label, runtime)
        else:
            problem = why_unusable(label, sidecar.key, runtime, None)
        if problem is None:
            gpu = current_gpu(device)
            problem = None if sidecar is None else why_unusable(label, sidecar.key, runtime, gpu)
        if problem is not None:
            return None, _unknown(problem), ()
        logger = make_logger(runtime.module)
        other = None if sidecar is None else why_other_library(label, sidecar.key)
        register_plugins(label, sidecar if other is None else None, runtime, logger)
    except MissingDependencyError as error:
        return None, _unknown(error), ()
    notes = () if other is None else (other,)
    host_code = sidecar is not None and VERSION_COMPATIBLE in sidecar.key.flags
    try:
        content = inspect_plan(runtime, plan, logger, device=device, host_code=host_code)
    except ModelError as error:
        if other is None:
            raise
        return None, (*notes, *_unknown(error)), ()
    return content, notes, tuple(dict.fromkeys(map(one_line, logger.warnings)))


def _unknown(reason: object) -> tuple[str]:
    return (f"layers are not known: {reason}",)


def _table(layers: Iterable[Layer]) -> list[str]:
    """A row for each layer: its number, type, types of tensors, and the ONNX nodes in it or its name."""
    rows = [(it.type, it.precision, ", ".join(it.nodes) or it.name) for it in layers]
    widths = [min(max(map(len, column)), 20) for column in zip(("type", "precision", ""), *rows, strict=True)][:2]
    found = []
    for number, (kind, precision, nodes) in enumerate([("type", "precision", "ONNX nodes"), *rows]):
        head = f"{str(number - 1) if number else '#':>4}  {_cut(kind, widths[0])}  {_cut(precision, widths[1])}  "
        found += textwrap.wrap(shown(nodes), _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
    return ["", *found]


def _cut(text: str, width: int) -> str:
    text = shown(text)
    return f"{text if len(text) <= width else text[: width - 1] + '…':{width}}"


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(shown(line), _WIDTH, subsequent_indent="  ") or [""]]
