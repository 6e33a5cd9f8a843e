"""Repairs: each preserves the file's outputs, reports what it did, and does not apply where that is not provable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from stn_infer.fusion.fuse import fuse
from stn_infer.proto.traversal import opset_of
from stn_infer.repairs.opset import lower_opset, raise_opset
from stn_infer.repairs.passes import AFTER_FUSION, BEFORE_FUSION, Pass, repair
from stn_infer.repairs.result import NotRepairable, Repair
from tests.support.onnx_files import F16, F32, affine_grid_model, affine_model, constant, flow_model, make


def repaired(model: onnx.ModelProto, passes: Mapping[str, Pass]) -> tuple[onnx.ModelProto, tuple[Repair, ...]]:
    """Returns the result and its notes; checks that ``changed`` is correct."""
    result = repair(model, passes)
    assert result.changed is (result.model is not model) is any(note.done for note in result.notes)
    return result.model, result.notes


def run(model: onnx.ModelProto, **inputs: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def images(shape: tuple[int, ...] = (3, 1, 8, 8)) -> Any:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def modes(model: onnx.ModelProto) -> list[str]:
    return [
        attribute.s.decode()
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "mode" and node.op_type in ("GridSample", "SpatialTransformer")
    ]


@pytest.mark.parametrize("opset", [20, 21, 22])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_the_opset_20_trap_is_fixed_by_an_older_opset(opset: int, mode: str) -> None:
    model = affine_model(opset=opset, mode=mode)
    fixed, done = repaired(model, AFTER_FUSION)
    assert [(entry.code, entry.done) for entry in done] == [("opset-20-trap", True)]
    assert opset_of(fixed) == 19 and modes(fixed) == [{"linear": "bilinear", "cubic": "bicubic"}[mode]]
    assert opset_of(model) == opset, "the given model must not change"
    x = images()
    np.testing.assert_array_equal(run(fixed, x=x), run(model, x=x))


def test_nearest_is_not_affected_by_the_trap() -> None:
    model = affine_model(opset=20, mode="nearest")
    fixed, done = repaired(model, AFTER_FUSION)
    assert fixed is model and done == ()


def test_volumes_are_not_affected_by_the_trap() -> None:
    """TensorRT versions that support volumes read opset 20 correctly."""
    generator = np.random.default_rng(0)
    weights = [constant(generator.uniform(-1, 1, (1, 3, 4, 5, 3)), "grid", np.float32)]
    model = make(
        [helper.make_node("GridSample", ["x", "grid"], ["y"], mode="linear")],
        {"x": (F32, [1, 2, 4, 4, 4])},
        {"y": (F32, [1, 2, 3, 4, 5])},
        weights,
        opset=20,
    )
    assert repaired(model, AFTER_FUSION) == (model, ())


def test_the_trap_is_fixed_in_a_fused_file_too() -> None:
    model = affine_model(opset=20, mode="linear", padding_mode="border")
    fused, _ = fuse(model)
    fixed, done = repaired(fused, AFTER_FUSION)
    assert done[0].done and modes(fixed) == ["bilinear"]
    assert [(entry.domain, entry.version) for entry in fixed.functions[0].opset_import] == [("", 19)]
    onnx.checker.check_model(fixed)
    x = images()
    np.testing.assert_array_equal(run(fixed, x=x), run(fused, x=x))


def test_a_newer_operator_keeps_the_opset() -> None:
    model = affine_model(opset=20, mode="linear")
    model.graph.node[-1].output[0] = "sampled"
    model.graph.node.append(helper.make_node("Gelu", ["sampled"], ["y"], name="gelu"))
    fixed, done = repaired(model, AFTER_FUSION)
    assert fixed is model
    assert not done[0].done and "Gelu (node 'gelu') does not exist at opset 19" in done[0].message


def test_a_redefined_operator_keeps_the_opset() -> None:
    """GroupNormalization's signature did not change at opset 21, but the meaning of its scale did."""
    nodes = [
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["z"], name="norm", num_groups=2),
        helper.make_node("GridSample", ["z", "grid"], ["y"], mode="linear"),
    ]
    weights = [constant(np.ones(4), "scale", np.float32), constant(np.zeros(4), "bias", np.float32)]
    inputs: dict[str, Any] = {"x": (F32, [1, 4, 8, 8]), "grid": (F32, [1, 3, 3, 2])}
    model = make(nodes, inputs, {"y": (F32, [1, 4, 3, 3])}, weights, opset=21)
    with pytest.raises(NotRepairable, match=r"GroupNormalization .* revised at opset 21"):
        lower_opset(model, 19)


