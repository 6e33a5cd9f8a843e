"""A model's folder: what is in it, and that it appears as a whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import pytest

from stn_infer.activation import Scores
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import ModelError, OutputError, UsageError
from stn_infer.serving.repository import check_name, check_place, name_from, write_model
from stn_infer.serving.service import Classes, Service
from tests.support.helpers import nothing_larger_than
from tests.support.served_models import LABELS, classifier

SCORES = TensorSpec("scores", (None, 4), np.dtype(np.float32))
SERVICE = Service(
    name="digits",
    inputs=(TensorSpec("x", (None, 2, 3), np.dtype(np.float32)),),
    outputs=(SCORES,),
    classes=Classes.of((SCORES,), Scores(), 1, LABELS),
    labels=LABELS,
    library="lib.so",
)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "lib.so"
    path.write_bytes(b"library")
    return path


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_files_of_the_python_platform(tmp_path: Path, library: Path) -> None:
    repository = tmp_path / "models"
    assert write_model(repository, SERVICE, b"onnx", (library,)) == repository / "digits"
    names = ["1", "1/model.onnx", "1/model.py", "1/settings.json", "README.md", "config.pbtxt", "labels.txt", "lib.so"]
    assert listed(repository / "digits") == names
    assert listed(tmp_path) == ["lib.so", "models", "models/digits", *(f"models/digits/{name}" for name in names)]
    assert (repository / "digits/labels.txt").read_text() == 'eins\nzwölf\\n\nqu"ote\nvier\n'
    assert json.loads((repository / "digits/1/settings.json").read_text()) == {
        "library": "lib.so",
        "labels": list(LABELS),
        "classes": {
            "outputs": {"prediction": "prediction", "label": "label", "confidence": "confidence"},
            "top_k": 1,
            "activation": "softmax",
            "applied": False,
        },
    }


@pytest.mark.parametrize(("platform", "model"), [("onnxruntime", "1/model.onnx"), ("tensorrt", "1/model.plan")])
def test_the_files_of_the_other_platforms(tmp_path: Path, platform: str, model: str) -> None:
    service = replace(SERVICE, platform=platform, classes=None, labels=())
    write_model(tmp_path / "models", service, b"model", folder=PurePosixPath("/srv/models/digits"))
    assert listed(tmp_path / "models/digits") == ["1", model, "README.md", "config.pbtxt"]
    assert ("/srv/models/digits/lib.so" in (tmp_path / "models/digits/config.pbtxt").read_text()) == (
        platform == "onnxruntime"
    )
    readme = (tmp_path / "models/digits/README.md").read_text()
    plugins = "--backend-config=tensorrt,plugins=/srv/models/digits/libstn_plugins_register.so"
    assert "tritonserver --model-repository=/srv/models" in readme
    assert (plugins in readme) == (platform == "tensorrt")


def test_external_data_come_along(tmp_path: Path) -> None:
    model = classifier()
    model.graph.initializer[0].name = "large"
    model.graph.node[1].input[1] = "large"
    place = "weights/deep.bin"
    (tmp_path / "weights").mkdir()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], place)
    onnx.save(model, tmp_path / "other.onnx")
    write_model(tmp_path / "models", SERVICE, tmp_path / "other.onnx")
    folder = tmp_path / "models/digits/1"
    assert (folder / place).read_bytes() == (tmp_path / place).read_bytes()
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_external_data_that_several_names_link_to(tmp_path: Path) -> None:
    model = classifier()
    place = tmp_path / "weights.bin"
    for tensor, name in zip(model.graph.initializer[:2], ("weights.bin", "link.bin"), strict=True):
        onnx.external_data_helper.set_external_data(tensor, name)
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "link.bin").unlink()
    (tmp_path / "link.bin").symlink_to(place)
    write_model(tmp_path / "models", SERVICE, tmp_path / "other.onnx")
    for name in ("weights.bin", "link.bin"):
        assert (tmp_path / "models/digits/1" / name).read_bytes() == place.read_bytes()


def test_external_data_of_a_name_that_is_taken(tmp_path: Path) -> None:
    model = classifier()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "settings.json")
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"keeps weights in settings\.json, which is the name of a file"):
        write_model(tmp_path / "models", SERVICE, tmp_path / "other.onnx")
    assert listed(tmp_path) == ["other.onnx", "settings.json"]


def test_a_model_of_that_name_stays(tmp_path: Path, library: Path) -> None:
    repository = tmp_path / "models"
    write_model(repository, SERVICE, b"first", (library,))
    write_model(repository, replace(SERVICE, name="other"), b"other", (library,))
    with pytest.raises(OutputError, match=r"models has a model 'digits'; give another --name, or --overwrite"):
        write_model(repository, SERVICE, b"second", (library,))
    assert (repository / "digits/1/model.onnx").read_bytes() == b"first"
    write_model(repository, replace(SERVICE, library=""), b"second", overwrite=True)
    assert (repository / "digits/1/model.onnx").read_bytes() == b"second"
    assert not (repository / "digits/lib.so").exists()
    assert sorted(os.listdir(repository)) == ["digits", "other"] and sorted(os.listdir(tmp_path)) == [
        "lib.so",
        "models",
    ]


def test_a_folder_that_is_not_a_models_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "models/digits").mkdir(parents=True)
    (tmp_path / "models/digits/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="digits exists and is not the folder of a model; give another --name"):
        write_model(tmp_path / "models", SERVICE, b"model", overwrite=True)
    assert listed(tmp_path / "models") == ["digits", "digits/thesis.tex"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    repository = tmp_path / "models"
    if exists:
        write_model(repository, SERVICE, b"first")
    before = listed(tmp_path)
    with nothing_larger_than(20_000), pytest.raises(OutputError, match=r"cannot write .*digits: File too large"):
        write_model(repository, SERVICE, bytes(40_000), overwrite=True)
    assert listed(tmp_path) == before
    assert not exists or (repository / "digits/1/model.onnx").read_bytes() == b"first"


def test_a_rename_that_fails_puts_the_replaced_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, rename = tmp_path / "models", Path.rename
    write_model(repository, SERVICE, b"first")

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="No space left"):
        write_model(repository, SERVICE, b"second", overwrite=True)
    assert (repository / "digits/1/model.onnx").read_bytes() == b"first" and os.listdir(tmp_path) == ["models"]


def test_places_where_no_repository_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is not a folder"):
        check_place(tmp_path / "file", "m")
    with pytest.raises(OutputError, match=r"cannot be made: no such folder: .*/no"):
        check_place(tmp_path / "no" / "models", "m")
    write_model(tmp_path / "models", SERVICE, b"model")
    with pytest.raises(OutputError, match="is the folder of a model; name the repository that it is in"):
        check_place(tmp_path / "models" / "digits", "m")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(OutputError, match=r"the folder .*/models is not writable"):
        check_place(tmp_path / "models", "m")


def test_names() -> None:
    for good in ("m", "st-cnn_2.onnx", "0", "a" * 128):
        check_name(good)
        assert name_from(good) == good
    for bad in ("", ".", "..", "a/b", "-m", "ü", "a b", "a" * 129, "a\n"):
        with pytest.raises(UsageError, match="a model's name has up to 128 letters"):
            check_name(bad)
        check_name(name_from(bad))
