"""Identify what a SOURCE names, by the content of a file and without loading it.

A file's name counts only if its content is not recognized: the suffix then decides the kind of a missing or damaged
file, so that the reader for that kind can report what is wrong with it.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

Kind = Literal["onnx", "engine", "recipe", "program", "factory", "name", "checkpoint", "other", "unusable"]
#: The kinds that become a PyTorch module.
PYTORCH_KINDS: tuple[Kind, ...] = ("recipe", "program", "factory", "name")

#: Names of the kinds of files in messages.
WORDS: dict[Kind, str] = {
    "onnx": "an ONNX file",
    "engine": "a TensorRT engine",
    "recipe": "a recipe",
    "program": "a program saved by torch.export.save",
}

_HEAD = 4096
_LARGEST_RECIPE = 1 << 20

_BY_SUFFIX: dict[str, Kind] = {
    ".onnx": "onnx",
    ".toml": "recipe",
    ".pt2": "program",
    **dict.fromkeys((".engine", ".plan", ".trt"), "engine"),
    **dict.fromkeys((".safetensors", ".pt", ".pth", ".ckpt", ".bin"), "checkpoint"),
}

# Offset, bytes at that offset, and what to report about such a file.
_AS_INPUT = "give it as an INPUT, and a model as SOURCE"
_NUMPY_FILE = f"is a NumPy array file; {_AS_INPUT}; weights need torch.save({{name: torch.from_numpy(array)}}, ...)"
_FROM_ONNX = "give the ONNX file that it was made from"
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", f"is a PNG image; {_AS_INPUT}"),
    (0, b"\xff\xd8\xff", f"is a JPEG image; {_AS_INPUT}"),
    (0, b"\x93NUMPY", _NUMPY_FILE),
    (0, b"\x1f\x8b", "is a compressed file; unpack it first"),
    (0, b"BZh", "is a compressed file; unpack it first"),
    (0, b"\xfd7zXZ", "is a compressed file; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "is a compressed file; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a compressed file; unpack it first"),
    (0, b"Rar!\x1a\x07", "is a compressed file; unpack it first"),
    (0, b"GGUF", "is a GGUF file, which holds a language model's weights in formats of its own; get the original"),
    (257, b"ustar", "is a tar archive; unpack it first"),
    (0, b"\x89HDF", "is an HDF5 file, such as Keras writes; export the model to ONNX from Keras"),
    (4, b"TFL3", "is a TensorFlow Lite model; export the original to ONNX"),
    (4, b"ORTM", f"is a model in onnxruntime's own format; {_FROM_ONNX}"),
    (0, b"version https://git-lfs.", "is a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (0, b"/annex/objects/", "is a git-annex pointer, not the file itself; fetch it with git annex get"),
)  # fmt: skip
_CHECKPOINT = (
    "is a checkpoint: weights without a network; name the network as SOURCE (e.g. package.module:factory) and give "
    "this file with --weights"
)

# Wire types of the top-level fields of onnx.ModelProto: 0 is a varint, 2 is length-delimited.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = 7


@dataclass(frozen=True)
class Identified:
    """What a SOURCE names.

    Attributes:
        kind: ``onnx``, ``engine``, ``recipe`` and ``program`` (saved by torch.export.save) are files; ``factory`` and
            ``name`` are not files; the other kinds are not a SOURCE.
        problem: for ``checkpoint``, ``other`` (content of another kind) and ``unusable``: what it is and what to do,
            as the rest of a sentence that starts with the name.
    """

    kind: Kind
    problem: str = ""


def identify(source: str | Path) -> Identified:
    """Identify what ``source`` names.

    A registered name takes precedence over a file of the same name; ``./name`` or a ``Path`` names the file.
    """
    text = str(source)
    if not isinstance(source, Path) and not {"/", ".", ":"} & set(text) and text in registered_names():
        return Identified("name")
    if os.path.lexists(text):
        return identify_file(Path(text))
    if ":" in text:
        return Identified("factory")
    kind = _BY_SUFFIX.get(Path(text).suffix.lower())
    if Path(text).suffix == ".py":
        return _python(Path(text))
    if kind == "checkpoint":
        return Identified(kind, f"does not exist; a file with that suffix {_CHECKPOINT}")
    if kind is not None:
        return Identified(kind)
    return Identified("unusable", "does not exist") if "/" in text else Identified("name")


def identify_file(path: Path) -> Identified:
    """Identify the file at ``path``."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return Identified("unusable", "is a folder; name the file in it")
        if not stat.S_ISREG(mode):
            return Identified("unusable", "is not a regular file; give a model's file")
        size = path.stat().st_size
        if size == 0:
            meant = WORDS.get(_BY_SUFFIX.get(path.suffix.lower(), "unusable"))
            return Identified("unusable", f"is empty; {f'expected {meant}' if meant else 'copy or create it again'}")
        with path.open("rb") as file:
            found = _by_content(file, size)
    except OSError as error:
        return Identified("unusable", f"cannot be read: {error.strerror or error}")
    if found is not None:
        return found
    if path.suffix == ".py":
        return _python(path)
    kind: Kind | None = "engine" if _has_engine_sidecar(path) else _BY_SUFFIX.get(path.suffix.lower())
    if kind == "checkpoint":
        return Identified(kind, _CHECKPOINT)
    if kind is not None:
        return Identified(kind)
    return Identified(
        "unusable",
        "is not a known kind of file: expected an ONNX file, a recipe, a program saved by torch.export.save or an "
        "engine",
    )


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is a safetensors file: the length of a JSON header, and its brace."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 32


