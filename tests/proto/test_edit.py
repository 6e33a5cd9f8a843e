"""Edits do not change the original, and new names are unused ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from stn_infer.proto.edit import NewNodes, copy_of, copy_without_initializers, drop_unused, replace_all
from stn_infer.proto.names import Names


def model() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "w"], ["y"]),
        helper.make_node("Mul", ["x", "w"], ["dead"]),
        helper.make_node("Neg", ["dead"], ["deader"]),
    ]
    weights = [numpy_helper.from_array(np.full(1, 2, np.float32), name) for name in ("w", "unused")]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n"])], [value("y", TensorProto.FLOAT, ["n"])], weights
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="me")
    made.metadata_props.add(key="k", value="v")
    return made


def test_a_copy_without_initializers_has_everything_else() -> None:
    given = model()
    copy = copy_without_initializers(given)
    assert not copy.graph.initializer and len(given.graph.initializer) == 2
    copy.graph.initializer.extend(given.graph.initializer)
    assert copy == given


def test_a_field_can_be_replaced_by_its_own_messages() -> None:
    given = model()
    before = copy_of(given)
    replace_all(given.graph.node, [given.graph.node[1], given.graph.node[0]])
    assert list(given.graph.node) == [before.graph.node[1], before.graph.node[0]]


def test_unused_nodes_and_constants_are_removed() -> None:
    given = model()
    drop_unused(given.graph)
    assert [node.output[0] for node in given.graph.node] == ["y"]
    assert [tensor.name for tensor in given.graph.initializer] == ["w"]


def test_new_nodes_get_unused_names_and_run() -> None:
    given = model()
    given.graph.node[0].output[0] = "new_sum"  # a name that a new node would get
    new = NewNodes(Names(given.graph), "new")
    total = new.node("Add", ["new_sum", new.scalar("one", 1.0)], "sum")
    scale = new.constant("scale", np.full(1, 3, np.float32))
    new.nodes.append(helper.make_node("Mul", [total, scale], ["y"]))
    assert total == "new_sum_" and scale == "new_scale"
    replace_all(given.graph.node, [given.graph.node[0], *new.nodes])
    given.graph.initializer.extend(new.constants)
    onnx.checker.check_model(given)
    session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(2, np.float32)})[0], [9.0, 9.0])


def test_names_in_a_function_are_separate() -> None:
    node = helper.make_node("Neg", ["a"], ["b"])
    function = helper.make_function("pkg", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 18)])
    names = Names(function)
    assert [names.fresh(name) for name in ("a", "b", "c", "c")] == ["a_", "b_", "c", "c_"]
