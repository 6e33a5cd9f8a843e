from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stn_infer.activation import Scores
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import UsageError
from stn_infer.pipeline.formats import FORMATS, Rows, make_format, printable
from stn_infer.predictions import Classifier

FLOAT32 = np.dtype(np.float32)
SCORES = TensorSpec("scores", (None, 3), FLOAT32)
COUNT = TensorSpec("count", (None,), np.dtype(np.int64))
MAP = TensorSpec("map", (None, 8, 9), FLOAT32)
THETA = TensorSpec("theta", (None, 2, 3), FLOAT32)
NAMES = ("plain.png", 'a "b", c.png', "line\nbreak.png", "ünïcode.png")
LABELS = ("zero", "one, or so", 'the "two"')
PLAIN = Classifier(labels=LABELS)


def rows(names: tuple[str, ...] = NAMES) -> Rows:
    rng = np.random.default_rng(0)
    scores = (rng.standard_normal((len(names), 3)) * 10.0 ** rng.integers(-30, 30, (len(names), 3))).astype(np.float32)
    scores[0, 1] = np.inf
    outputs: dict[str, Any] = {"scores": scores, "count": np.arange(len(names))}
    return Rows(names, outputs, PLAIN.rank(scores))


def written(path: Path, format: str, parts: int = 2, classifier: Classifier = PLAIN) -> Path:
    """The four rows, split into parts."""
    encoder = make_format(format, [SCORES, COUNT], classifier)
    whole, pieces = rows(), []
    for part in np.array_split(np.arange(len(NAMES)), parts) if parts else []:
        names = tuple(NAMES[i] for i in part)
        outputs = {name: values[part] for name, values in whole.outputs.items()}
        pieces.append(encoder.encode(encoder.rows(names, outputs)))
    target = path / f"x.{format}"
    encoder.write(target, pieces)
    return target


