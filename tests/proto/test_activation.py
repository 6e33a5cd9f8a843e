"""The activation at the end of a graph, as exporters write it."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from stn_infer.activation import Scores
from stn_infer.metadata import ModelMetadata
from stn_infer.proto.activation import final_activation, with_scores

SOFTMAX, SIGMOID = Scores("softmax", applied=True), Scores("sigmoid", applied=True)


def node(op: str, source: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, source.split(), [target], **attributes)


def model(*nodes: onnx.NodeProto, opset: int = 18, shape: tuple[Any, ...] = ("n", 4), **more: Any) -> onnx.ModelProto:
    constants = [helper.make_tensor("flat", TensorProto.INT64, [2], [0, -1]), helper.make_tensor("one", 1, [], [1.0])]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        constants,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)


FOUR = ("n", 4, 1, 1)
ENDS: dict[str, tuple[onnx.ModelProto, Scores | None]] = {
    "softmax": (model(node("Softmax", "x", "y")), SOFTMAX),
    "softmax, axis 1": (model(node("Softmax", "x", "y", axis=1)), SOFTMAX),
    "softmax over the batch": (model(node("Softmax", "x", "y", axis=0)), None),
    "softmax of opset 11": (model(node("Softmax", "x", "y"), opset=11), SOFTMAX),
    "log-softmax": (model(node("LogSoftmax", "x", "y", axis=1)), Scores("softmax")),
    "log of softmax": (model(node("Softmax", "x", "p"), node("Log", "p", "y")), Scores("softmax")),
    "sigmoid": (model(node("Sigmoid", "x", "y")), SIGMOID),
    "through a cast": (model(node("Sigmoid", "x", "s"), node("Cast", "s", "y", to=1)), SIGMOID),
    "before a flatten": (model(node("Softmax", "x", "p", axis=1), node("Flatten", "p", "y"), shape=FOUR), SOFTMAX),
    "before a reshape": (model(node("Softmax", "x", "p", axis=1), node("Reshape", "p flat", "y"), shape=FOUR), SOFTMAX),
    "over a part": (model(node("Softmax", "x", "p"), node("Flatten", "p", "y"), shape=("n", 2, 2)), None),
    "over places": (model(node("Softmax", "x", "p", axis=1), node("Flatten", "p", "y"), shape=("n", 2, 2)), None),
    "written out": (
        model(
            node("Exp", "x", "e"),
            node("ReduceSum", "e", "s", keepdims=1),
            node("Identity", "s", "t"),
            node("Div", "e t", "y"),
        ),
        SOFTMAX,
    ),
    "another quotient": (model(node("Exp", "x", "e"), node("ReduceSum", "x", "s"), node("Div", "e s", "y")), None),
    "a linear layer": (model(node("Identity", "x", "i"), node("Add", "i one", "y")), None),
    "one minus": (model(node("Softmax", "x", "p"), node("Sub", "one p", "y")), None),
    "an input": (model(node("Identity", "x", "y")), None),
}


@pytest.mark.parametrize("name", ENDS)
def test_final_activation(name: str) -> None:
    proto, expected = ENDS[name]
    onnx.checker.check_model(proto)
    before = proto.SerializeToString()
    assert final_activation(proto) == expected
    assert proto.SerializeToString() == before


def test_in_a_function() -> None:
    opsets = [helper.make_opsetid("", 18)]
    head = helper.make_function(
        "own", "Head", ["a"], ["b"], [node("Softmax", "a", "p"), node("Identity", "p", "b")], opsets
    )
    call = helper.make_node("Head", ["x"], ["y"], domain="own")
    assert final_activation(model(call, functions=[head])) == SOFTMAX


def test_metadata_comes_first() -> None:
    proto = ENDS["softmax"][0]
    assert with_scores(proto, ModelMetadata()).scores == SOFTMAX
    assert with_scores(proto, ModelMetadata(scores=Scores("none"))).scores == Scores("none")
