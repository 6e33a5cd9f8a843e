"""Engines on disk: what each was built from, and whether it can be reused.

An engine runs only with the TensorRT version and on GPUs like the one that it was built for, and does not say for
which. So each engine has a sidecar, ``<engine>.json``, with everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stn_infer.budget import number_from_environment
from stn_infer.errors import ModelError, OutputError
from stn_infer.files import is_own, locked_folder, write_atomically

SCHEMA_VERSION = 2

# The names of EngineKey's fields in messages.
_WORDS = {
    "graph_sha256": "the model's graph",
    "weights_sha256": "the model's weights",
    "runtime": "the runtime",
    "runtime_version": "the runtime's version",
    "gpu": "the GPU",
    "sm": "the GPU's architecture",
    "plugin_sha256": "the plugin library",
    "profiles": "the optimization profiles",
    "precision": "the precision",
    "flags": "the flags",
}


@dataclass(frozen=True)
class InputProfile:
    """The minimum, optimum and maximum shape of one dynamic input."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __str__(self) -> str:
        shapes = ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))
        return f"{self.name}={shapes}"


#: Optimization profiles: in each, the shapes of every dynamic input.
Profiles = tuple[tuple[InputProfile, ...], ...]


def profile_texts(profiles: Sequence[tuple[InputProfile, ...]]) -> list[str]:
    """Each profile with all its inputs, on one line."""
    return [", ".join(map(str, profile)) for profile in profiles]


def profile_lines(profiles: Profiles) -> list[str]:
    """A line for each input; several profiles are numbered."""
    numbers = [f"{index}: " if len(profiles) > 1 else "" for index in range(len(profiles))]
    pairs = zip(numbers, profiles, strict=True)
    return [f"profile {number}{each}" for number, profile in pairs for each in profile]


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        graph_sha256, weights_sha256: of the ONNX graph without its weights, and of the weights.
        runtime, runtime_version: ``tensorrt`` or ``tensorrt-rtx``, and its full version.
        gpu, sm: the GPU's name (empty if built for a named target or to run on several) and architecture, e.g.
            ``sm89``; ``sm80+``: this and all newer ones.
        plugin_sha256: of the plugin library; empty for native layers.
        profiles: shapes of the dynamic inputs, for each optimization profile; empty if there are none.
        precision: the floating-point types in the model; engines are strongly typed.
        flags: builder flags that change the result, such as ``tf32``.
    """

    graph_sha256: str
    weights_sha256: str
    runtime: str
    runtime_version: str
    gpu: str
    sm: str
    plugin_sha256: str
    profiles: Profiles
    precision: str
    flags: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of all fields, used as the file's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def differences(self, older: EngineKey) -> tuple[str, ...]:
        """The differences from ``older``, one phrase per field; empty if there are none."""
        return tuple(
            _difference(item.name, getattr(older, item.name), getattr(self, item.name))
            for item in fields(self)
            if getattr(older, item.name) != getattr(self, item.name)
        )


@dataclass(frozen=True)
class Sidecar:
    """The record of an engine, stored beside it.

    Attributes:
        key: what it was built from.
        engine_sha256, engine_size: of the file, to detect a truncated or replaced engine.
        source: the model it was built from, as given by the user.
        built_at: UTC, ISO 8601.
        build_seconds: wall time of parsing and building.
        fused: names of the ONNX nodes that the plugin runs.
        metadata: the model's ``metadata_props``: pre-processing and labels.
        batch_axes: inputs and outputs to the names of their axes 0, where they have names.
        structure, weights: of an engine that takes new weights: a hash of the graph without weights and metadata, and
            one of each weight by name.
    """

    key: EngineKey
    engine_sha256: str
    engine_size: int
    source: str
    built_at: str
    build_seconds: float
    fused: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    batch_axes: Mapping[str, str] = field(default_factory=dict)
    structure: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)


def sidecar_path(engine: Path) -> Path:
    """The path of the sidecar of ``engine``."""
    return engine.with_name(engine.name + ".json")


def write_engine(path: Path, engine: bytes, sidecar: Sidecar) -> None:
    """Write an engine and then its sidecar; a sidecar has the hash of its engine, so that no other is read with it.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full. An engine of that name has its sidecar
            as before, or is new and has none.
    """
    content = {"schema_version": SCHEMA_VERSION, **asdict(sidecar)}
    with locked_folder(path.parent):  # of two processes that write one path, the files of one stay
        write_atomically(path, engine)
        try:
            write_atomically(sidecar_path(path), (json.dumps(content, indent=2) + "\n").encode())
        except OutputError:
            with suppress(OSError):
                sidecar_path(path).unlink()
            raise


def read_sidecar(engine: Path) -> Sidecar | None:
    """The sidecar of ``engine``, or None if there is none.

    Raises:
        ModelError: the sidecar is damaged, or was written by another version of stn-infer.
    """
    path = sidecar_path(engine)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise ModelError(f"{path} was written by another version of stn-infer; build the engine again")
        return _sidecar(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}); build the engine again") from None


def load_engine(path: Path) -> tuple[bytes, Sidecar | None]:
    """An engine's bytes and its sidecar, checked against each other.

    Raises:
        ModelError: the file is missing, empty or truncated, or the sidecar belongs to another engine.
    """
    with locked_folder(path.parent, shared=True):
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
    """The user's cache folder: ``$XDG_CACHE_HOME/stn-infer/engines``, by default in ``~/.cache``."""
    from platformdirs import user_cache_path

    return user_cache_path("stn-infer") / "engines"


