"""Quotients in reduced precision: theta, basis and division stay float32, in FP16, BF16 and INT8 files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from stn_infer import plugin
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.op import is_version_2
from stn_infer.precision.half import Half, to_half
from stn_infer.precision.int8 import quantize
from stn_infer.proto.traversal import attributes_of
from stn_infer.reference.onnx_file import OnnxReference
from stn_infer.repairs.inlined import inlined
from tests.support.precision_models import images, small_stn, types_of

DIVISION = (0.97, (0.125, -0.25))


def quotient(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = filter(is_version_2, model.graph.node)
    return node


def run(model: onnx.ModelProto, x: np.ndarray, library: bool | None = False) -> np.ndarray:
    return OrtBackend(model.SerializeToString(), threads=1, plugin=library).run({"x": x})["y"]


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_only_the_image_of_a_quotient_becomes_half(half: Half) -> None:
    model = small_stn(22, division=DIVISION)
    made = to_half(model, half).model
    onnx.checker.check_model(made, full_check=True)
    single, narrow = TensorProto.FLOAT, TensorProto.FLOAT16 if half == "fp16" else TensorProto.BFLOAT16
    node, types = quotient(made), types_of(made)
    assert [types[name] for name in (*node.input, *node.output)] == [narrow, single, single, narrow]
    assert attributes_of(node) == attributes_of(quotient(model))
    head = next(node for node in made.graph.node if node.name == "t0_head")
    assert {types[name] for name in (*head.input, *head.output)} == {single}


def test_half_and_int8_files_compute_the_same() -> None:
    model, x = small_stn(division=DIVISION), images(5)
    (expected,), (call,) = OnnxReference(model).run([x])
    assert np.ptp(call.grid[..., 0], axis=(1, 2)).min() > 1
    np.testing.assert_allclose(run(model, x), expected, atol=1e-5)
    half = to_half(model, "fp16").model
    for made in (half, inlined(half)):
        np.testing.assert_allclose(run(made, x), expected, atol=3e-3 * np.abs(expected).max())
    quantized = quantize(model, [{"x": images(16, seed)} for seed in range(2)])
    node = quotient(quantized)
    assert node.input[1:] == quotient(model).input[1:] and attributes_of(node) == attributes_of(quotient(model))
    np.testing.assert_allclose(run(quantized, x), expected, atol=0.05 * np.abs(expected).max())
    if plugin.available():
        for made, share in ((half, 3e-3), (quantized, 0.05)):
            np.testing.assert_allclose(run(made, x, None), expected, atol=share * np.abs(expected).max())
