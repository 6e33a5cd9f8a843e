"""Mutations by field: repeatable, and of a file's kind; the rest of the file stays readable most of the time."""

from __future__ import annotations

import io
import json
import random
import tomllib
import zipfile
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.fuzz.mutate import by_field, mutate
from tests.fuzz.mutate_onnx import is_sound
from tests.fuzz.seeds import RECIPE
from tests.support.onnx_files import affine_model


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.json", '{"sizes": [1, 2, 3], "name": "x"}')
        archive.writestr("a/version", "3")
    return out.getvalue()


def _members(data: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


FILES: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "m.onnx": (affine_model().SerializeToString(), onnx.load_from_string),
    "a.npy": (_saved(lambda out: np.save(out, np.zeros((3, 4), np.float32))), lambda data: np.load(io.BytesIO(data))),
    "a.png": (
        _saved(lambda out: Image.new("RGB", (5, 4)).save(out, "PNG")),
        lambda data: Image.open(io.BytesIO(data)).load(),
    ),
    "a.jpg": (
        _saved(lambda out: Image.new("RGB", (5, 4)).save(out, "JPEG")),
        lambda data: Image.open(io.BytesIO(data)).load(),
    ),
    "r.toml": (RECIPE, lambda data: tomllib.loads(data.decode())),
    "r.json": (b'{"rounds": [{"seconds": 0.5, "name": "ort"}], "schema": 3}', json.loads),
    "w.pt": (_zip(), _members),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_changes_by_field_leave_many_files_readable(name: str) -> None:
    data, read = FILES[name]
    found = [by_field(name, data, random.Random(seed)) for seed in range(60)]
    assert found == [by_field(name, data, random.Random(seed)) for seed in range(60)]
    assert found.count(None) < 6 and len(set(found)) > 15
    readable = 0
    for changed in found:
        try:
            read(changed or b"")
            readable += 1
        except Exception:
            continue
    assert readable >= 5


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_changed_further() -> None:
    for name, (data, _) in FILES.items():
        for seed in range(30):
            generator = random.Random(seed)
            for _ in range(5):
                data = mutate(name, data, generator)


def test_many_changed_models_get_past_the_structure() -> None:
    data = FILES["m.onnx"][0]
    sound = [is_sound(mutate("m.onnx", data, random.Random(seed))) for seed in range(100)]
    assert 10 <= sum(sound) <= 90
