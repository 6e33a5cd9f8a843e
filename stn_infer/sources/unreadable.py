"""What a file is that cannot be read as a checkpoint, and what to do, from its first bytes and its size."""

from __future__ import annotations

import json
from pathlib import Path

from stn_infer.errors import one_line
from stn_infer.sources.identify import Kind, is_safetensors

_HEAD = 4096
_AGAIN = "the download or copy was cut off; fetch it again"

#: What to do with files that are a SOURCE and not weights.
ADVICE: dict[Kind, str] = {
    "onnx": "is an ONNX file, which contains its weights; give it to optimize, run or verify as it is",
    "engine": "is a TensorRT engine, which contains its weights; give it to run as it is",
    "recipe": "is a model config; give it as SOURCE",
    "program": "is a program saved by torch.export.save, which contains its weights; give it as SOURCE",
}


def why_unreadable(path: Path, reason: str) -> str:
    """What is wrong with a file, as the rest of a sentence that starts with its name.

    Args:
        path: a file that no reader of checkpoints takes.
        reason: what the reader found, for files that begin as a checkpoint does.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(size - _HEAD, 0))
        tail = file.read(_HEAD)
    if not head.strip(b"\0"):
        return f"is not a checkpoint: it contains zeros; {_AGAIN}" if head else f"is empty; {_AGAIN}"
    if is_safetensors(head):
        return _safetensors(path, size, reason)
    if head.startswith(b"PK") and b"PK\x05\x06" not in tail:
        return f"is not complete: the end of torch.save's archive is missing ({size:,} bytes are here); {_AGAIN}"
    if head.startswith(b"PK") or head[:1] == b"\x80":
        return f"is not a complete checkpoint ({reason}): it is truncated or damaged; fetch it again"
    if (text := _text(head)) is not None:
        if text.lstrip().startswith("{") and '"weight_map"' in text:
            return (
                "is the index of a checkpoint in several files; load them together in Python, and save one file with "
                "torch.save(model.state_dict(), ...)"
            )
        return f"is not a checkpoint but text ({one_line(text, 60)!r}), perhaps the answer to a failed download"
    return (
        f"is not a checkpoint ({reason}): it is truncated or has another format; expected .safetensors, or a file of "
        "torch.save"
    )


def _safetensors(path: Path, size: int, reason: str) -> str:
    """A file that begins as safetensors: its header says how long it should be."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        needed = 8 + length
        if needed <= size:
            try:
                entries = json.loads(file.read(length))
                needed += max(entries[name]["data_offsets"][1] for name in entries if name != "__metadata__")
            except (ValueError, TypeError, LookupError, RecursionError):
                needed = 0
    if needed > size:
        return f"is not a complete safetensors file: it has {size:,} of {needed:,} bytes; {_AGAIN}"
    return f"is not a complete safetensors file ({reason}): it is truncated or damaged; fetch it again"


def _text(head: bytes) -> str | None:
    """The start of a file as text; None if it is binary."""
    for cut in range(4):  # the last character may be cut
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return text if all(character.isprintable() or character.isspace() for character in text) else None
    return None