def test_types_that_an_older_operator_lacks_are_found_by_running() -> None:
    """Conv 11 and 22 differ only in types: signatures are equal, but onnx's and onnxruntime's checks fail."""
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Conv", ["b", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Cast", ["c"], ["z"], to=F32),
        helper.make_node("GridSample", ["z", "grid"], ["y"], mode="linear"),
    ]
    inputs: dict[str, Any] = {"x": (F32, [1, 1, 8, 8]), "grid": (F32, [1, 3, 3, 2])}
    weights = [helper.make_tensor("w", TensorProto.BFLOAT16, [1, 1, 1, 1], [1.0])]
    model = make(nodes, inputs, {"y": (F32, [1, 1, 3, 3])}, weights, opset=22)
    fixed, done = repaired(model, AFTER_FUSION)
    assert fixed is model and not done[0].done


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 15])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_onnxruntimes_own_sampler_becomes_the_standard_one(opset: int, padding_mode: str) -> None:
    model = affine_model(opset=opset, domain="com.microsoft", ir_version=6, padding_mode=padding_mode, align_corners=1)
    fixed, done = repaired(model, BEFORE_FUSION)
    assert [entry.done for entry in done] == [True, True]
    assert opset_of(fixed) == 16 and {entry.domain for entry in fixed.opset_import} == {""}
    assert {node.domain for node in fixed.graph.node} == {""}
    x = images()
    np.testing.assert_array_equal(run(fixed, x=x), run(model, x=x))
    assert [value.name for value in fixed.graph.output] == ["y"]
    assert fixed.graph.output[0] == model.graph.output[0]


def test_operators_that_changed_between_the_opsets_are_converted() -> None:
    """Unsqueeze's axes are an attribute up to opset 12, and an input from 13 on."""
    model = affine_model(opset=11, domain="com.microsoft", ir_version=6)
    model.graph.node[-1].output[0] = "sampled"
    model.graph.node.append(helper.make_node("Unsqueeze", ["sampled"], ["y"], axes=[0]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", F32, [1, "n", 1, 8, 8]))
    fixed, _ = repaired(model, BEFORE_FUSION)
    assert len(fixed.graph.node[-1].input) == 2
    x = images()
    np.testing.assert_array_equal(run(fixed, x=x), run(model, x=x))


def test_a_standard_sampler_in_an_opset_without_it() -> None:
    fixed, done = repaired(affine_model(opset=12, ir_version=6), BEFORE_FUSION)
    assert done[-1].done and opset_of(fixed) == 16
    np.testing.assert_array_equal(run(fixed, x=images()), run(affine_model(), x=images()))


def test_functions_keep_the_opset() -> None:
    model = affine_model(opset=12)
    function = helper.make_function("f", "id", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [])
    model.functions.append(function)
    with pytest.raises(NotRepairable, match="model-local functions"):
        raise_opset(model, 16)


def test_a_version_that_onnxruntime_does_not_read_is_lowered() -> None:
    model = affine_model(opset=28, mode="linear", ir_version=14)
    with pytest.raises(Exception, match="Unsupported model IR version"):
        run(model, x=images())
    fixed, done = repaired(model, BEFORE_FUSION)
    assert {entry.code for entry in done} == {"opset-too-new", "ir-too-new"} and all(entry.done for entry in done)
    assert (opset_of(fixed), fixed.ir_version) == (26, 13)
    np.testing.assert_array_equal(run(fixed, x=images()), run(affine_model(), x=images()))


def test_a_type_of_a_new_ir_version_is_named() -> None:
    model = affine_model(opset=18, ir_version=14)
    model.graph.initializer.append(TensorProto(name="six", data_type=TensorProto.FLOAT6E2M3, dims=[0]))
    fixed, done = repaired(model, BEFORE_FUSION)
    assert fixed is model and "FLOAT6E2M3" in done[0].message


def test_weights_among_the_inputs_of_old_files() -> None:
    model = affine_model(opset=16, ir_version=3)
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    fixed, done = repaired(model, BEFORE_FUSION)
    assert done[0].code == "weights-as-inputs"
    assert [value.name for value in fixed.graph.input] == ["x"] and fixed.ir_version == 4
    np.testing.assert_array_equal(run(fixed, x=images()), run(model, x=images()))


@pytest.mark.parametrize("image, grid", [(F32, F16), (F16, F32)])
def test_image_and_grid_get_one_type(image: int, grid: int) -> None:
    model = flow_model(image=image, grid=grid)
    fixed, done = repaired(model, AFTER_FUSION)
    assert done[0].code == ("half-grid" if grid == F16 else "mixed-types") and done[0].done
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    sampler = next(node for node in fixed.graph.node if node.op_type == "GridSample")
    assert [types[name] for name in sampler.input] == [F32, F32]
    assert fixed.graph.output[0] == model.graph.output[0]
    wanted, found = run(model, x=images()), run(fixed, x=images())
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), atol=2e-3)


