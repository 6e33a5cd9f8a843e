"""Small models for Triton repositories."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from stn_infer.activation import Scores
from stn_infer.api.metadata import set_metadata
from stn_infer.metadata import ModelMetadata
from tests.support.onnx_files import constant, make

LABELS = ("eins", "zwölf\n", 'qu"ote', "vier")


def classifier(
    *,
    batch: Any = "n",
    width: Any = 3,
    output: str = "scores",
    scores: Scores | None = None,
    labels: tuple[str, ...] | None = LABELS,
    batch_dependent: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """x float32 [n, 2, 3] -> 4 scores per sample, and ``extra`` [n], the largest value of x; 0/0 is NaN."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("ReduceSum", ["x", "last"], ["sums"], name="sums", keepdims=0),
        helper.make_node("MatMul", ["sums", "w"], [output], name="product"),
        helper.make_node("ReduceMax", ["x", "both"], ["extra"], name="max", keepdims=0),
    ]
    weights = [
        constant(generator.standard_normal((2, 4)), "w", np.float32),
        constant([2], "last", np.int64),
        constant([1, 2], "both", np.int64),
    ]
    model = make(
        nodes,
        {"x": (TensorProto.FLOAT, [batch, 2, width])},
        {output: (TensorProto.FLOAT, [batch, 4]), "extra": (TensorProto.FLOAT, [batch])},
        weights,
    )
    set_metadata(model, ModelMetadata(labels=labels, scores=scores, batch_dependent=batch_dependent))
    return model


def single_values() -> onnx.ModelProto:
    """a int32 [n], b float32 [n], c float32 [n, 3] -> a + b [n], and c."""
    nodes = [
        helper.make_node("Cast", ["a"], ["real"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["real", "b"], ["sum"], name="add"),
        helper.make_node("Identity", ["c"], ["same"], name="same"),
    ]
    inputs = {"a": (TensorProto.INT32, ["n"]), "b": (TensorProto.FLOAT, ["n"]), "c": (TensorProto.FLOAT, ["n", 3])}
    return make(nodes, inputs, {"sum": (TensorProto.FLOAT, ["n"]), "same": (TensorProto.FLOAT, ["n", 3])}, [])
