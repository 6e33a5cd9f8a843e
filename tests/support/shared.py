"""Models that many tests need and that take long to make: made once, for all processes that run tests.

``FOLDER`` is set for the session by ``conftest.py``.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import quote

import onnx

from stn_infer.api.export import export_bytes
from stn_infer.sources.load import LoadedModel, load_source
from stn_infer.torch_export.portable import build_portable

FOLDER: Path | None = None


def made_once(name: str, make: Callable[[], bytes]) -> bytes:
    """What ``make`` returns; the first process that asks calls it, and the others wait for its file."""
    assert FOLDER is not None, "conftest.py sets it"
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / quote(name, safe="")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(make())
    return path.read_bytes()


@cache
def source(name: str) -> LoadedModel:
    """A model of the package's own by its name; don't change it."""
    return load_source(name)


@cache
def exported(name: str) -> bytes:
    """The file that ``export`` writes of a model of the package's own: portable and verified."""
    return made_once(f"exported {name}", lambda: export_bytes(source(name)))


def portable(name: str, *, bf16: bool = False) -> onnx.ModelProto:
    """The portable model before ``export`` adds metadata; at the opset that bfloat16 needs if ``bf16``."""

    def make() -> bytes:
        return build_portable(source(name), "bf16" if bf16 else "fp32").model.SerializeToString()

    return onnx.load_from_string(made_once(f"portable {name} {bf16}", make))
