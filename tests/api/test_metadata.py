"""What a file says about its inputs and classes: read, changed, stored in any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import stn_infer
from stn_infer.errors import AssumptionWarning, ModelError, UsageError
from stn_infer.preprocess.rule import Preprocess


def write_pool(path: Path, channels: int = 3, external: bool = False) -> Path:
    """A file of somebody else's: the mean of each channel times a weight, two classes."""
    weight = numpy_helper.from_array(np.ones((channels, 2), np.float32), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        ],
        "pool",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, 6, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"author": "someone"})
    onnx.save(model, path, save_as_external_data=external, location="pool.data", size_threshold=0)
    return path


def props(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def test_stored_in_the_file_itself_and_in_another(tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.onnx")
    before = onnx.load(path)
    assert stn_infer.read_metadata(path).preprocess is None
    stored = stn_infer.write_metadata(path, preprocess="imagenet,size=6x8", labels=("cat", "dog"))
    assert stored == stn_infer.read_metadata(path)
    assert stored.preprocess == Preprocess.parse("imagenet,size=6x8") and stored.labels == ("cat", "dog")
    other = tmp_path / "other.onnx"
    changed = stn_infer.write_metadata(path, other, preprocess="bgr,exif=ignore")
    assert changed.preprocess == Preprocess.parse("imagenet,size=6x8,bgr,exif=ignore"), "fields, not the whole rule"
    assert changed.labels == ("cat", "dog") and stn_infer.read_metadata(path) == stored
    assert props(other)["author"] == "someone"
    after = onnx.load(other)
    assert after.graph == before.graph and list(after.opset_import) == list(before.opset_import)


def test_weights_in_another_file_stay_there(tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.onnx", external=True)
    data = (tmp_path / "pool.data").read_bytes()
    stn_infer.write_metadata(path, tmp_path / "ready.onnx", preprocess="imagenet")
    assert (tmp_path / "pool.data").read_bytes() == data
    backend = stn_infer.open_backend(tmp_path / "ready.onnx")
    assert backend.run({"image": np.ones((1, 3, 6, 8), np.float32)})["scores"].tolist() == [[3.0, 3.0]]
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match=r"keeps weights in pool\.data, which must stay in the same folder"):
        stn_infer.write_metadata(path, tmp_path / "elsewhere" / "ready.onnx", preprocess="imagenet")
    assert not (tmp_path / "elsewhere" / "ready.onnx").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preprocess": "gray"}, "takes 3 channels"),
        ({"preprocess": "size=9x9"}, "takes images of 6x8"),
        ({"preprocess": "rgb,crop=5x5"}, "use --preprocess crop=6x8"),
        ({"preprocess": "colr=rgb"}, "unknown preprocess key"),
        ({"labels": ("a", "b", "c")}, "3 labels given for the 2 classes"),
    ],
)
def test_what_does_not_fit_the_model_is_not_stored(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    path = write_pool(tmp_path / "pool.onnx")
    content = path.read_bytes()
    with pytest.raises(UsageError, match=message):
        stn_infer.write_metadata(path, **given)
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match=message):
        stn_infer.optimize(path, tmp_path / "out.onnx", **given)
    assert not (tmp_path / "out.onnx").exists()


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"junk")
    for function in (stn_infer.read_metadata, lambda it: stn_infer.write_metadata(it, labels=("a",))):
        with pytest.raises(ModelError):
            function(path)
    assert path.read_bytes() == b"junk"


def save(path: Path, value: int) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 6), (value, value, value)).save(path)
    return path


def scores(folder: Path) -> list[float]:
    return [float(v) for v in (folder / "predictions-00000.csv").read_text().splitlines()[1].split(",")[-2:]]


def test_an_assumption_is_told_once_and_is_an_error_on_request(tmp_path: Path) -> None:
    path, image = write_pool(tmp_path / "pool.onnx"), save(tmp_path / "a.png", 255)
    with pytest.warns(AssumptionWarning, match=r"assumed rgb with values 0\.\.1") as told:
        stn_infer.run(path, image, tmp_path / "assumed")
    assert len(told) == 1 and scores(tmp_path / "assumed") == [3.0, 3.0]
    with pytest.raises(UsageError, match="nothing says what the model takes"):
        stn_infer.run(path, image, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()
    np.save(tmp_path / "pixels.npy", np.zeros((2, 6, 8, 3), np.uint8))
    with pytest.warns(AssumptionWarning):
        stn_infer.run(path, tmp_path / "pixels.npy", tmp_path / "pixels")


@pytest.mark.filterwarnings("error")
def test_nothing_is_told_where_nothing_is_assumed(tmp_path: Path) -> None:
    path, image = write_pool(tmp_path / "pool.onnx"), save(tmp_path / "a.png", 255)
    stn_infer.run(path, image, tmp_path / "given", preprocess="-1..1", strict=True)
    assert scores(tmp_path / "given") == [3.0, 3.0]
    np.save(tmp_path / "values.npy", np.zeros((2, 3, 6, 8), np.float32))
    stn_infer.run(path, tmp_path / "values.npy", tmp_path / "values", strict=True)
    stn_infer.write_metadata(path, preprocess="rgb,scale=1,mean=127.5,std=2")
    stn_infer.run(path, image, tmp_path / "stored", strict=True)
    assert scores(tmp_path / "stored") == [191.25, 191.25]


def test_optimize_stores_them(tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.onnx")
    stn_infer.optimize(path, tmp_path / "out.onnx", preprocess="imagenet", labels=("cat", "dog"))
    found = stn_infer.read_metadata(tmp_path / "out.onnx")
    assert (found.preprocess, found.labels) == (Preprocess.parse("imagenet"), ("cat", "dog"))
    assert props(tmp_path / "out.onnx")["author"] == "someone"
