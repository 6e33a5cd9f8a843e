"""Engines on disk: what one was built from, when it may be used again, and why not.

An engine runs only with the exact version of TensorRT and on the kind of GPU that it was built for, and says nothing
about either. So each one has a sidecar, ``<engine>.json``, that holds everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stn_infer.errors import ModelError, OutputError
from stn_infer.files import write_atomically

SCHEMA_VERSION = 1

# How a difference is told: the field's name in words.
_WORDS = {
    "graph_sha256": "the model's graph",
    "weights_sha256": "the model's weights",
    "runtime": "the runtime",
    "runtime_version": "the runtime's version",
    "gpu": "the GPU",
    "sm": "the GPU's architecture",
    "plugin_sha256": "the plugin library",
    "profiles": "the optimization profile",
    "precision": "the precision",
    "flags": "the flags",
}


@dataclass(frozen=True)
class InputProfile:
    """The smallest, the best and the largest shape of one dynamic input."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __str__(self) -> str:
        shapes = ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))
        return f"{self.name}={shapes}"


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        graph_sha256, weights_sha256: of the ONNX graph without its weights, and of the weights.
        runtime, runtime_version: ``tensorrt`` or ``tensorrt-rtx``, and its full version.
        gpu, sm: the GPU's name (empty when built for a target that was not there) and architecture, ``sm89``.
        plugin_sha256: of the plugin library; empty for native layers.
        profiles: shapes of the dynamic inputs.
        precision: the floating-point types in the file; engines are strongly typed.
        flags: builder flags that change the result, such as ``tf32``.
    """

    graph_sha256: str
    weights_sha256: str
    runtime: str
    runtime_version: str
    gpu: str
    sm: str
    plugin_sha256: str
    profiles: tuple[InputProfile, ...]
    precision: str
    flags: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A file name: equal for equal keys."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def differences(self, older: EngineKey) -> tuple[str, ...]:
        """What changed since ``older``, a phrase a field; empty when nothing did."""
        return tuple(
            _difference(item.name, getattr(older, item.name), getattr(self, item.name))
            for item in fields(self)
            if getattr(older, item.name) != getattr(self, item.name)
        )


@dataclass(frozen=True)
class Sidecar:
    """What is known about an engine.

    Attributes:
        key: what it was built from.
        engine_sha256, engine_size: of the file, so that a truncated or exchanged one is noticed.
        source: the model it was built from, as the user named it.
        built_at: UTC, ISO 8601.
        build_seconds: wall time of parsing and building.
        fused: names of the ONNX nodes that the plugin runs.
        metadata: the model's ``metadata_props``: pre-processing and labels.
    """

    key: EngineKey
    engine_sha256: str
    engine_size: int
    source: str
    built_at: str
    build_seconds: float
    fused: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of ``engine`` lies."""
    return engine.with_name(engine.name + ".json")


def write_engine(path: Path, engine: bytes, sidecar: Sidecar) -> None:
    """Write an engine and then its sidecar; a sidecar is there only for a whole engine.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    sidecar_path(path).unlink(missing_ok=True)
    write_atomically(path, engine)
    content = {"schema_version": SCHEMA_VERSION, **asdict(sidecar)}
    write_atomically(sidecar_path(path), (json.dumps(content, indent=2) + "\n").encode())


def read_sidecar(engine: Path) -> Sidecar | None:
    """The sidecar of ``engine``, or None where there is none.

    Raises:
        ModelError: it is damaged, or of a version that this one doesn't know.
    """
    path = sidecar_path(engine)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise ModelError(f"{path} was written by another version of stn-infer; build the engine again")
        return _sidecar(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({error}); build the engine again") from None


def load_engine(path: Path) -> tuple[bytes, Sidecar | None]:
    """An engine's bytes and its sidecar, checked against each other.

    Raises:
        ModelError: there is no such file, it is empty or truncated, or the sidecar belongs to another one.
    """
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: expected a TensorRT engine, found {error.strerror or error}") from None
    if not engine:
        raise ModelError(f"{path} is empty; expected a TensorRT engine")
    sidecar = read_sidecar(path)
    if sidecar is not None and hashlib.sha256(engine).hexdigest() != sidecar.engine_sha256:
        what = (
            f"{path} has {len(engine)} of {sidecar.engine_size} bytes: it is truncated"
            if len(engine) < sidecar.engine_size
            else f"{path} is not the engine that {sidecar_path(path).name} describes"
        )
        raise ModelError(f"{what}; build it again")
    return engine, sidecar


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/stn-infer/engines``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "stn-infer" / "engines"


class EngineCache:
    """A folder of engines, each under its key's digest.

    Args:
        folder: created when the first engine is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: EngineKey) -> Path:
        """Where the engine for ``key`` is or would be."""
        return self.folder / f"{key.digest}.engine"

    def find(self, key: EngineKey) -> tuple[bytes, Sidecar] | None:
        """The engine for ``key``; None when there is none, or a damaged one."""
        try:
            engine, sidecar = load_engine(self.path(key))
        except ModelError:
            return None
        return None if sidecar is None or sidecar.key != key else (engine, sidecar)

    def store(self, engine: bytes, sidecar: Sidecar) -> Path:
        """Keep an engine.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        path = self.path(sidecar.key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the engine cache {self.folder}: {error.strerror or error}") from None
        write_engine(path, engine, sidecar)
        return path

    def why_missing(self, key: EngineKey, source: str) -> str:
        """Why the engine for ``key`` has to be built, compared with the nearest one of the same source."""
        if self.path(key).exists():
            return "the cached engine is damaged"
        older = [sidecar for sidecar in self._sidecars() if sidecar.source == source]
        if not older:
            return f"no engine of {source} is cached"
        nearest = min(older, key=lambda sidecar: (len(key.differences(sidecar.key)), -_order(sidecar)))
        return why_stale(key, nearest)

    def _sidecars(self) -> list[Sidecar]:
        found = []
        for path in sorted(self.folder.glob("*.engine")):
            try:
                sidecar = read_sidecar(path)
            except ModelError:
                continue
            if sidecar is not None:
                found.append(sidecar)
        return found


def why_stale(key: EngineKey, older: Sidecar) -> str:
    """In words, what differs between ``key`` and the engine that ``older`` describes."""
    return "since it was last built: " + "; ".join(key.differences(older.key))


def _order(sidecar: Sidecar) -> int:
    """Later engines have greater numbers; ISO 8601 in UTC sorts as text, digits alone as a number."""
    return int("".join(filter(str.isdigit, sidecar.built_at)) or 0)


def _difference(name: str, old: Any, new: Any) -> str:
    words = _WORDS[name]
    if name.endswith("_sha256") and old and new:
        return f"{words} changed"
    return f"{words} changed from {_show(name, old)} to {_show(name, new)}"


def _show(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if name == "plugin_sha256":
        return "used" if value else "not used"
    return str(value) or "none"


def _sidecar(content: dict[str, Any]) -> Sidecar:
    key = dict(content.pop("key"))
    profiles = tuple(
        InputProfile(item["name"], tuple(item["min"]), tuple(item["opt"]), tuple(item["max"]))
        for item in key.pop("profiles")
    )
    content["fused"] = tuple(content["fused"])
    return Sidecar(key=EngineKey(**{**key, "profiles": profiles, "flags": tuple(key["flags"])}), **content)
