"""``stn-infer eval`` on a small ONNX model: a picture of 4 x 4 pixels has the class of its brightest row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stn_infer.cli.main import main
from stn_infer.decoding import Decoding
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess

LABELS = ("top", "second", "third", "bottom")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the four rows, and as a sequence of one place; the file says so only for ``sequence.onnx``."""
    folder = tmp_path_factory.mktemp("eval")
    weights = np.repeat(np.eye(4, dtype=np.float32), 4, axis=0)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
            helper.make_node("Reshape", ["scores", "shape"], ["places"]),
        ],
        "rows",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("places", TensorProto.FLOAT, ["batch", 1, 4]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([-1, 1, 4]), "shape")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    text = Decoding("row", "sequence", ("places",), symbols=("t", "s", "h", "b"))
    plain = ModelMetadata(Preprocess(), LABELS)
    for name, metadata in {"rows": plain, "sequence": ModelMetadata(Preprocess(), decodings=(text,))}.items():
        helper.set_model_props(made, metadata.to_props())
        onnx.save(made, folder / f"{name}.onnx")
    return folder / "rows.onnx"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of each class, the second one of "bottom" with its third row bright."""
    for index, label in enumerate(LABELS):
        for copy in range(2):
            pixels = np.zeros((4, 4), np.uint8)
            pixels[index - (label == "bottom" and copy == 1)] = 200
            path = tmp_path / "photos" / label / f"{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def test_a_table_of_classes(model: Path, photos: Path) -> None:
    done = invoke(model, photos)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:2] == ["8 of 8 samples scored, 0 failed", "accuracy 87.50%"]
    assert lines[2].split() == ["class", "samples", "precision", "recall", *LABELS]
    assert lines[6].split() == ["third", "2", "66.67%", "100.00%", "0", "0", "2", "0"]
    assert lines[7].split() == ["bottom", "2", "100.00%", "50.00%", "0", "0", "1", "1"]


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_json_from_each_backend(model: Path, photos: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    done = invoke(model, photos, "--json", "--backend", backend)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["samples"], found["backend"], found["precision"]) == (8, backend, "fp32")
    assert found["classification"]["accuracy"] == 7 / 8
    assert found["classification"]["confusion"] == [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 1, 1]]


def test_a_sequence(model: Path, photos: Path, tmp_path: Path) -> None:
    rows = [f"photos/{label}/{copy}.png,{text}" for label, text in zip(LABELS, "tshb", strict=True) for copy in (0, 1)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    done = invoke(model.with_name("sequence.onnx"), tmp_path / "labels.csv")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1] == "sequence error 12.50%, character error 12.50%"


def test_metadata_names_the_text(model: Path) -> None:
    done = CliRunner().invoke(main, ["metadata", str(model.with_name("sequence.onnx"))])
    assert "sequence: row, from places" in done.stdout.splitlines()


def test_run_writes_the_text(model: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["run", str(model.with_name("sequence.onnx")), str(photos), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    header, *lines = (tmp_path / "out/predictions-00000.csv").read_text().splitlines()
    assert header == "input,prediction,confidence,row,scores_0,scores_1,scores_2,scores_3"
    assert [line.split(",")[3] for line in lines] == list("bhsshhtt")  # bottom, second, third, top


def test_corrupt_pictures_are_counted(model: Path, photos: Path) -> None:
    for copy in range(7):
        (photos / f"top/bad{copy}.png").write_bytes(b"no picture")
    done = invoke(model, photos)
    assert done.exit_code == 4
    assert done.stdout.startswith("8 of 15 samples scored, 7 failed\naccuracy 87.50%")
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 6 and "bad0.png" in failed[0] and failed[-1] == "failed: and 2 more"


def test_errors_are_one_line(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "left").mkdir()
    (photos / "top/0.png").rename(photos / "left/0.png")
    (tmp_path / "no.csv").write_text("path\nx.png\n")
    for data, message in (
        (photos, "unknown class 'left'; the model's classes are top, second, third, bottom"),
        (tmp_path / "no.csv", "expected path and label"),
        (tmp_path / "none", "none does not exist"),
    ):
        done = invoke(model, data)
        assert done.exit_code == 1 and message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_files_and_runtimes_side_by_side(model: Path, photos: Path) -> None:
    pytest.importorskip("openvino")
    copy = model.with_name("copy.onnx")
    copy.write_bytes(model.read_bytes())
    both = ["--against", copy, "--backend", "ort", "--backend", "openvino"]
    done = invoke(model, photos, *both, "--top-k", "2")
    assert done.exit_code == 0, done.output
    header, _, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["model", "backend", "precision", "accuracy", "top-2", "same", "lost", "gained"]
    assert [row[:2] for row in rows[:4]] == [[file, each] for file in ("rows.onnx", "copy.onnx") for each in both[3::2]]
    assert {row[3] for row in rows[:4]} == {"87.50%"}
    assert [row[5:] for row in rows[:4]] == [[], *[["8", "0", "0"]] * 3]
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    found = json.loads(invoke(model, photos, *both[:2], "--json").stdout)["evaluations"]
    assert found[1]["change"] == {"same": 8, "lost": 0, "gained": 0}


def test_top_k_of_one_model(model: Path, photos: Path) -> None:
    lines = invoke(model, photos, "--top-k", "4").stdout.splitlines()
    assert lines[1] == "accuracy 87.50%, top-4 100.00%"
