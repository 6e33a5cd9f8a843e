"""Models in half precision and INT8, built strongly typed by TensorRT-RTX's parser and builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stn_infer.api.engines.build import build
from stn_infer.backends.tensorrt.builder import sampling_layers
from stn_infer.backends.tensorrt.engine import BuildOptions
from stn_infer.backends.tensorrt.profiles import Profile
from stn_infer.backends.tensorrt.runtime import TensorRT
from stn_infer.models import SHIPPED
from stn_infer.precision.half import Half, to_half
from stn_infer.precision.int8 import quantize
from tests.support.precision_models import images, small_stn
from tests.support.shared import portable, source
from tests.support.tensorrt_parts import library_or_skip, parsed, run_script

RTX = BuildOptions(runtime="tensorrt-rtx", target="sm89", profile=Profile((1,), (2,), (4,)))
MODELS = (*SHIPPED, "st-cnn-projective")


def types_at_samplers(rtx: TensorRT, model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """(image, grid, output) types of each sampling layer in the parser's network."""
    network, _alive = parsed(rtx, model.SerializeToString())
    return [
        (layer.get_input(0).dtype.name, layer.get_input(1).dtype.name, layer.get_output(0).dtype.name)
        for layer in sampling_layers(rtx.module, network)
    ]


def lowered(model: onnx.ModelProto, precision: str, feeds: list[dict[str, Any]]) -> onnx.ModelProto:
    if precision == "int8":
        return quantize(model, feeds)
    half: Half = "fp16" if precision == "fp16" else "bf16"
    return to_half(model, half).model


def built(model: onnx.ModelProto, folder: Path) -> tuple[bytes, str]:
    onnx.save(model, folder / "model.onnx")
    engine = build(folder / "model.onnx", folder / "model.engine", RTX, cache=folder / "cache")
    return engine.data, engine.sidecar.key.precision


@pytest.mark.parametrize("transformers", [1, 2])
@pytest.mark.parametrize(
    ("precision", "types"), [("fp16", "float16+float32"), ("bf16", "bfloat16+float32"), ("int8", "float32")]
)
def test_a_small_model_builds_and_samples_in_float32(
    rtx: TensorRT, tmp_path: Path, precision: str, types: str, transformers: int
) -> None:
    model = small_stn(22 if precision == "bf16" else 18, transformers)
    made = lowered(model, precision, [{"x": images(32)}])
    assert types_at_samplers(rtx, made) == [("FLOAT", "FLOAT", "FLOAT")] * transformers
    data, found = built(made, tmp_path)
    assert len(data) > 10_000 and found == types


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_builds_in_every_precision(rtx: TensorRT, tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).random((32, *source(name).input_shapes[0])).astype(np.float32)
    for precision in ("fp16", "bf16", "int8"):
        model = portable(name, bf16=precision == "bf16")
        made = lowered(model, precision, [{"input": noise}])
        assert types_at_samplers(rtx, made) == [("FLOAT", "FLOAT", "FLOAT")]
        folder = tmp_path / precision
        folder.mkdir()
        assert len(built(made, folder)[0]) > 10_000


def test_the_parser_creates_our_plugin_beside_quantized_layers(rtx: TensorRT, tmp_path: Path) -> None:
    """With tensorrt_formats.hpp, which offers the plugin INT8 tensors: it refuses them, so Q/DQ stay around it."""
    onnx.save(lowered(small_stn(), "int8", [{"x": images(32)}]), tmp_path / "model.onnx")
    script = ("rtx_parse_with_plugin.py", str(library_or_skip()), str(tmp_path / "model.onnx"))
    _, errors, _ = run_script(*script, environment={"STN_TENSORRT_DEVICE": "cpu"})
    assert "created: SpatialTransformer affine bilinear zeros" in errors


@pytest.mark.parametrize("transformers", [1, 2])
def test_transformers_read_and_write_float_tensors_beside_quantized_layers(transformers: int) -> None:
    made = lowered(small_stn(18, transformers), "int8", [{"x": images(32)}])
    typed = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*typed.graph.value_info, *typed.graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    maker = {name: node.op_type for node in made.graph.node for name in node.output}
    reads = [(node.op_type, name) for node in made.graph.node for name in node.input]
    ours = [node for node in made.graph.node if node.domain == "stn"]
    assert len(ours) == transformers
    for node in ours:
        names = (*node.input, *node.output)
        assert [types[name] for name in names] == [onnx.TensorProto.FLOAT] * len(names)
        assert not {maker.get(name) for name in node.input} & {"QuantizeLinear", "DequantizeLinear"}
        assert any(kind == "QuantizeLinear" and name in node.output for kind, name in reads), "a layer after it is INT8"
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(maker.values())
    functions = [node.op_type for function in made.functions for node in function.node]
    assert functions and not {"QuantizeLinear", "DequantizeLinear"} & set(functions)