def test_csv_restores_every_number(tmp_path: Path) -> None:
    with written(tmp_path, "csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["input", "prediction", "label", "confidence", "scores_0", "scores_1", "scores_2", "count_0"]
    expected = rows()
    assert tuple(line[0] for line in lines) == NAMES
    assert expected.ranked is not None
    assert [int(line[1]) for line in lines] == expected.ranked.classes.tolist()
    assert [line[2] for line in lines] == [LABELS[i] for i in expected.ranked.classes]
    assert np.float32([line[3] for line in lines]).tolist() == expected.ranked.confidences.tolist()
    numbers = np.array([line[4:7] for line in lines]).astype(np.float32)
    assert np.array_equal(numbers, expected.outputs["scores"])
    assert [int(line[7]) for line in lines] == [0, 1, 2, 3]


def test_jsonl_is_valid_json_and_infinity_is_null(tmp_path: Path) -> None:
    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = written(tmp_path, "jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line, parse_constant=reject) for line in text.split("\n")[:-1]]
    expected = rows()
    assert tuple(line["input"] for line in lines) == NAMES
    assert expected.ranked is not None
    assert [line["prediction"] for line in lines] == expected.ranked.classes.tolist()
    assert [line["label"] for line in lines] == [LABELS[i] for i in expected.ranked.classes]
    assert np.float32([line["confidence"] for line in lines]).tolist() == expected.ranked.confidences.tolist()
    assert lines[0]["scores"][1] is None
    assert np.array_equal(np.float32(lines[3]["scores"]), expected.outputs["scores"][3])
    assert [line["count"] for line in lines] == [[0], [1], [2], [3]]


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(tmp_path, "parquet"))
    expected = rows()
    assert table.column_names == [
        "input",
        "prediction",
        "label",
        "confidence",
        "scores_0",
        "scores_1",
        "scores_2",
        "count_0",
    ]
    assert tuple(table["input"].to_pylist()) == NAMES
    assert np.array_equal(table["scores_2"].to_numpy(), expected.outputs["scores"][:, 2])
    assert table.schema.field("scores_0").type == "float"
    assert table["count_0"].to_pylist() == [0, 1, 2, 3]


def test_npz_stores_any_shape(tmp_path: Path) -> None:
    outputs = [SCORES, THETA, TensorSpec("label", (None, 1), FLOAT32)]
    encoder = make_format("npz", outputs, PLAIN)
    theta = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    whole = rows()
    values: dict[str, Any] = {"scores": whole.outputs["scores"], "theta": theta, "label": theta[:, 0, :1]}
    encoder.write(tmp_path / "x.npz", [encoder.encode(Rows(NAMES, values, whole.ranked))])
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        assert sorted(loaded.files) == [
            "confidence",
            "input",
            "label",
            "output_label",
            "prediction",
            "scores",
            "theta",
        ]
        assert tuple(loaded["input"]) == NAMES
        assert np.array_equal(loaded["theta"], theta)
        assert np.array_equal(loaded["output_label"], theta[:, 0, :1])
        assert whole.ranked is not None
        assert [str(label) for label in loaded["label"]] == [LABELS[i] for i in whole.ranked.classes]


@pytest.mark.parametrize("format", FORMATS)
def test_the_split_into_parts_does_not_change_the_file(tmp_path: Path, format: str) -> None:
    assert written(tmp_path, format, 1).read_bytes() == written(tmp_path, format, 4).read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_without_rows_has_columns(tmp_path: Path, format: str) -> None:
    path = written(tmp_path, format, 0)
    if format == "csv":
        assert path.read_text() == "input,prediction,label,confidence,scores_0,scores_1,scores_2,count_0\n"
    elif format == "jsonl":
        assert path.read_text() == ""
    elif format == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert (table.num_rows, table.num_columns) == (0, 8)
    else:
        with np.load(path) as loaded:
            assert loaded["scores"].shape == (0, 3)


def test_no_prediction_without_scores(tmp_path: Path) -> None:
    encoder = make_format("csv", [TensorSpec("angle", (None, 1), FLOAT32)], None)
    part = encoder.encode(Rows(("a",), {"angle": np.float32([[0.5]])}, None))
    encoder.write(tmp_path / "x.csv", [part])
    assert (tmp_path / "x.csv").read_text() == "input,angle_0\na,0.5\n"


@pytest.mark.parametrize(
    ("format", "outputs", "labels", "message"),
    [
        ("xml", [SCORES], None, "csv, jsonl, parquet, npz"),
        ("csv", [SCORES, MAP], None, r"'map' is \[N, 8, 9\].*--format npz"),
        ("parquet", [TensorSpec("x", (None, None), FLOAT32)], None, "--format npz"),
        ("csv", [SCORES], ("a", "b"), "2 labels given for the 3 classes"),
        ("npz", [THETA], ("a", "b"), "not a vector of class scores"),
    ],
)
def test_incompatible_outputs_labels_and_formats(
    format: str, outputs: list[TensorSpec], labels: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_format(format, outputs, Classifier(labels=labels))


def test_a_class_without_a_label() -> None:
    encoder = make_format("npz", [TensorSpec("x", (None, None), FLOAT32)], Classifier(labels=("a", "b")))
    with pytest.raises(UsageError, match="predicts class 7, given 2 labels"):
        encoder.rows(("a.png",), {"x": np.eye(8, dtype=np.float32)[7:]})


def test_printable() -> None:
    assert printable("ünï.png") == "ünï.png"
    assert printable("caf\udce9.png") == "caf\\udce9.png"


LISTS = {
    "top 2": (Classifier(labels=LABELS, top_k=2), [[1, 0], [0, 2]], [2, 2]),
    "sigmoid": (Classifier(Scores("sigmoid"), LABELS), [[1, 0, 2], [0, 2, 1]], [3, 1]),
    "sigmoid, none above": (Classifier(Scores("sigmoid"), LABELS, threshold=0.99), [[1, 0, 2], [0, 2, 1]], [1, 0]),
}
PAIR = np.float32([[1, 9, 0.25], [2, -3, -0.5]])


def listed(
    path: Path, format: str, classifier: Classifier
) -> tuple[list[list[int]], list[list[str]], list[list[float]]]:
    """Predictions, labels and confidences of two samples, read from a file."""
    encoder = make_format(format, [SCORES], classifier, kept=())
    file = path / f"x.{format}"
    encoder.write(file, [encoder.encode(encoder.rows((f"{i}.png",), {"scores": PAIR[i : i + 1]})) for i in range(2)])
    if format == "csv":
        with file.open(encoding="utf-8", newline="") as opened:
            header, *lines = csv.reader(opened)
        assert header == ["input", "prediction", "label", "confidence", "predictions", "labels", "confidences"]
        cells = [[line[i].split(";") if line[i] else [] for line in lines] for i in (4, 5, 6)]
        return ([[*map(int, row)] for row in cells[0]], cells[1], [[*map(float, row)] for row in cells[2]])
    if format == "jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    elif format == "parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    else:
        with np.load(file, allow_pickle=False) as loaded:
            assert sorted(loaded.files) == sorted((*encoder.class_columns, "input"))
            ends = [int((row >= 0).sum()) for row in loaded["predictions"]]
            assert [int((~np.isnan(row)).sum()) for row in loaded["confidences"]] == ends
            rows = [
                {name: loaded[name][i, :end].tolist() for name in ("predictions", "labels", "confidences")}
                for i, end in enumerate(ends)
            ]
    return tuple([row[name] for row in rows] for name in ("predictions", "labels", "confidences"))  # type: ignore[return-value]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", LISTS)
def test_lists_of_classes_agree_in_all_formats(tmp_path: Path, format: str, name: str) -> None:
    classifier, order, counts = LISTS[name]
    predictions, labels, confidences = listed(tmp_path, format, classifier)
    expected = [row[:count] for row, count in zip(order, counts, strict=True)]
    assert predictions == expected
    assert labels == [[LABELS[number] for number in row] for row in expected]
    powers = np.exp(PAIR.astype(np.float64))
    known = 1 / (1 + 1 / powers) if classifier.many else powers / powers.sum(axis=1, keepdims=True)
    for row, found in enumerate(confidences):
        np.testing.assert_allclose(found, known[row, expected[row]], rtol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_theta_has_a_column_for_each_number(tmp_path: Path, format: str) -> None:
    encoder = make_format(format, [THETA], None)
    theta = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    encoder.write(tmp_path / "x", [encoder.encode(encoder.rows(("a", "b"), {"theta": theta}))])
    if format == "csv":
        header, _, second = (tmp_path / "x").read_text().splitlines()
        assert header == "input,theta_0,theta_1,theta_2,theta_3,theta_4,theta_5"
        assert [float(cell) for cell in second.split(",")[1:]] == list(range(6, 12))
    elif format == "jsonl":
        assert json.loads((tmp_path / "x").read_text().splitlines()[1])["theta"] == list(range(6, 12))
    elif format == "parquet":
        assert pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "x")["theta_5"].to_pylist() == [5, 11]
    else:
        with np.load(tmp_path / "x") as loaded:
            assert loaded["theta"].shape == (2, 2, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_chosen_outputs(tmp_path: Path, format: str) -> None:
    encoder = make_format(format, [SCORES, COUNT, THETA], PLAIN, kept=("count",))
    assert [spec.name for spec in encoder.stored] == ["count"]
    assert make_format(format, [SCORES, THETA], PLAIN, kept=()).stored == ()
    with pytest.raises(UsageError, match="no output 'Count'; its outputs are scores, count, theta"):
        make_format(format, [SCORES, COUNT, THETA], PLAIN, kept=("Count",))


def test_an_output_has_no_column_of_the_classes(tmp_path: Path) -> None:
    outputs = [SCORES, TensorSpec("confidence", (None, 1), FLOAT32)]
    encoder = make_format("jsonl", outputs, PLAIN)
    values: dict[str, Any] = {"scores": PAIR[:1], "confidence": np.float32([[7]])}
    found = json.loads(encoder.encode(encoder.rows(("a",), values)))
    assert found["output_confidence"] == [7] and 0 < found["confidence"] <= 1


def test_options_of_classes_without_classes() -> None:
    with pytest.raises(UsageError, match="not a vector of class scores, which can be ranked"):
        make_format("npz", [THETA], Classifier(top_k=2))
