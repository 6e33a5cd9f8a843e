from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stn_infer import BatchPredictor, Predictor
from stn_infer.errors import UsageError
from tests.api.cluster.test_model import write_model

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (5, 4, 5), np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def encoded(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def objects(values: list[Any]) -> Any:
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.mark.parametrize("form", ["arrays", "bytes", "paths"])
def test_batches_get_columns(model: Path, form: str) -> None:
    labels = [f"class {i}" for i in range(20)]
    column: Any = PICTURES
    if form == "bytes":
        column = objects([encoded(picture) for picture in PICTURES])
    elif form == "paths":
        column = []
        for i, picture in enumerate(PICTURES):
            (model.parent / f"{i}.png").write_bytes(encoded(picture))
            column.append(str(model.parent / f"{i}.png"))
        column = np.array(column)
    predictor = BatchPredictor(model, column="x", outputs=["y"], preprocess="0..1", labels=labels)
    found = predictor({"x": column, "id": np.arange(5)})
    assert list(found) == ["x", "id", "prediction", "label", "confidence", "error", "y"]
    with Predictor(model, preprocess="0..1", labels=labels) as other:
        expected = list(other(list(PICTURES)))
    assert found["prediction"].tolist() == [each.prediction for each in expected]
    assert found["label"].tolist() == [each.label for each in expected]
    assert found["confidence"].tolist() == [np.float32(each.confidence) for each in expected]
    assert np.array_equal(found["y"], np.stack([each.outputs["y"] for each in expected]))
    assert found["error"].tolist() == [""] * 5 and found["id"].tolist() == [0, 1, 2, 3, 4]


def test_a_picture_that_is_damaged_is_a_row_with_an_error(model: Path) -> None:
    predictor = BatchPredictor(model, outputs=["y"], preprocess="0..1")
    found = predictor({"image": objects([b"damaged", encoded(PICTURES[0])])})
    assert "not an image" in found["error"][0] and found["error"][1] == ""
    assert found["prediction"][0] == -1 and found["prediction"][1] >= 0
    assert np.isnan(found["y"][0]).all() and np.isfinite(found["y"][1]).all() and np.isnan(found["confidence"][0])
    assert predictor({"image": objects([b"damaged"])})["y"].shape == (1, 20)
    assert predictor({"image": objects([])})["y"].shape == (0, 20)


def test_what_is_not_there(model: Path) -> None:
    with pytest.raises(UsageError, match="no output 'z'; its outputs are y"):
        BatchPredictor(model, outputs=["z"])
    with pytest.raises(UsageError, match="omit warps"):
        BatchPredictor(model, warps=True)
    with pytest.raises(UsageError, match="expected a column 'image' of pictures, found picture"):
        BatchPredictor(model)({"picture": PICTURES})
