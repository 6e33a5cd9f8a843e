"""Files that are named for engines: neither is another kind of file read as one, nor replaced by one."""

from __future__ import annotations

from pathlib import Path

from stn_infer.errors import ModelError, OutputError
from stn_infer.files import check_writable
from stn_infer.sources.identify import WORDS, identify_file


def check_engine(path: Path) -> None:
    """Check that a file, if it is there, can be an engine.

    Raises:
        ModelError: it is of another kind, empty or a folder.
    """
    if not path.exists():
        return
    found = identify_file(path)
    if found.kind in WORDS and found.kind != "engine":
        raise ModelError(f"{path} is {WORDS[found.kind]}, not a TensorRT engine; build one: stn-infer build {path}")
    if found.problem:
        raise ModelError(f"{path} {found.problem}")


def check_output(path: Path) -> None:
    """Check that an engine can be written, before a long computation.

    Raises:
        OutputError: the folder is missing or not writable, or the file has other content than an engine.
    """
    check_writable(path)
    if not path.is_file() or not path.stat().st_size:
        return
    kind = identify_file(path).kind
    if kind != "engine":
        what = WORDS.get(kind, "not an engine")
        raise OutputError(f"{path} is {what}, and an engine would replace it; name another file with -o")
