"""Inlined files consist of plain operators and compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.errors import ModelError
from stn_infer.fusion.fuse import fuse
from stn_infer.proto.edit import copy_of
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import attributes_of, every_node
from stn_infer.repairs.inlined import inlined
from tests.support.onnx_files import F16, F32, affine_model, constant, flow_model, half_model, make
from tests.support.precision_models import small_stn


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    result, findings = fuse(model)
    assert findings and all(finding.fused for finding in findings)
    return result


def check_same(one: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    first, second = (open_session(Stored(model), optimized=False).run(feeds) for model in (one, other))
    for expected, found in zip(first, second, strict=True):
        np.testing.assert_array_equal(expected, found)


def check_plain(model: onnx.ModelProto, casts: int = 0) -> None:
    onnx.checker.check_model(model, full_check=True)
    nodes = list(every_node(model))
    assert not model.functions and [entry.domain for entry in model.opset_import] == [""]
    assert sum(node.op_type in ("Cast", "CastLike") for node in nodes) == casts
    assert all(node.name for node in nodes) and len({node.name for node in nodes}) == len(nodes)
    assert not any(node.op_type == "Constant" for node in model.graph.node)


def test_a_float32_file_has_no_casts() -> None:
    model = fused(affine_model(mode="bicubic", padding_mode="reflection", align_corners=1))
    plain = inlined(model)
    check_plain(plain)
    assert model.functions  # unchanged
    kinds = [node.op_type for node in plain.graph.node]
    assert kinds[-4:] == ["MatMul", "Transpose", "Reshape", "GridSample"]
    assert attributes_of(plain.graph.node[-1]) == {"align_corners": 1, "mode": "bicubic", "padding_mode": "reflection"}
    assert [value.name for value in plain.graph.output] == ["y"]
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    check_same(model, plain, {"x": images})


def test_a_half_precision_image_keeps_its_two_casts() -> None:
    model = fused(half_model(8))
    plain = inlined(model)
    image = [node for node in plain.graph.node if node.op_type == "Cast" and node.input[0] == "x"]
    assert len(image) == 1 and attributes_of(image[0])["to"] == TensorProto.FLOAT
    last = plain.graph.node[-1]
    assert (last.op_type, list(last.output), attributes_of(last)["to"]) == ("Cast", ["y"], F16)
    generator = np.random.default_rng(1)
    feeds = {
        "x": generator.standard_normal((2, 1, 8, 8)).astype(np.float16),
        "theta": generator.uniform(-1, 1, (2, 2, 3)).astype(np.float16),
    }
    check_same(model, plain, feeds)


@pytest.mark.parametrize("transformers", [1, 2])
def test_several_calls_of_one_function_get_names_of_their_own(transformers: int) -> None:
    model = small_stn(transformers=transformers)
    unnamed = copy_of(model)
    for node in unnamed.graph.node:
        node.name = "" if node.op_type == "Relu" else "same"
    plain = inlined(unnamed)
    check_plain(plain)
    assert sum(node.op_type == "GridSample" for node in plain.graph.node) == transformers
    image = np.random.default_rng(2).standard_normal((2, 1, 8, 8)).astype(np.float32)
    check_same(model, plain, {model.graph.input[0].name: image})


def test_a_sampler_at_any_grid_is_the_standard_one_again() -> None:
    model, findings = fuse(flow_model())
    assert [finding.op for finding in findings] == ["Sampler"]
    plain = inlined(model)
    check_plain(plain)
    assert [node.op_type for node in plain.graph.node] == ["Conv", "Transpose", "Add", "GridSample"]
    check_same(model, plain, {"x": np.random.default_rng(5).standard_normal((2, 1, 8, 8)).astype(np.float32)})


def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("chosen", F32, None)])


def test_calls_in_the_branches_of_an_if() -> None:
    """Branches may use one name for values of different types, and read values of the graph around."""
    double = helper.make_function(
        "own",
        "Double",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["sum"]), helper.make_node("CastLike", ["sum", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    then = branch(
        "then",
        [
            helper.make_node("Double", ["x"], ["twice"], domain="own"),
            helper.make_node("Cast", ["twice"], ["chosen"], to=TensorProto.FLOAT),
        ],
    )
    other = branch(
        "else",
        [
            helper.make_node("Cast", ["x"], ["twice"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["twice"], ["chosen"], to=TensorProto.FLOAT),
        ],
    )
    nodes = [
        helper.make_node("Double", ["x"], ["other"], domain="own"),
        helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=other),
    ]
    model = make(
        nodes,
        {"x": (F32, ["n"]), "condition": (TensorProto.BOOL, [])},
        {"y": (F32, ["n"]), "other": (F32, ["n"])},
        [],
        domains=("own",),
        functions=[double],
    )
    plain = inlined(model)
    assert not plain.functions and [entry.domain for entry in plain.opset_import] == [""]
    assert [node.op_type for node in every_node(plain)] == ["Add", "If", "Cast", "Cast", "Add"]
    for chosen in (True, False):
        check_same(model, plain, {"x": np.arange(3, dtype=np.float32), "condition": np.array(chosen)})


def test_an_input_that_is_an_output_keeps_its_cast() -> None:
    nothing = helper.make_function(
        "own", "Same", ["a"], ["b"], [helper.make_node("CastLike", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    nodes = [
        helper.make_node("Same", ["x"], ["y"], domain="own"),
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("Same", ["z"], ["first"], domain="own"),
        helper.make_node("Same", ["z"], ["second"], domain="own"),
    ]
    outputs = {name: (F32, ["n"]) for name in ("y", "first", "second")}
    model = make(nodes, {"x": (F32, ["n"])}, outputs, [], domains=("own",), functions=[nothing])
    plain = inlined(model)
    check_plain(plain, casts=2)
    check_same(model, plain, {"x": np.arange(3, dtype=np.float32)})


def test_large_weights_stay_what_they_were() -> None:
    model = fused(affine_model())
    large = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(constant(large, "large"))
    model.graph.node.append(helper.make_node("Identity", ["large"], ["also"], name="also"))
    model.graph.output.append(helper.make_tensor_value_info("also", F32, [64, 64]))
    (kept,) = (tensor for tensor in inlined(model).graph.initializer if tensor.name == "large")
    np.testing.assert_array_equal(numpy_helper.to_array(kept), large)


def test_without_functions_nothing_changes() -> None:
    model = affine_model()
    assert inlined(model) is model


def test_a_function_of_another_opset_is_refused() -> None:
    old = helper.make_function(
        "own", "Old", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 13)]
    )
    model = make(
        [helper.make_node("Old", ["x"], ["y"], domain="own")],
        {"x": (F32, ["n"])},
        {"y": (F32, ["n"])},
        [],
        domains=("own",),
        functions=[old],
    )
    with pytest.raises(ModelError, match=r"its functions cannot be inlined: .*incompatible opset"):
        inlined(model)
