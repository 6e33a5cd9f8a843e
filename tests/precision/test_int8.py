"""int8: which nodes are quantized and how, and that the portable op is kept."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ExportError
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.precision.int8 import quantize
from tests.support.precision_models import images, model_of, small_stn


@pytest.fixture(scope="module", params=[1, 2], ids=["one transformer", "two"])
def pair(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model, and the same model in int8."""
    model = small_stn(transformers=request.param)
    before = model.SerializeToString()
    quantized = quantize(model, [{"x": images(16, seed)} for seed in range(4)])
    assert model.SerializeToString() == before
    return model, quantized


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_file_is_valid_and_quantized(pair: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    _, quantized = pair
    onnx.checker.check_model(quantized, full_check=True)
    values = constants(quantized)
    pairs = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any(), node.name
    assert [value.type.tensor_type.elem_type for value in (*quantized.graph.input, *quantized.graph.output)] == [1, 1]


def test_layers_are_quantized_per_channel_and_the_head_is_not(pair: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    model, quantized = pair
    values, sources = constants(quantized), constants(model)
    maker = {name: node for node in quantized.graph.node for name in node.output}
    nodes = {node.name: node for node in quantized.graph.node}
    for name, weight in {"t0_conv": "t0_w0", "conv2": "w2", "scores": "w3"}.items():
        read = [maker.get(tensor) for tensor in nodes[name].input[:2]]
        assert [node.op_type for node in read if node is not None] == ["DequantizeLinear"] * 2, name
        assert read[1] is not None
        stored, scale = values[read[1].input[0]], values[read[1].input[1]]
        assert stored.dtype == np.int8 and scale.shape == (len(sources[weight]),)
        restored = stored * scale.reshape(-1, *[1] * (stored.ndim - 1))
        assert np.abs(restored - sources[weight]).max() <= scale.max() / 2 + 1e-7
    for name in (name for name in nodes if name.endswith(("_fc", "_head"))):
        assert set(nodes[name].input[1:]) <= set(sources), name
    # The sampled image and theta are unchanged.
    for old, new in zip(spatial_nodes(model), spatial_nodes(quantized), strict=True):
        assert (new.input, new.theta) == (old.input, old.theta)


def test_transformers_and_functions_are_kept(pair: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    model, quantized = pair
    assert [(node.theta, node.basis and node.basis.output_size) for node in spatial_nodes(quantized)] == [
        (node.theta, node.basis and node.basis.output_size) for node in spatial_nodes(model)
    ]
    assert [(item.domain, item.name) for item in quantized.functions] == [("stn", "SpatialTransformer")]


def test_a_sampler_at_any_grid_is_kept() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["features", "w_flow"], ["flow"]),
        helper.make_node("Transpose", ["flow"], ["grid"], perm=[0, 2, 3, 1]),
        helper.make_node("GridSample", ["features", "grid"], ["warped"], name="sample"),
        helper.make_node("Conv", ["warped", "w_last"], ["y"]),
    ]
    shapes = {"w": (3, 1, 3, 3), "w_flow": (2, 3, 1, 1), "w_last": (2, 3, 1, 1)}
    constants = {name: 0.3 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model, _ = fuse(model_of(nodes, constants))
    quantized = quantize(model, [{"x": images(16, 0)}])
    (sampler,) = (node for node in quantized.graph.node if node.op_type == "Sampler")
    assert list(sampler.input) == ["features", "grid"]
    assert [(item.domain, item.name) for item in quantized.functions] == [("stn", "Sampler")]


@pytest.mark.parametrize("plugin", [False, None])
def test_it_computes_nearly_the_same(pair: tuple[onnx.ModelProto, onnx.ModelProto], plugin: bool | None) -> None:
    x = images(32, 99)
    want, got = (OrtBackend(item.SerializeToString(), threads=1, plugin=plugin).run({"x": x})["y"] for item in pair)
    error = np.abs(want - got).max()
    assert 0 < error < 0.03 * np.abs(want).max()


def test_a_model_with_only_a_localization_head_raises() -> None:
    rng = np.random.default_rng(0)
    model = small_stn()
    nodes = [node for node in model.graph.node if node.name in ("t0_stn", "t0_head") or not node.name]
    kept = constants(model)
    nodes[-1].output[0] = "y"
    flat = helper.make_node("Reshape", ["x", "flat"], ["t0_tanh"], name="flatten")
    kept["t0_w_theta"] = rng.standard_normal((6, 64)).astype(np.float32)
    used = {name for node in nodes for name in node.input} | {"flat"}
    small = model_of([flat, *nodes], {name: value for name, value in kept.items() if name in used})
    with pytest.raises(ExportError, match="no convolution or linear layer besides those that compute theta"):
        quantize(small, [{"x": images()}])


def test_without_samples_the_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="int8: onnxruntime's quantizer fails"):
        quantize(small_stn(), [])
    assert logging.root.manager.disable == logging.NOTSET
    assert capsys.readouterr().err == ""
