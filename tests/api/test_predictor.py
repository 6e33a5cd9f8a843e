"""``Predictor``: what a program holds, predicted as ``run`` predicts files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stn_infer
from stn_infer import Predictor
from stn_infer.api.metadata import set_metadata
from stn_infer.api.open import open_backend
from stn_infer.api.run import run
from stn_infer.errors import AssumptionWarning, InputError, ModelError, StnInferError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from tests.api.test_run import Fake, write_images
from tests.support.onnx_files import affine_model, constant, make

LABELS = ("dark", "bright", "wide")


def scores_model(path: Path, rule: str | None = "gray,std=0.5") -> Path:
    """Gray images [n, 1, 8, 8] to three scores, with a matrix product."""
    weight = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
    ]
    floats = onnx.TensorProto.FLOAT
    shapes = {"image": (floats, ["n", 1, 8, 8])}, {"scores": (floats, ["n", 3])}
    model = make(nodes, *shapes, [constant(weight, "weight")])
    preprocess = None if rule is None else Preprocess.parse(rule)
    set_metadata(model, ModelMetadata(preprocess, LABELS if rule else None))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scores_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(1)
    for index in range(70):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{index:02}.png")
    return folder


def test_the_same_as_run_to_the_last_bit(model: Path, photos: Path, tmp_path: Path) -> None:
    run(model, photos, tmp_path / "out", format="npz", batch_size=16)
    with np.load(tmp_path / "out" / "predictions-00000.npz") as stored, Predictor(model, batch_size=16) as predictor:
        ways: list[Any] = [
            photos,
            sorted(photos.iterdir()),
            (Image.open(path) for path in sorted(photos.iterdir())),
            np.stack([np.asarray(Image.open(path)) for path in sorted(photos.iterdir())]),
        ]
        for given in ways:
            found = list(predictor(given))
            np.testing.assert_array_equal(np.stack([it.outputs["scores"] for it in found]), stored["scores"])
            assert [it.prediction for it in found] == stored["prediction"].tolist()
            assert [it.label for it in found] == stored["label"].tolist()
        assert [it.input for it in predictor(photos)] == stored["input"].tolist()


def test_candidates_and_text(model: Path) -> None:
    with Predictor(model, top_k=2) as predictor:
        found = predictor.one(np.full((8, 8), 200, np.uint8))
    scores = found.outputs["scores"].astype(np.float64)
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    best = np.argsort(-scores)
    assert found.prediction == best[0] and found.label == LABELS[best[0]]
    assert found.confidence == pytest.approx(shares[best[0]], rel=1e-6)
    assert [it.prediction for it in found.candidates] == best[:2].tolist()
    assert (
        str(found).startswith(f"[0]: {LABELS[best[0]]} ")
        and str(found).count("%") == 2
        and "<pre>[0]: " in found._repr_html_()
    )
    with Predictor(model, labels=["a", "b", "c"], activation="sigmoid", threshold=1.0) as predictor:
        found = predictor.one(np.full((8, 8), 200, np.uint8))
    assert found.label == "abc"[best[0]] and found.candidates == ()
    assert str(found) == "[0]: no class above the threshold, scores [3]"


def test_theta_and_warped_images(tmp_path: Path) -> None:
    path = tmp_path / "affine.onnx"
    path.write_bytes(affine_model().SerializeToString())
    given = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    with Predictor(path) as plain, Predictor(path, warps=True) as predictor:
        found, expected = list(predictor(given)), list(plain(given))
    assert [spec.name for spec in predictor.outputs] == ["y"]
    for one, other in zip(found, expected, strict=True):
        assert set(one.outputs) == {"y"} and other.warps == ()
        (warp,) = one.warps
        np.testing.assert_allclose(one.outputs["y"], other.outputs["y"], atol=1e-5)
        np.testing.assert_array_equal(warp.warped, one.outputs["y"])
        assert warp.theta is not None and warp.theta.shape == (2, 3)
        image = torch.from_numpy(given[found.index(one)][None])
        grid = nn.functional.affine_grid(torch.from_numpy(warp.theta[None]), [1, 1, 8, 8], align_corners=False)
        warped = nn.functional.grid_sample(image, grid, align_corners=False)
        np.testing.assert_allclose(warp.warped, warped[0].numpy(), atol=1e-5)
        assert str(one) == f"[{found.index(one)}]: no class prediction, y [1, 8, 8]"


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)


@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_a_module(backend: str) -> None:
    threads = torch.get_num_threads()
    module = Net().train()
    with Predictor(module, backend=backend, input_shapes=[(1, 4, 4)], preprocess="0..1") as predictor:
        assert torch.get_num_threads() == threads
        found = predictor.one(np.arange(16, dtype=np.uint8).reshape(4, 4))
    np.testing.assert_allclose(found.outputs["output"], [7.5 / 255, 15 / 255], rtol=1e-6)
    assert module.training


def test_an_assumption_is_told_once(tmp_path: Path) -> None:
    path = scores_model(tmp_path / "model.onnx", None)
    picture = np.zeros((8, 8), np.uint8)
    with Predictor(path) as predictor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(predictor(picture.astype(np.float32)[None]))  # preprocessed: nothing is assumed
        assert caught == []
        list(predictor(picture))
        list(predictor(picture))
    assert [it.category for it in caught] == [AssumptionWarning]
    with Predictor(path, strict=True) as predictor:
        for _ in range(2):
            with pytest.raises(UsageError, match="nothing says what the model takes"):
                predictor.one(picture)
    with Predictor(path, preprocess="-1..1", strict=True) as predictor:
        assert predictor.one(picture).prediction is not None


def test_an_open_backend_stays_open(model: Path, photos: Path, tmp_path: Path) -> None:
    fake = Fake()  # fails when it is closed
    paths = write_images(tmp_path / "in", 3)
    with Predictor(fake, preprocess="0..1") as predictor:
        assert [it.input for it in predictor(paths)] == list(map(str, paths))
    opened = open_backend(model, threads=1)
    with Predictor(opened) as predictor:
        expected = predictor.one(photos / "00.png").outputs["scores"]
    with Predictor(opened) as predictor:
        np.testing.assert_array_equal(predictor.one(photos / "00.png").outputs["scores"], expected)


def test_what_is_closed(model: Path) -> None:
    predictor = Predictor(model)
    assert repr(predictor) == "<Predictor: ort on cpu>"
    predictor.close()
    predictor.close()
    assert repr(predictor) == "<Predictor: closed, ort on cpu>"
    with pytest.raises(ModelError, match="this predictor is closed; open it again"):
        predictor("a.png")
    with pytest.raises(ModelError, match="this backend is closed"):
        predictor._backend.run({"image": np.zeros((1, 1, 8, 8), np.float32)})


def test_one_picture(model: Path, photos: Path) -> None:
    with Predictor(model) as predictor:
        assert predictor.one(str(photos / "03.png")).input.endswith("03.png")
        with pytest.raises(InputError, match="expected one picture, got several"):
            predictor.one(photos)
        with pytest.raises(InputError, match="expected one picture, got none"):
            predictor.one([])
        with pytest.raises(InputError, match=r"no such file: nothing\.png"):
            predictor.one("nothing.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is an integer of at least 1, not 0"),
        ({"workers": 1.5}, "workers is an integer of at least 1, not 1.5"),
        ({"threads": None, "workers": "2"}, "workers is an integer of at least 1, not '2'"),
        ({"errors": "ignore"}, "errors is one of raise, return, not 'ignore'"),
        ({"labels": "a,b,c"}, "labels is a list with one name per class, not 'a,b,c'"),
        ({"labels": ["a"]}, "1 label given for the 3 classes of output 'scores'"),
        ({"top_k": 0}, "top_k is at least 1, not 0"),
        ({"activation": "tanh"}, "an activation is one of softmax, sigmoid, none, not 'tanh'"),
        ({"backend": "onnx"}, "unknown backend 'onnx'"),
        ({"backend": "eager", "warps": True}, "which PyTorch does not have, not of backend 'eager'"),
        ({"backend": "eager"}, "runs PyTorch models, not an ONNX file"),
        ({"preprocess": "rgb"}, "the model takes 1 channel, the preprocessing gives rgb"),
        ({"model": 3}, "expected a model's file or source, or a module, got int"),
        ({"model": Net}, "expected a model's file or source, or a module, got type"),
        ({"model": Net()}, "Net: a module does not define its inputs' shapes"),
        ({"model": "missing.onnx"}, "missing.onnx does not exist"),
        ({"model": Fake(), "warps": True}, "the backend is already open"),
    ],
)
def test_wrong_arguments(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StnInferError) as caught:
        Predictor(options.pop("model", model), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_it_is_a_public_name() -> None:
    assert stn_infer.Predictor is Predictor
    with pytest.raises(UsageError, match="an iterable of these, got int"):
        Predictor(replace_preprocess())(5)


def replace_preprocess() -> Fake:
    return Fake(metadata=replace(ModelMetadata(), preprocess=Preprocess.parse("gray")))
