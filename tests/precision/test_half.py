"""Half precision: the type of each node, values out of range, and that the files run."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ExportError, ModelError
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.precision.half import Half, largest, smallest, to_half
from stn_infer.precision.rounding import rounded_in_float32
from tests.support.precision_models import images, model_of, small_stn, types_of

F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TYPES: dict[Half, int] = {"fp16": F16, "bf16": BF16}
OPSET: dict[Half, int] = {"fp16": 18, "bf16": 22}


def run(model: onnx.ModelProto, x: np.ndarray, plugin: bool | None = False) -> np.ndarray:
    return OrtBackend(model.SerializeToString(), threads=1, plugin=plugin).run({"x": x})["y"]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("transformers", [1, 2])
def test_features_are_half_and_coordinates_are_not(half: Half, transformers: int) -> None:
    model = small_stn(OPSET[half], transformers)
    before = model.SerializeToString()
    made = to_half(model, half)
    assert model.SerializeToString() == before and made.findings == ()
    onnx.checker.check_model(made.model, full_check=True)
    types = types_of(made.model)
    assert types["x"] == types["y"] == F32
    for index in range(transformers):
        for name in (f"t{index}_conv", f"t{index}_fc", "conv2", "scores"):
            layer = node(made.model, name)
            assert {types[tensor] for tensor in (*layer.input, *layer.output)} == {TYPES[half]}, name
        head = node(made.model, f"t{index}_head")
        assert {types[tensor] for tensor in (*head.input, *head.output)} == {F32}
        # The layer before the head computes features.
        assert types[node(made.model, f"t{index}_tanh").output[0]] == TYPES[half]
        warp = node(made.model, f"t{index}_stn")
        assert [types[tensor] for tensor in (*warp.input, *warp.output)] == [TYPES[half], F32, F32, TYPES[half]]
    assert [item.theta for item in spatial_nodes(made.model)] == [item.theta for item in spatial_nodes(model)]
    assert made.half_nodes + made.float_nodes == len(model.graph.node)
    # Each weight is stored once, rounded to the nearest value of the type.
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.model.graph.initializer}
    source = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "w3")
    assert "w3" not in kept
    dtype = np.float16 if half == "fp16" else ml_dtypes.bfloat16
    np.testing.assert_array_equal(kept[f"w3.{half}"], source.astype(dtype))


def test_each_value_is_cast_only_once() -> None:
    made = to_half(small_stn(18, 2), "fp16").model
    casts = [node for node in made.graph.node if node.op_type == "Cast"]
    # Casts of the image, of the input of each head, and of the scores.
    assert sorted((node.input[0], node.attribute[0].i) for node in casts) == [
        ("t0_tanh.fp16", F32),
        ("t1_tanh.fp16", F32),
        ("x", F16),
        ("y.fp16", F32),
    ]


@pytest.mark.parametrize("plugin", [False, True])
def test_an_fp16_file_runs_with_and_without_the_library(plugin: bool) -> None:
    if plugin:
        from tests.support.tensorrt_parts import library_or_skip

        library_or_skip()
    model, x = small_stn(18, 2), images()
    expected = run(model, x)
    np.testing.assert_allclose(run(to_half(model, "fp16").model, x, plugin), expected, atol=5e-3)
    assert np.abs(expected).max() > 0.5


def test_bfloat16_on_the_cpu_raises() -> None:
    made = to_half(small_stn(22), "bf16").model
    with pytest.raises(ModelError, match="its CPU execution provider has no bfloat16 operators"):
        run(made, images())


def test_sampling_happens_in_float32() -> None:
    """At width 4096 a half-precision coordinate has an error above a pixel; a ramp image shows the sampling points."""
    width = 4096
    basis = np.stack([(2 * np.arange(width) + 1) / width - 1, np.zeros(width), np.ones(width)]).astype(np.float32)
    attributes = {
        "kind": "affine",
        "mode": "bilinear",
        "padding_mode": "border",
        "align_corners": 0,
        "grid_shape": [0, 1, width, 2],
        "plugin_namespace": "stn",
        "plugin_version": "1",
    }
    theta = np.array([[[1, 0, 0.25 / width], [0, 1, 0]]], np.float32)  # an eighth of a pixel
    model = model_of(
        [
            helper.make_node("Conv", ["x", "one"], ["image"]),
            helper.make_node("SpatialTransformer", ["image", "theta", "basis"], ["y"], domain="stn", **attributes),
        ],
        {"one": np.ones((1, 1, 1, 1), np.float32), "theta": theta, "basis": basis},
        shape=(1, 1, width),
    )
    # Neighbors differ by one unit, which fp16 represents exactly.
    x = np.tile(np.array([0.0, 1.0], np.float32), width // 2).reshape(1, 1, 1, width)
    for plugin in (False, None):
        y = run(to_half(model, "fp16").model, x, plugin)[0, 0, 0, :-1]
        np.testing.assert_allclose(y, np.abs(x[0, 0, 0, :-1] - 0.125), atol=1e-3)


def test_a_sampler_that_was_not_fused_keeps_its_float32_grid() -> None:
    rng = np.random.default_rng(0)
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["features"], name="features", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["features", "w_flow"], ["flow"], name="flow"),
            helper.make_node("Tanh", ["flow"], ["bounded"], name="bounded"),
            helper.make_node("Transpose", ["bounded"], ["grid"], name="grid", perm=[0, 2, 3, 1]),
            helper.make_node("GridSample", ["features", "grid"], ["warped"], name="sample", mode="bilinear"),
            helper.make_node("Conv", ["warped", "w_last"], ["y"], name="last"),
        ],
        {
            "w": rng.standard_normal((3, 1, 3, 3)).astype(np.float32),
            "w_flow": rng.standard_normal((2, 3, 1, 1)).astype(np.float32),
            "w_last": rng.standard_normal((2, 3, 1, 1)).astype(np.float32),
        },
    )
    made = to_half(model, "fp16").model
    onnx.checker.check_model(made, full_check=True)
    types = types_of(made)
    halves = {item.name for item in made.graph.node if types[item.output[0]] == F16 and item.op_type != "Cast"}
    assert halves == {"features", "last"}
    x = images()
    scale = np.abs(run(model, x)).max()
    np.testing.assert_allclose(run(made, x), run(model, x), atol=5e-3 * scale)


@pytest.mark.parametrize("plugin", [False, pytest.param(None, id="library")])
def test_the_samplers_image_is_half_and_its_grid_is_not(plugin: bool | None) -> None:
    """Half-precision coordinates of 1,024 columns would be off by a quarter of a pixel."""
    rng = np.random.default_rng(0)
    columns = np.linspace(-1, 1, 1024, dtype=np.float32)
    points = np.stack([np.tile(columns, (4, 1)), np.tile(np.linspace(-1, 1, 4, dtype=np.float32)[:, None], 1024)], -1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["features"], name="features", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["features"], ["mean"], name="mean"),
        helper.make_node("Clip", ["mean", "low", "high"], ["shift"], name="clip"),
        helper.make_node("Add", ["points", "shift"], ["moved"], name="move"),
        helper.make_node("Sin", ["moved"], ["one"], name="grid"),
        helper.make_node("Expand", ["one", "two"], ["grid"], name="expand"),
        helper.make_node("GridSample", ["features", "grid"], ["y"], name="sample", align_corners=1, mode="bilinear"),
    ]
    weights = {"w": rng.standard_normal((3, 1, 3, 3)), "low": -1e-3, "high": 1e-3, "points": points[None]}
    constants = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    model, (finding,) = fuse(model_of(nodes, {**constants, "two": np.array([2, 4, 1024, 2])}, shape=(1, 4, 1024)))
    assert finding.op == "Sampler"
    made = to_half(model, "fp16").model
    onnx.checker.check_model(made, full_check=True)
    sampler = node(made, "sample")
    types = types_of(made)
    assert (types[sampler.input[0]], types[sampler.input[1]]) == (F16, F32)
    x = rng.standard_normal((2, 1, 4, 1024)).astype(np.float32)
    expected = run(model, x)
    np.testing.assert_allclose(run(made, x, plugin), expected, atol=5e-3 * np.abs(expected).max())


def test_unsafe_operators_stay_in_float32() -> None:
    """A softmax and a sum stay in float32; a Resize's scales have a separate type; Shape reads either type."""
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
            helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resize", mode="linear"),
            helper.make_node("Softmax", ["b"], ["c"], name="softmax", axis=1),
            helper.make_node("Shape", ["a"], ["shape"], name="shape", start=0, end=2),
            helper.make_node("ReduceSum", ["c", "axes"], ["d"], name="sum", keepdims=0),
            helper.make_node("Reshape", ["d", "shape"], ["y"], name="reshape"),
        ],
        {
            "w": np.ones((2, 1, 3, 3), np.float32),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "axes": np.array([2, 3], np.int64),
        },
    )
    made = to_half(model, "fp16").model
    onnx.checker.check_model(made, full_check=True)
    types = types_of(made)
    assert types[node(made, "resize").input[0]] == F16 and types[node(made, "resize").input[2]] == F32
    for name in ("softmax", "sum", "reshape"):
        assert types[node(made, name).input[0]] == types[node(made, name).output[0]] == F32
    assert node(made, "shape").input[0] == "a.fp16"
    np.testing.assert_allclose(run(made, images()), run(model, images()), rtol=1e-2)


