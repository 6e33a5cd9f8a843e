"""Try third-party ONNX files once in a separate process, before a native library of this process reads them.

A file that passed is recorded by a hash of its content, its external data and the libraries' versions: as an empty
file in the folder ``tried`` of the user's cache. Without such a folder, each process repeats the trial.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.budget import Budget
from stn_infer.errors import StnInferError
from stn_infer.files import is_own

if TYPE_CHECKING:
    import onnx

_MOST = 20_000  # files in the folder; beyond that, the older half is deleted
_LIBRARIES = ("stn-infer", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
_passed: set[str] = set()  # in this process

Shapes = Mapping[str, tuple[int, ...]]


def try_once(
    content: Path | bytes,
    *,
    name: str | None = None,
    graph: onnx.ModelProto | None = None,
    shapes: Shapes | None = None,
) -> None:
    """Check an ONNX file's structure, and try it in a separate process unless it passed before.

    ``STN_TRIAL_SECONDS`` and ``STN_TRIAL_GIB`` limit the trial (:class:`~stn_infer.budget.Budget`); 0 seconds
    disable it.

    Args:
        content: an ONNX file, or the bytes of one.
        name: what messages call it; None: the file's path.
        graph: the file as :func:`~stn_infer.proto.load.read_graph` returns it, if the caller already has it.
        shapes: of inputs, by name, if the caller sets them.

    Raises:
        ModelError: it is damaged, or the trial crashed or exceeded a limit.
        UsageError: a limit is not a number.
    """
    from stn_infer.proto.load import parse_model, read_graph
    from stn_infer.repairs.trial import try_model

    budget = Budget.from_environment()
    if not budget.seconds:
        return
    name = name or (str(content) if isinstance(content, Path) else "the model")
    if graph is None:
        graph = read_graph(content) if isinstance(content, Path) else parse_model(content)
    key = _key(content, graph, shapes)
    if key in _passed or _is_remembered(key):
        return
    try_model(content, name, budget, shapes)
    _remember(key)


def mark_tried(path: Path) -> None:
    """Record that a file passed, because this process has run and written it."""
    import onnx

    graph = onnx.ModelProto()
    with suppress(StnInferError, OSError):  # another process may have replaced it
        if Budget.from_environment().seconds:
            graph.ParseFromString(path.read_bytes())
            _remember(_key(path, graph, None))


def _key(content: Path | bytes, graph: onnx.ModelProto, shapes: Shapes | None) -> str:
    from stn_infer.proto.load import content_hash

    known = {name: list(shape) for name, shape in sorted((shapes or {}).items())}
    parts = [content_hash(content, graph), known, [_version(name) for name in _LIBRARIES]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("stn-infer") / "tried"


def _is_remembered(key: str) -> bool:
    folder = _folder()
    try:
        return is_own(folder) and is_own(folder / key) and (folder / key).is_file()
    except OSError:  # not a folder, or not readable
        return False


def _remember(key: str) -> None:
    """Record a key in this process and, if the cache's folder can be created and is the user's own, on disk."""
    _passed.add(key)
    folder = _folder()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_own(folder):
            return
        folder.chmod(0o700)
        (folder / key).touch(mode=0o600)
        entries = os.listdir(folder)
        if len(entries) > _MOST:
            for entry in sorted(entries, key=lambda entry: (folder / entry).lstat().st_mtime)[: _MOST // 2]:
                (folder / entry).unlink(missing_ok=True)
