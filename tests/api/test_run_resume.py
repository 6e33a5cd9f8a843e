"""``run --resume`` continues the same job or refuses: everything that determines an output identifies the job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from stn_infer.api.fingerprint import fingerprint
from stn_infer.api.run import run
from stn_infer.api.source import resolve
from stn_infer.errors import OutputError

RECIPE = """
[model]
network = "fcn"
input_shape = [1, 4, 5]
options = { classes = 3, hidden = HIDDEN }
"""


@dataclass
class Place:
    """A folder with a model in every form, and inputs for it."""

    path: Path

    @property
    def images(self) -> Path:
        return self.path / "images"

    def __truediv__(self, name: str) -> Path:
        return self.path / name


def write_onnx(path: Path, weight: float = 1.0, external: str = "") -> None:
    """y = flatten(x) * w, with w in the file ``external`` if it is given."""
    values = numpy_helper.from_array(np.full((20,), weight, np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Mul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 20])
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [x], [y], [values]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    if external:
        path.with_name(external).unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)


def write_half(path: Path) -> None:
    """The same model with a weight of 16 bits."""
    write_onnx(path)
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((20,), np.float16), "half"))
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT))
    onnx.save(model, path)


def save_weights(path: Path, seed: int, hidden: int = 4) -> None:
    from stn_infer.models import create

    torch.manual_seed(seed)
    torch.save(create("fcn", input_shape=(1, 4, 5), classes=3, hidden=hidden).state_dict(), path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    place.images.mkdir()
    for index in range(4):
        np.save(place.images / f"{index}.npy", np.full((1, 4, 5), index, np.float32))
        os.utime(place.images / f"{index}.npy", (1, 1))
    write_onnx(place / "plain.onnx")
    write_onnx(place / "split.onnx", external="anything.bin")
    (place / "net.toml").write_text(RECIPE.replace("HIDDEN", "4"))
    save_weights(place / "net.pt", 5)
    (place / "list.txt").write_text("\n".join(str(place.images / f"{index}.npy") for index in range(4)))
    return place


Change = Callable[[Place, dict[str, Any]], None]


def _options(**changes: Any) -> Change:
    return lambda place, options: options.update(changes)


def _other_time(place: Place, options: dict[str, Any]) -> None:
    os.utime(place.images / "2.npy", (2, 2))


def _other_content(place: Place, options: dict[str, Any]) -> None:
    np.save(place.images / "2.npy", np.full((1, 4, 5), 9, np.float32))
    os.utime(place.images / "2.npy", (1, 1))


def _other_size(place: Place, options: dict[str, Any]) -> None:
    np.save(place.images / "2.npy", np.full((1, 4, 5), 2, np.float64))
    os.utime(place.images / "2.npy", (1, 1))


def _other_order(place: Place, options: dict[str, Any]) -> None:
    names = (place / "list.txt").read_text().splitlines()
    (place / "list.txt").write_text("\n".join(reversed(names)))


def _safetensors(place: Place, options: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(place / "net.pt"), place / "net.safetensors")


def _in_manifest(**changes: str) -> Change:
    """The earlier run was one of other versions."""

    def change(place: Place, options: dict[str, Any]) -> None:
        manifest = place / "out" / "run.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))

    return change


CHANGES: dict[str, tuple[str, dict[str, Any], Change, str]] = {
    "graph": ("plain.onnx", {}, lambda place, options: write_onnx(place / "plain.onnx", 2.0), "the model's graph"),
    "external data": (
        *("split.onnx", {}),
        lambda place, options: write_onnx(place / "split.onnx", 2.0, "anything.bin"),
        "the model's graph, weights",
    ),
    "recipe": (
        *("net.toml", {"backend": "eager"}),
        lambda place, options: (place / "net.toml").write_text(RECIPE.replace("HIDDEN", "5")),
        "the model's graph, weights",
    ),
    "weights behind a recipe": (
        *("net.toml", {"backend": "eager", "weights": "net.pt"}),
        lambda place, options: save_weights(place / "net.pt", 1),
        "the model's graph, weights",
    ),
    "other weights": (
        *("net.toml", {"backend": "eager"}),
        lambda place, options: options.update(weights=place / "net.pt"),
        "the model's graph, weights",
    ),
    "another name": ("plain.onnx", {}, lambda place, options: options.update(model="split.onnx"), "model was"),
    "preprocessing": ("plain.onnx", {}, _options(preprocess="scale=1"), "preprocess was"),
    "labels": ("plain.onnx", {}, _options(labels=[str(index) for index in range(20)]), "labels was"),
    "format": ("plain.onnx", {}, _options(format="npz"), "format was"),
    "rows of a shard": ("plain.onnx", {}, _options(shard_rows=3), "shard_rows was"),
    "fewer inputs": (
        "plain.onnx",
        {},
        lambda place, options: (place.images / "3.npy").unlink(),
        "samples was 4, now 3",
    ),
    "renamed input": (
        *("plain.onnx", {}),
        lambda place, options: (place.images / "3.npy").rename(place.images / "4.npy"),
        "the inputs' names differ",
    ),
    "size": ("plain.onnx", {}, _other_size, "the inputs' sizes or modification times differ"),
    "time": ("plain.onnx", {}, _other_time, "the inputs' sizes or modification times differ"),
    "contents": ("plain.onnx", {"check_inputs": True}, _other_content, "the inputs' contents differ"),
    "contents compared now": ("plain.onnx", {}, _options(check_inputs=True), "the inputs' contents differ"),
    "precision": ("plain.onnx", {}, lambda place, options: write_half(place / "plain.onnx"), "the model's graph"),
    "weights beside a recipe": ("net.toml", {"backend": "eager"}, _safetensors, "the model's graph, weights"),
    "input shape": ("net.toml", {"backend": "eager"}, _options(input_shapes=[(1, 5, 4)]), "the model's graph"),
    "backend": ("net.toml", {"backend": "eager"}, _options(backend="ort"), 'backend was "eager", now "ort"'),
    "order of a list": ("plain.onnx", {"inputs": "@list.txt"}, _other_order, "the inputs' names differ"),
    "version": ("plain.onnx", {}, _in_manifest(stn_infer_version="0.0"), 'stn_infer_version was "0.0", now '),
    "runtime's version": ("plain.onnx", {}, _in_manifest(runtime="onnxruntime 1.0"), 'runtime was "onnxruntime 1.0"'),
    "libraries": ("plain.onnx", {}, _in_manifest(libraries="Pillow 1"), 'libraries was "Pillow 1", now '),
}


_EXPORTED = {"backend"}  # torch exports the network first, which takes seconds


@pytest.mark.parametrize(
    ("model", "options", "change", "named"),
    [
        pytest.param(*change, id=name, marks=[pytest.mark.slow] if name in _EXPORTED else [])
        for name, change in CHANGES.items()
    ],
)
def test_a_job_with_one_thing_changed_is_refused_and_the_thing_named(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    options: dict[str, Any],
    change: Change,
    named: str,
) -> None:
    options = {"model": model, **options}
    monkeypatch.chdir(place.path)

    def start(resume: bool) -> None:
        given = dict(options)
        for name in ("model", "weights"):
            if isinstance(given.get(name), str):
                given[name] = place / given[name]
        run(
            given.pop("model"),
            given.pop("inputs", place.images),
            place / "out",
            resume=resume,
            shard_rows=given.pop("shard_rows", 2),
            **given,
        )

    start(False)
    start(True)
    change(place, options)
    before = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    with pytest.raises(OutputError, match=f"cannot resume another job: {named}") as caught:
        start(True)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == before


def test_times_are_ignored_if_contents_are_compared(place: Place) -> None:
    run(place / "plain.onnx", place.images, place / "out", check_inputs=True)
    _other_time(place, {})
    assert run(place / "plain.onnx", place.images, place / "out", check_inputs=True, resume=True).resumed == 4


def test_the_fingerprint_of_bytes_and_files(place: Place) -> None:
    plain = place / "plain.onnx"
    assert fingerprint(resolve(plain.read_bytes())) == fingerprint(resolve(plain.read_bytes()))
    first = fingerprint(resolve(place / "split.onnx"))
    (place / "anything.bin").write_bytes((place / "anything.bin").read_bytes()[::-1][:-1] + b"x")
    assert fingerprint(resolve(place / "split.onnx")) != first