def registered_names() -> tuple[str, ...]:
    """The names of shipped models, networks and published rectifiers."""
    from stn_infer.foreign import FOREIGN
    from stn_infer.models import NETWORKS, SHIPPED

    return (*SHIPPED, *NETWORKS, *FOREIGN)


def _by_content(file: BinaryIO, size: int) -> Identified | None:
    """Identify a file by its content; None if the content is not recognized."""
    head = file.read(_HEAD)
    for offset, magic, problem in _MAGIC:
        if head.startswith(magic, offset):
            return Identified("other", problem)
    if head[1:4] == b"trt" and head[:1] in b"fpv":  # TensorRT writes ftrt, TensorRT-RTX vtrt
        return Identified("engine")
    if head.startswith(b"PK\x03\x04"):
        return _archive(file)
    if is_safetensors(head) or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # or a pickle
        return Identified("checkpoint", _CHECKPOINT)
    if _is_onnx(file, size):
        return Identified("onnx")
    return _text(file, head, size)


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the top-level fields up to the graph are those of a ModelProto; the graph itself may be damaged."""
    for number, wire, end in _fields(file):
        if _MODEL_FIELDS.get(number, wire) != wire:
            return False
        if number == _GRAPH:
            return True
        if end > size:
            return False
        file.seek(end)
    return False


def _fields(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(number, wire type, end offset) of each field from the start; the caller seeks to the next field."""
    file.seek(0)
    for _ in range(10_000):
        key = _varint(file)
        if key is None or key >> 3 == 0:
            return
        wire = key & 7
        if wire == 0:
            if _varint(file) is None:
                return
            length: int | None = 0
        else:
            length = _varint(file) if wire == 2 else {1: 8, 5: 4}.get(wire)
        if length is None:
            return
        yield key >> 3, wire, file.tell() + length


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None


def _archive(file: BinaryIO) -> Identified | None:
    """Identify a zip file: from torch.export.save or torch.save, a TorchScript archive, or arrays."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # truncated: the suffix decides
    inside = {name.partition("/")[2] for name in names} | set(names)
    if {"archive_format", "models/model.json", "serialized_exported_program.json"} & inside:
        return Identified("program")
    if "constants.pkl" in inside and "data.pkl" in inside:
        return Identified(
            "other", "is a TorchScript archive; save its weights with torch.save(model.state_dict(), ...)"
        )
    if "data.pkl" in inside:
        return Identified("checkpoint", _CHECKPOINT)
    if names and all(name.endswith(".npy") for name in names):
        return Identified("other", _NUMPY_FILE)
    if {"config.json", "model.weights.h5"} <= inside:
        return Identified("other", "is a Keras model; export it to ONNX from Keras")
    return Identified("other", "is a zip archive; unpack it first")


def _text(file: BinaryIO, head: bytes, size: int) -> Identified | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return Identified("other", "is an HTML page, perhaps from a download that needs a login; download it again")
    if start.startswith(b"<?xml") and b"<net" in start:
        return Identified("other", f"is an OpenVINO model; {_FROM_ONNX}")
    if size > _LARGEST_RECIPE or b"\0" in head:
        return None
    file.seek(0)
    try:
        tables = tomllib.loads(file.read().decode("utf-8"))
    except ValueError:
        return None
    return Identified("recipe") if isinstance(tables.get("model"), dict) else None


def _python(path: Path) -> Identified:
    return Identified(
        "unusable", f"is a Python file; name a factory in it as {path.stem}:FACTORY, and run from its folder"
    )


def _has_engine_sidecar(path: Path) -> bool:
    """Whether a sidecar written by ``build`` describes the file as an engine."""
    try:
        content = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "engine_sha256" in content