def test_a_model_that_needs_no_repair_is_returned_itself() -> None:
    for model in (affine_model(), flow_model()):
        assert repaired(model, BEFORE_FUSION) == (model, ())
    assert repaired(affine_model(), AFTER_FUSION) == (affine_model(), ())


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("align_corners", [0, 1])
def test_affine_grid_as_a_matrix_product(volume: bool, align_corners: int) -> None:
    """The grid is also an output, so the fusion cannot remove it."""
    model = affine_grid_model(volume=volume)
    next(node for node in model.graph.node if node.op_type == "AffineGrid").attribute[0].i = align_corners
    sizes = [4, 6, 8] if volume else [6, 8]
    model.graph.output.insert(0, helper.make_tensor_value_info("grid", F32, ["n", *sizes, len(sizes)]))
    fused, _ = fuse(model)
    fixed, done = repaired(fused, AFTER_FUSION)
    assert {"affine-grid"} <= {entry.code for entry in done if entry.done}
    assert "AffineGrid" not in {node.op_type for node in fixed.graph.node}
    assert opset_of(fixed) == (20 if volume else 19)
    theta = np.random.default_rng(4).uniform(-2, 2, (3, len(sizes), len(sizes) + 1)).astype(np.float32)
    x = images((3, 1, *sizes))
    np.testing.assert_allclose(run(fixed, x=x, theta=theta), run(model, x=x, theta=theta), atol=1e-6)


def test_an_affine_grid_of_dynamic_size_is_not_repairable() -> None:
    model = affine_grid_model()
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "rest")
    model.graph.initializer.remove(tensor)
    model.graph.input.append(helper.make_tensor_value_info("rest", TensorProto.INT64, [3]))
    fixed, done = repaired(model, AFTER_FUSION)
    assert fixed is model
    assert not done[0].done and "size of AffineGrid 'affine' is not fixed" in done[0].message


def test_an_affine_grid_whose_size_a_caller_may_override_is_not_repairable() -> None:
    """The file's value is only a default."""
    model = affine_grid_model()
    model.graph.input.append(helper.make_tensor_value_info("rest", TensorProto.INT64, [3]))
    fixed, done = repaired(model, AFTER_FUSION)
    assert fixed is model
    assert not done[0].done and "size of AffineGrid 'affine' is not fixed" in done[0].message


def in_a_function(sampler: str, domain: str, more: str = "") -> onnx.ModelProto:
    return parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 18, "pkg" : 1, "{domain}" : 1]>
        warp (float[N, 1, 8, 8] x, float[N, 8, 8, 2] grid) => (float[N, 1, 8, 8] y)
        {more} {{ y = pkg.sample <how = "nearest"> (x, grid) }}
        <domain: "pkg", opset_import: ["" : 18, "{domain}" : 1]>
        sample <how> (x, g) => (y) {{ {sampler} }}
        """
    )


def test_a_mode_that_a_function_takes_as_an_attribute_is_kept() -> None:
    model = in_a_function("y = com.microsoft.GridSample <mode: string = @how> (x, g)", "com.microsoft")
    fixed, done = repaired(model, BEFORE_FUSION)
    assert fixed is model
    assert [(entry.code, entry.done) for entry in done] == [("custom-sampler", False)]


def test_constants_of_the_main_graph_are_not_visible_in_a_function() -> None:
    sampler = (
        "zero = Constant <value_int = 0> () one = Constant <value_int = 1> () "
        "y = aten.grid_sampler (x, g, one, zero, zero)"
    )
    model = in_a_function(sampler, "aten", "<int64 one = {0}, int64 zero = {0}>")
    fixed, done = repaired(model, BEFORE_FUSION)
    assert fixed is model
    assert [(entry.done, entry.message) for entry in done] == [
        (False, "'y' (aten::grid_sampler): its settings are not constants")
    ]


def test_settings_that_a_caller_may_override_are_not_constants() -> None:
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 18, "aten" : 1]>
        warp (float[N, 1, 8, 8] x, float[N, 8, 8, 2] grid, int64 mode) => (float[N, 1, 8, 8] y)
        <int64 mode = {0}, int64 zero = {0}> { y = aten.grid_sampler (x, grid, mode, zero, zero) }
        """
    )
    fixed, done = repaired(model, BEFORE_FUSION)
    assert fixed is model and not done[0].done and "its settings are not constants" in done[0].message
