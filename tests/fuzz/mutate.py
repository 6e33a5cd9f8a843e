"""One mutated file from another: by its fields where its format is known, else by its bytes."""

from __future__ import annotations

import random

from tests.fuzz.mutate_archives import mutate_pickle, mutate_safetensors, mutate_zip
from tests.fuzz.mutate_arrays import mutate_jpeg, mutate_npy, mutate_png
from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.mutate_onnx import mutate_onnx
from tests.fuzz.mutate_text import mutate_json, mutate_lines, mutate_toml

_BY_FIELD = 0.8  # share of changes


def mutate(name: str, data: bytes, generator: random.Random, other: bytes = b"") -> bytes:
    """``data``, the content of a file called ``name``, with one to four changes."""
    for _ in range(generator.choice((1, 1, 1, 2, 2, 4))):
        try:
            changed = by_field(name, data, generator, other) if generator.random() < _BY_FIELD else None
        except Exception:
            changed = None  # it was damaged before in a way that its format does not allow
        data = mutate_bytes(data, generator, other) if changed is None else changed
    return data


def by_field(name: str, data: bytes, generator: random.Random, other: bytes = b"") -> bytes | None:
    """``data`` with a change that its format knows; None if there is none."""
    if data[:4] == b"PK\x03\x04":
        return mutate_zip(data, generator, mutate)
    if data[:6] == b"\x93NUMPY":
        return mutate_npy(data, generator)
    if data[:4] == b"\x89PNG":
        return mutate_png(data, generator)
    if data[:2] == b"\xff\xd8":
        return mutate_jpeg(data, generator)
    suffix = name.rpartition(".")[2]
    if suffix == "onnx":
        return mutate_onnx(data, generator, other)
    if suffix == "safetensors":
        return mutate_safetensors(data, generator, mutate_json)
    if suffix == "json":
        return mutate_json(data, generator)
    if suffix == "toml":
        return mutate_toml(data, generator)
    if suffix in ("pkl", "pt", "pth"):
        return mutate_pickle(data, generator, other)
    if suffix in ("txt", "csv", "jsonl"):
        return mutate_lines(data, generator)
    return None
