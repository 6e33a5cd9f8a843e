"""Traversal visits nested nodes once, and separates the tensors that a subgraph captures from those it produces."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from stn_infer.proto.traversal import (
    attributes_of,
    every_graph,
    every_node,
    given_inputs,
    names_read,
    producers,
    subgraphs,
    tensors_of,
    walk_back,
)

NESTED = """
<ir_version: 8, opset_import: ["": 18, "pkg": 1]>
main (bool c, float[n] x) => (float[n] y)
<float[1] weight = {1.0}> {
    doubled = Add(x, x)
    y = If (c) <
        then_branch = inner () => (float[n] a)
            <float[1] own = {2.0}> { made = Mul(doubled, own) a = Add(made, weight) },
        else_branch = other () => (float[n] doubled) { unused = pkg.f(x) }
    >
}
<domain: "pkg", opset_import: ["": 18]>
f <how> (u) => (v) { k = Constant<value = float[1] {3.0}>() v = Cast<to: int = @how>(u) }
"""


def nested() -> onnx.ModelProto:
    return parser.parse_model(NESTED)


def test_nodes_graphs_and_tensors_at_any_depth() -> None:
    model = nested()
    types = ["Add", "If", "Mul", "Add", "f", "Constant", "Cast"]
    assert [node.op_type for node in every_node(model)] == types
    assert [graph.name for graph in every_graph(model.graph)] == ["main", "inner", "other"]
    values = [float(numpy_helper.to_array(tensor)[0]) for tensor in tensors_of(model)]
    assert sorted(values) == [1.0, 2.0, 3.0]
    assert [name for name, _ in subgraphs(model.graph.node[1])] == ["then_branch", "else_branch"]


def test_a_node_reads_what_its_subgraphs_capture_and_not_what_they_produce() -> None:
    assert set(names_read(nested().graph.node[1])) == {"c", "doubled", "weight", "x"}


def test_a_reference_to_a_caller_s_attribute_has_no_value() -> None:
    (function,) = nested().functions
    assert attributes_of(function.node[1]) == {}
    node = helper.make_node("GridSample", ["x", "g"], ["y"], mode="linear", align_corners=1)
    assert attributes_of(node) == {"mode": "linear", "align_corners": 1}


def test_producers_and_walk_back() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Split", ["c"], ["d", "", "e"])]
    assert producers(nodes) == {"c": 0, "d": 1, "e": 1}
    edges = {"d": ["c", "c"], "c": ["a", "", "d"]}
    reached = list(walk_back(["d", ""], lambda name: edges.get(name, [])))
    assert sorted(reached) == ["a", "c", "d"] and reached[0] == "d", "a cycle terminates, and each tensor occurs once"


def test_inputs_with_a_default_need_not_be_given() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "w")]
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    graph = helper.make_graph([], "g", values, values[:1], [weight])
    assert [value.name for value in given_inputs(graph)] == ["x"]