@dataclass(frozen=True)
class CacheEntry:
    """An engine in the cache.

    Attributes:
        path: the engine's file.
        size: bytes, including the sidecar.
        used: when it was last built or used, seconds since the epoch.
        sidecar: the engine's record; None if it is missing or damaged, and the engine cannot be used.
    """

    path: Path
    size: int
    used: float
    sidecar: Sidecar | None


class EngineCache:
    """A folder of engines, named by their keys' digests; several processes may share it.

    Only the user may access the folder and its files: an engine is code that runs on the GPU. The least recently used
    engines are deleted when the cache exceeds ``limit`` bytes.

    Args:
        folder: created (mode 0700) when the first engine is stored.
        limit: bytes; None: ``STN_ENGINE_CACHE_GIB`` gibibytes, by default 10.

    Raises:
        UsageError: ``STN_ENGINE_CACHE_GIB`` is not a number.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        if limit is None:
            limit = int(number_from_environment("STN_ENGINE_CACHE_GIB", 10, "gibibytes") * 2**30)
        self._limit = limit

    def path(self, key: EngineKey) -> Path:
        """The path of the engine for ``key``, which may not exist."""
        return self.folder / f"{key.digest}.engine"

    def timing_path(self, version: str, gpu: str) -> Path:
        """The path of the timing cache of a TensorRT version on a GPU, which may not exist."""
        return self.folder / f"{hashlib.sha256(f'{version} {gpu}'.encode()).hexdigest()[:32]}.timing"

    @contextmanager
    def locked(self, key: EngineKey) -> Iterator[None]:
        """Lock the engine for ``key`` against other processes that build or store it; they wait.

        Raises:
            OutputError: the folder cannot be created or written, or belongs to another user.
        """
        self._make_folder()
        with self._lock(self.path(key)):
            yield

    def find(self, key: EngineKey) -> tuple[bytes, Sidecar] | None:
        """The engine for ``key``; None if it is missing, damaged, or belongs to another user."""
        path = self.path(key)
        try:
            if not all(is_own(file) for file in (self.folder, path, sidecar_path(path))):
                return None
            engine, sidecar = load_engine(path)
        except ModelError:
            return None
        if sidecar is None or sidecar.key != key:
            return None
        with suppress(OSError):
            os.utime(path)  # the modification time records the last use, for eviction
        return engine, sidecar

    def store(self, engine: bytes, sidecar: Sidecar) -> Path:
        """Store an engine, and delete the least recently used ones if necessary; call it within :meth:`locked`.

        Raises:
            OutputError: the folder cannot be created or written, or belongs to another user.
        """
        self._make_folder()
        path = self.path(sidecar.key)
        write_engine(path, engine, sidecar)
        for file in (path, sidecar_path(path)):
            file.chmod(0o600)
        self._evict(keep=path)
        return path

    def entries(self) -> tuple[CacheEntry, ...]:
        """The engines in the cache, most recently used first."""
        found = []
        for path in self.folder.glob("*.engine"):
            beside = sidecar_path(path)
            try:
                status = path.stat()
                size = status.st_size + (beside.stat().st_size if beside.exists() else 0)
            except OSError:  # another process has just deleted it
                continue
            try:
                sidecar = read_sidecar(path)
            except ModelError:
                sidecar = None
            found.append(CacheEntry(path, size, status.st_mtime, sidecar))
        return tuple(sorted(found, key=lambda entry: -entry.used))

    def clear(self) -> tuple[CacheEntry, ...]:
        """Delete all engines except those being built, and all timing caches; returns the deleted engines.

        Raises:
            OutputError: the folder belongs to another user, or a file in it cannot be deleted.
        """
        if not self.folder.exists():
            return ()
        self._make_folder()
        for path in self.folder.glob("*.timing"):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"cannot delete {path}: {error.strerror or error}") from None
        return tuple(entry for entry in self.entries() if self._delete(entry.path))

    def why_missing(self, key: EngineKey, source: str) -> str:
        """Why the engine for ``key`` must be built, compared with the most similar one from the same source."""
        path = self.path(key)
        if path.exists():
            return "the cached engine is damaged" if is_own(path) else "the cached engine belongs to another user"
        older = [entry.sidecar for entry in self.entries() if entry.sidecar and entry.sidecar.source == source]
        if not older:
            return f"no engine of {source} is cached"
        nearest = min(older, key=lambda sidecar: (len(key.differences(sidecar.key)), -_order(sidecar)))
        return why_stale(key, nearest)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not is_own(self.folder):
                raise OutputError(
                    f"the engine cache {self.folder} belongs to another user; give another folder with --cache"
                )
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise OutputError(f"cannot create the engine cache {self.folder}: {error.strerror or error}") from None

    def _lock(self, path: Path, timeout: float = -1) -> AbstractContextManager[Any]:
        from filelock import FileLock

        return FileLock(path.with_suffix(".lock"), timeout=timeout, mode=0o600)

    def _evict(self, keep: Path) -> None:
        total = 0
        for entry in self.entries():
            total += entry.size
            if total > self._limit and entry.path != keep:
                with suppress(OutputError):
                    total -= entry.size if self._delete(entry.path) else 0

    def _delete(self, path: Path) -> bool:
        """Delete an engine unless it is being built; returns whether it was deleted."""
        from filelock import Timeout

        try:
            with self._lock(path, timeout=0):
                sidecar_path(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False
        except OSError as error:
            raise OutputError(f"cannot delete {path}: {error.strerror or error}") from None


def why_stale(key: EngineKey, older: Sidecar) -> str:
    """The differences between ``key`` and the engine of ``older``, as text."""
    return "since it was last built: " + "; ".join(key.differences(older.key))


def _order(sidecar: Sidecar) -> int:
    """A number that increases with the build time: the digits of its ISO 8601 text."""
    return int("".join(filter(str.isdigit, sidecar.built_at)) or 0)


def _difference(name: str, old: Any, new: Any) -> str:
    words = _WORDS[name]
    if name.endswith("_sha256") and old and new:
        return f"{words} changed"
    return f"{words} changed from {_show(name, old)} to {_show(name, new)}"


def _show(name: str, value: Any) -> str:
    if name == "profiles":
        return "; ".join(profile_texts(value)) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if name == "plugin_sha256":
        return "used" if value else "not used"
    return str(value) or "none"


def _sidecar(content: dict[str, Any]) -> Sidecar:
    key = dict(content.pop("key"))
    profiles = tuple(
        tuple(InputProfile(it["name"], tuple(it["min"]), tuple(it["opt"]), tuple(it["max"])) for it in profile)
        for profile in key.pop("profiles")
    )
    content["fused"] = tuple(content["fused"])
    return Sidecar(key=EngineKey(**{**key, "profiles": profiles, "flags": tuple(key["flags"])}), **content)
