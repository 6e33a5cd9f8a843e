"""The columns of classes that run writes: confidence, lists, the activation, chosen outputs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import stn_infer
from stn_infer.activation import Scores
from stn_infer.errors import OutputError, UsageError
from stn_infer.pipeline.inference import RunSummary

VALUES = np.float32([[1, 3, -2], [-1, -1.5, -4], [0, 0, 9]])


def write(path: Path, *ends: str, labels: tuple[str, ...] | None = ("ant", "bee", "cat")) -> Path:
    """A model [N, 3] -> [N, 3] of the operators ``ends``."""
    names = ["x", *(f"t{i}" for i in range(len(ends) - 1)), "scores"]
    nodes = [helper.make_node(op, [a], [b]) for op, a, b in zip(ends, names[:-1], names[1:], strict=True)]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "scores")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(proto, path)
    if labels:
        stn_infer.write_metadata(path, labels=labels)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", VALUES)
    return tmp_path / "x.npy"


def table(summary: RunSummary) -> list[dict[str, str]]:
    with (summary.output / "predictions-00000.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def softmax(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    powers = np.exp(values.astype(np.float64))
    return [float(value) for value in (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)]


@pytest.mark.parametrize("ends", [("Identity",), ("Softmax",), ("LogSoftmax",), ("Softmax", "Identity")])
def test_every_softmax_model_has_the_same_confidences(tmp_path: Path, inputs: Path, ends: tuple[str, ...]) -> None:
    summary = stn_infer.run(write(tmp_path / "m.onnx", *ends), inputs, tmp_path / "out")
    assert [float(row["confidence"]) for row in table(summary)] == pytest.approx(softmax(VALUES), rel=1e-6)
    assert summary.assumed_scores == (ends == ("Identity",))


@pytest.mark.parametrize("ends", [("Identity",), ("Sigmoid",)])
def test_multi_label(tmp_path: Path, inputs: Path, ends: tuple[str, ...]) -> None:
    path = write(tmp_path / "m.onnx", *ends)
    activation = "sigmoid" if ends == ("Identity",) else None
    summary = stn_infer.run(path, inputs, tmp_path / "out", activation=activation, outputs=())
    rows = table(summary)
    assert list(rows[0]) == ["input", "prediction", "label", "confidence", "predictions", "labels", "confidences"]
    assert [row["labels"] for row in rows] == ["bee;ant", "", "cat;ant;bee"]
    assert [row["label"] for row in rows] == ["bee", "ant", "cat"]
    assert summary.scores == Scores("sigmoid", applied=ends == ("Sigmoid",)) and not summary.assumed_scores


def test_the_files_own_activation_labels_and_chosen_outputs(tmp_path: Path, inputs: Path) -> None:
    path = write(tmp_path / "m.onnx", "Identity", "Identity")
    stn_infer.write_metadata(path, activation="sigmoid")
    assert stn_infer.read_metadata(path).scores == Scores("sigmoid")
    first = stn_infer.run(path, inputs, tmp_path / "a", top_k=2, outputs=["scores"])
    assert [row["labels"] for row in table(first)] == ["bee;ant", "ant;bee", "cat;ant"]
    assert list(table(first)[0])[-3:] == ["scores_0", "scores_1", "scores_2"]
    other = stn_infer.run(path, inputs, tmp_path / "b", activation="none")
    assert [float(row["confidence"]) for row in table(other)] == VALUES.max(axis=1).tolist()


def test_an_activation_of_the_graph_is_stored_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "Softmax")
    assert stn_infer.write_metadata(path, activation="softmax").scores == Scores("softmax", applied=True)
    with pytest.raises(UsageError, match="itself ends in a softmax, so the activation is softmax or none"):
        stn_infer.write_metadata(path, activation="sigmoid")


def test_a_resumed_job_has_the_same_columns(tmp_path: Path, inputs: Path) -> None:
    path = write(tmp_path / "m.onnx", "Identity")
    stn_infer.run(path, inputs, tmp_path / "out", top_k=2)
    assert stn_infer.run(path, inputs, tmp_path / "out", top_k=2, resume=True).resumed == 3
    for changed in ({"top_k": 3}, {"activation": "sigmoid"}, {"outputs": ()}):
        with pytest.raises(OutputError, match="cannot resume another job"):
            stn_infer.run(path, inputs, tmp_path / "out", resume=True, **{"top_k": 2, **changed})  # type: ignore[arg-type]


def test_wrong_options(tmp_path: Path, inputs: Path) -> None:
    path = write(tmp_path / "m.onnx", "Identity")
    with pytest.raises(UsageError, match="softmax, sigmoid, none, not 'relu'"):
        stn_infer.run(path, inputs, tmp_path / "out", activation="relu")
    with pytest.raises(UsageError, match="no output 'logits'; its outputs are scores"):
        stn_infer.run(path, inputs, tmp_path / "out", outputs=["logits"])
    with pytest.raises(UsageError, match="a threshold needs the activation sigmoid, not softmax"):
        stn_infer.run(path, inputs, tmp_path / "out", threshold=0.5)
