"""Try third-party ONNX files once in a separate process, before a native library of this process reads them.

A file that passed is recorded by a hash of its content, its external data and the libraries' versions: as a file in the
folder ``tried`` of the user's cache, which contains the verdict: whether onnxruntime opens it, and which outputs depend
on the batch. Without such a folder, each process repeats the trial.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.budget import Budget
from stn_infer.errors import StnInferError
from stn_infer.extras import versions
from stn_infer.files import is_own
from stn_infer.progress import step

if TYPE_CHECKING:
    import onnx

    from stn_infer.repairs.trial import Verdict

_MOST = 20_000  # files in the folder; beyond that, the older half is deleted
_LONGEST = 1_000  # characters of a message
_LIBRARIES = ("stn-infer", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
_SCHEMA = 2  # of the files in the folder
_passed: dict[str, str] = {}  # in this process: what the cache's files contain, by name

Shapes = Mapping[str, tuple[int, ...]]


def try_once(
    content: Path | bytes,
    *,
    graph: onnx.ModelProto | None = None,
    shapes: Shapes | None = None,
    budget: Budget | None = None,
) -> Verdict | None:
    """Check an ONNX file's structure, and try it in a separate process unless it passed before.

    Args:
        content: an ONNX file, or the bytes of one.
        graph: the file as :func:`~stn_infer.proto.load.read_graph` returns it, if the caller already has it.
        shapes: of inputs, by name, if the caller sets them.
        budget: limits of the trial; 0 seconds disable it. None: ``STN_TRIAL_SECONDS`` and ``STN_TRIAL_GIB``.

    Returns:
        The trial's verdict; None if it is not known.

    Raises:
        ModelError: it is damaged, or the trial crashed or exceeded a limit.
        UsageError: a limit is not a number.
    """
    from stn_infer.proto.load import content_hash, known_hash, parse_model, read_graph
    from stn_infer.repairs.trial import Verdict, try_model

    budget = budget or Budget.from_environment()
    if not budget.seconds:
        return None
    if graph is None and isinstance(content, Path) and (known := known_hash(content)):
        passed = _passed.get(_key(known, shapes))
        if passed is not None:
            return Verdict.parse(passed)
    name = str(content) if isinstance(content, Path) else "the model"
    if graph is None:
        graph = read_graph(content) if isinstance(content, Path) else parse_model(content)
    key = _key(content_hash(content, graph), shapes)
    passed = _remembered(key)
    if passed is None:
        step(f"analyzing {name} in a separate process")
        passed = try_model(content, name, budget, shapes).to_text()
    _remember(key, passed)
    return Verdict.parse(passed)


def mark_tried(path: Path, batch_dependent: Sequence[str] = ()) -> None:
    """Record that a file passed, because this process has run and written it; and what in it depends on the batch."""
    import onnx

    from stn_infer.proto.load import content_hash
    from stn_infer.repairs.trial import Verdict

    graph = onnx.ModelProto()
    with suppress(StnInferError, OSError):  # another process may have replaced it
        if Budget.from_environment().seconds:
            graph.ParseFromString(path.read_bytes())
            _remember(_key(content_hash(path, graph), None), Verdict("", tuple(batch_dependent)).to_text())


def _key(digest: str, shapes: Shapes | None) -> str:
    known = {name: list(shape) for name, shape in sorted((shapes or {}).items())}
    parts = [_SCHEMA, digest, known, versions(_LIBRARIES)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("stn-infer") / "tried"


def _remembered(key: str) -> str | None:
    """What is recorded for a key; None: nothing."""
    if key in _passed:
        return _passed[key]
    folder = _folder()
    try:
        if is_own(folder) and is_own(folder / key) and (folder / key).is_file():
            return (folder / key).read_text(encoding="utf-8", errors="replace")[:_LONGEST]
    except OSError:  # not a folder, or not readable
        pass
    return None


def _remember(key: str, passed: str) -> None:
    """Record a key in this process and, if the cache's folder can be created and is the user's own, on disk."""
    if _passed.get(key) == passed:
        return
    _passed[key] = passed
    folder = _folder()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_own(folder):
            return
        folder.chmod(0o700)
        if (folder / key).exists():
            return
        (folder / key).touch(mode=0o600)
        (folder / key).write_text(passed, encoding="utf-8")
        entries = os.listdir(folder)
        if len(entries) > _MOST:
            for entry in sorted(entries, key=lambda entry: (folder / entry).lstat().st_mtime)[: _MOST // 2]:
                (folder / entry).unlink(missing_ok=True)