def test_a_subgraph_reads_float32() -> None:
    branch = helper.make_graph(
        [helper.make_node("Exp", ["a"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", F32, [None] * 4)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["negated"])],
        "other",
        [],
        [helper.make_tensor_value_info("negated", F32, [None] * 4)],
    )
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
            helper.make_node("If", ["yes"], ["b"], name="if", then_branch=branch, else_branch=other),
            helper.make_node("Conv", ["b", "w"], ["y"], name="last"),
        ],
        {"w": np.full((1, 1, 3, 3), 0.1, np.float32), "yes": np.array(True)},
    )
    made = to_half(model, "fp16").model
    onnx.checker.check_model(made, full_check=True)
    assert types_of(made)["a"] == F32 and node(made, "last").input[0] == "b.fp16"
    np.testing.assert_allclose(run(made, images()), run(model, images()), rtol=5e-3)


def scaled(values: list[float]) -> onnx.ModelProto:
    """Two 1x1 convolutions; the first has the given weights."""
    return model_of(
        [
            helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
            helper.make_node("Conv", ["a", "second"], ["y"], name="second"),
        ],
        {
            "first": np.array(values, np.float32).reshape(-1, 1, 1, 1),
            "second": np.full((1, len(values), 1, 1), 0.5, np.float32),
        },
    )


@pytest.mark.parametrize(
    ("values", "problem", "message", "stays"),
    [
        ([1.0, 7e4], "overflow", "weight 'first' reaches 7e+04, above fp16's maximum 65504", True),
        (
            [1e-9, 2e-8],
            "vanishing",
            "weight 'first' is at most 2e-08, below fp16's smallest positive value 6e-08",
            True,
        ),
        ([1.0, 1e-9], "underflow", "1 of 2 values of weight 'first' are below fp16's smallest positive value", False),
    ],
)
def test_weights_out_of_range_are_named(values: list[float], problem: str, message: str, stays: bool) -> None:
    made = to_half(scaled(values), "fp16")
    (finding,) = made.findings
    assert (finding.tensor, finding.problem) == ("first", problem)
    assert message in finding.message
    assert types_of(made.model)[node(made.model, "first").input[1]] == (F32 if stays else F16)
    assert types_of(made.model)[node(made.model, "second").input[1]] == F16
    assert np.isfinite(run(made.model, images())).all()


def test_bf16_has_the_range_of_float32() -> None:
    model = scaled([1e-30, 7e4])
    model.opset_import[0].version = 22
    assert to_half(model, "bf16").findings == ()
    assert largest("bf16") > 3e38 and smallest("fp16") == 2.0**-24


@pytest.mark.parametrize("peak", [4e4, float("nan"), float("inf")])
def test_activations_out_of_range_keep_their_nodes_in_float32(peak: float) -> None:
    made = to_half(scaled([1.0, 2.0]), "fp16", peaks={"a": peak, "y": 3.0})
    assert [finding.tensor for finding in made.findings] == ["a"]
    assert "activation 'a' reaches" in made.findings[0].message
    assert made.half_nodes == 0 and made.float_nodes == 2


def test_bf16_needs_opset_22() -> None:
    with pytest.raises(ExportError, match="opset 22 or later, given opset 18"):
        to_half(small_stn(18), "bf16")


def test_the_last_layer_in_float32_reduces_the_grid_error() -> None:
    """Rounding theta causes several times the error of rounding the features before it."""
    model, x = small_stn(22), images(64)

    def theta(changed: onnx.ModelProto) -> np.ndarray:
        copy = onnx.ModelProto()
        copy.CopyFrom(changed)
        copy.graph.output.append(onnx.ValueInfoProto(name="t0_theta"))
        return OrtBackend(copy.SerializeToString(), threads=1, plugin=False).run({"x": x})["t0_theta"]

    exact = theta(model)
    converted = np.abs(theta(rounded_in_float32(to_half(model, "bf16").model)) - exact).max()
    rounded = np.abs(exact.astype(ml_dtypes.bfloat16).astype(np.float32) - exact).max()
    assert 0 < 2 * converted < rounded
