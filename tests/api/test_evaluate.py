"""Scores of a backend whose predictions are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stn_infer.api.evaluate import Change, compare, evaluate
from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.decoding import Decoding
from stn_infer.errors import InputError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata

FLOAT32 = np.dtype(np.float32)
Function = Callable[[Array], dict[str, Array]]


class Bright:
    """A backend that knows an image [N, 1, 4, 4] by its brightness: 10 times the value at its first pixel."""

    name, device = "bright", "cpu"

    def __init__(self, function: Function, outputs: dict[str, tuple[int, ...]], metadata: ModelMetadata) -> None:
        self.inputs = (TensorSpec("input", (None, 1, 4, 4), FLOAT32),)
        self.outputs = tuple(TensorSpec(name, (None, *shape), FLOAT32) for name, shape in outputs.items())
        self.metadata, self._function = metadata, function

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._function((inputs["input"][:, 0, 0, 0] * 255 / 10).round().astype(np.int64))

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        raise AssertionError("eval must not close a backend that it did not open")


def classifier(labels: Sequence[str] | None = ("cat", "dog", "owl")) -> Bright:
    def function(levels: Array) -> dict[str, Array]:
        return {"scores": np.eye(3, dtype=np.float32)[levels]}

    return Bright(function, {"scores": (3,)}, ModelMetadata(labels=None if labels is None else tuple(labels)))


def picture(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), 10 * level, np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three cats, of which one looks like a dog, and two dogs."""
    for name, level in {"cat/1": 0, "cat/2": 0, "cat/3": 1, "dog/1": 1, "dog/2": 1}.items():
        picture(tmp_path / f"photos/{name}.png", level)
    return tmp_path / "photos"


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_classes(photos: Path, batch_size: int) -> None:
    calls: list[tuple[int, int]] = []
    found = evaluate(
        classifier(), photos, batch_size=batch_size, progress=lambda done, total: calls.append((done, total))
    )
    assert (found.samples, found.scored, found.failed) == (5, 5, 0)
    assert found.classification is not None and found.sequence is None and found.boxes is None
    assert found.classification.accuracy == pytest.approx(0.8)
    assert found.classification.confusion == ((2, 1, 0), (0, 2, 0), (0, 0, 0))
    assert calls[-1] == (5, 5) and len(calls) == -(-5 // batch_size)
    json = found.json_content()
    assert json["classification"]["classes"][0]["label"] == "cat" and "boxes" not in json


def test_a_corrupt_picture_is_counted_and_named(photos: Path) -> None:
    (photos / "dog/3.png").write_bytes(b"no picture")
    found = evaluate(classifier(), photos, batch_size=2)
    assert (found.samples, found.scored, found.failed) == (6, 5, 1)
    ((name, error),) = found.failures
    assert name.endswith("dog/3.png") and error
    assert found.classification is not None and sum(map(sum, found.classification.confusion)) == 5


def test_class_numbers_without_labels(tmp_path: Path) -> None:
    picture(tmp_path / "d/2/a.png", 2)
    picture(tmp_path / "d/0/a.png", 1)
    found = evaluate(classifier(None), tmp_path / "d")
    assert found.classification is not None and found.classification.confusion == ((0, 1, 0), (0, 0, 0), (0, 0, 1))
    picture(tmp_path / "d/3/a.png", 2)
    with pytest.raises(InputError, match="has the unknown class '3'; the model's classes are 0, 1, 2"):
        evaluate(classifier(None), tmp_path / "d")


def test_the_users_labels(photos: Path) -> None:
    found = evaluate(classifier(None), photos, labels=("dog", "cat", "owl"))
    assert found.classification is not None and found.classification.confusion == ((0, 2, 0), (2, 1, 0), (0, 0, 0))
    with pytest.raises(UsageError, match="2 labels given for the 3 classes"):
        evaluate(classifier(), photos, labels=("dog", "cat"))
    with pytest.raises(UsageError, match="two classes have the same label"):
        evaluate(classifier(), photos, labels=("dog", "cat", "cat"))


def reader() -> Bright:
    """Reads a number of up to three digits: the brightness twice, then the end."""
    number = Decoding("number", "sequence", ("output",), end=-1)

    def function(levels: Array) -> dict[str, Array]:
        return {"output": np.eye(11, dtype=np.float32)[np.stack([levels, levels, np.full_like(levels, 10)], 1)]}

    return Bright(function, {"output": (3, 11)}, ModelMetadata(decodings=(number,)))


def locator(function: Function | None = None) -> Bright:
    """Finds a square of 2 x 2 pixels whose left side is the brightness."""

    def square(levels: Array) -> dict[str, Array]:
        zero = np.zeros_like(levels)
        return {"box": np.stack([levels, zero, levels + 2, zero + 2], 1).astype(np.float32)}

    decoding = Decoding("object", "box", ("box",))
    return Bright(function or square, {"box": (4,)}, ModelMetadata(decodings=(decoding,)))


def test_sequences(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 7)
    picture(tmp_path / "b.png", 3)
    (tmp_path / "labels.csv").write_text("path,label\na.png,77\nb.png,35\n")
    found = evaluate(reader(), tmp_path / "labels.csv")
    assert found.sequence is not None and found.classification is None
    assert (found.sequence.error, found.sequence.character_error) == (0.5, 0.25)


def test_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom\na.png,1,0,3,2\nb.png,3,0,5,2\n")
    found = evaluate(locator(), tmp_path / "boxes.csv")
    assert found.boxes is not None
    assert (found.boxes.mean_iou, found.boxes.above_half) == (pytest.approx((1 + 1 / 3) / 2), 0.5)


def test_nan_is_a_failure_and_all_failures_are_an_error(tmp_path: Path) -> None:
    def function(levels: Array) -> dict[str, Array]:
        box = np.tile(np.array([0, 0, 2, 2], np.float32), (len(levels), 1))
        box[levels == 2] = np.nan
        return {"box": box}

    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom\na.png,0,0,2,2\nb.png,3,0,5,2\n")
    found = evaluate(locator(function), tmp_path / "boxes.csv")
    assert found.failures == (("b.png", "the model's output contains NaN for this input"),)
    assert found.boxes is not None and found.boxes.mean_iou == 1
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom\nb.png,3,0,5,2\nc.png,3,0,5,2\n")
    with pytest.raises(InputError, match=r"none of the 2 samples of .* could be scored"):
        evaluate(locator(function), tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("backend", "text", "message"),
    [
        (locator(), "path,label\na.png,x\n", "neither classes nor a text: its outputs are boxes"),
        (reader(), "path,left,top,right,bottom\na.png,0,0,1,1\n", "does not say which output is a box"),
        (classifier(), "path,left,top,right,bottom\na.png,0,0,1,1\n", "does not say which output is a box"),
    ],
)
def test_data_of_another_kind(backend: Bright, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        evaluate(backend, tmp_path / "data.csv")


def test_a_model_that_fails_ends_it(photos: Path) -> None:
    def function(levels: Array) -> dict[str, Any]:
        raise ModelError("out of memory")

    backend = Bright(function, {"scores": (3,)}, ModelMetadata(labels=("cat", "dog", "owl")))
    with pytest.raises(ModelError, match="out of memory"):
        evaluate(backend, photos)
    with pytest.raises(UsageError, match="batch_size is at least 1"):
        evaluate(backend, photos, batch_size=0)


def turned() -> Bright:
    """Has level 0 right, as the classifier, and the others as the next class, which is the second best."""

    def function(levels: Array) -> dict[str, Array]:
        scores = np.eye(3, dtype=np.float32)[(levels + (levels > 0)) % 3]
        return {"scores": scores + np.eye(3, dtype=np.float32)[levels] / 2}

    return Bright(function, {"scores": (3,)}, ModelMetadata(labels=("cat", "dog", "owl"), precision="int8"))


def test_models_side_by_side(photos: Path) -> None:
    (photos / "dog/3.png").write_bytes(b"no picture")
    found = compare([classifier(), turned()], photos, top_k=2)
    assert found.changes == (None, Change(same=2, lost=2, gained=0))
    first, second = (each.classification for each in found.evaluations)
    assert first is not None and second is not None
    assert (first.accuracy, second.accuracy, second.top_k_accuracy) == (0.8, 0.4, 0.8)
    lines = str(found).splitlines()
    assert lines[0].split() == ["model", "backend", "precision", "accuracy", "top-2", "same", "lost", "gained"]
    assert lines[3].split() == ["bright", "int8", "40.00%", "80.00%", "2", "2", "0"]
    assert lines[4] == "6 samples, up to 1 of them failed"
    json = found.json_content()["evaluations"]
    assert json[1]["change"] == {"same": 2, "lost": 2, "gained": 0} and "predicted" not in json[0]


def test_what_cannot_be_compared(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one model"):
        compare([], photos)
    with pytest.raises(UsageError, match="top_k is for classes"):
        compare([texts()], text_data(tmp_path), top_k=2)
    picture(tmp_path / "both/a/0.png", 0)
    other = Bright(classifier()._function, {"scores": (3,)}, ModelMetadata(labels=("a", "b", "c")))
    with pytest.raises(UsageError, match="predict different things"):
        compare([other, texts()], tmp_path / "both")


def texts() -> Bright:
    decoding = Decoding("text", "sequence", ("places",), symbols=("a", "b", "c"))

    def function(levels: Array) -> dict[str, Array]:
        return {"places": np.eye(3, dtype=np.float32)[levels][:, None]}

    return Bright(function, {"places": (1, 3)}, ModelMetadata(decodings=(decoding,)))


def text_data(folder: Path) -> Path:
    picture(folder / "texts/0.png", 0)
    (folder / "texts.csv").write_text("path,label\ntexts/0.png,b\n")
    return folder / "texts.csv"


def test_texts_side_by_side(tmp_path: Path) -> None:
    found = compare([texts(), texts()], text_data(tmp_path))
    assert found.changes[1] == Change(same=1, lost=0, gained=0)
    assert found.lines()[0].split()[-7:] == ["sequence", "error", "character", "error", "same", "lost", "gained"]
