"""What TensorRT's engine inspector says, read into layers with their types, ONNX nodes and plugins."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest

from stn_infer.backends.tensorrt import inspection
from stn_infer.backends.tensorrt.engine_cache import InputProfile
from stn_infer.backends.tensorrt.inspection import Layer, Tensor, inspect_plan, layer_of
from stn_infer.backends.tensorrt.runtime import TensorRT, make_logger
from stn_infer.errors import ModelError
from tests.support import tensorrt_engines as standin
from tests.support.tensorrt_engines import CONVOLUTION, SPATIAL, X, Y, plan_of

RUNTIME = TensorRT("tensorrt", standin.Module(), "11.4.0.106")


def test_the_stand_in_has_only_members_of_the_real_api(rtx: TensorRT) -> None:
    real = rtx.module
    for fake in (standin.ICudaEngine, standin.EngineInspector, standin.Refitter, standin.OnnxParserRefitter):
        members = [name for name in vars(fake) if not name.startswith("_")]
        assert members and all(hasattr(getattr(real, fake.__name__), name) for name in members), fake
    assert {it.name for it in standin.LayerInformationFormat} <= set(real.LayerInformationFormat.__members__)
    assert "layer_index" in real.EngineInspector.get_layer_information.__doc__
    assert hasattr(real.Runtime, "engine_host_code_allowed")


def test_what_is_in_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []
    monkeypatch.setattr(inspection, "current_device", lambda index: entered.append(index) or nullcontext())
    profiles = [
        {"x": [[1, 1, 4, 4], [2, 1, 4, 4], [8, 1, 4, 4]]},
        {"x": [[8, 1, 4, 4], [16, 1, 4, 4], [64, 1, 4, 4]]},
    ]
    plan = plan_of(profiles=profiles, refittable=True)
    found = inspect_plan(RUNTIME, plan, make_logger(RUNTIME.module), device=3)
    assert entered == [3]
    assert found.tensors == (
        Tensor("x", True, "float", (-1, 1, 4, 4), "Row major linear FP32 format"),
        Tensor("y", False, "half", (-1, 3), "Row major linear FP16 format"),
    )
    assert found.profiles == (
        (InputProfile("x", (1, 1, 4, 4), (2, 1, 4, 4), (8, 1, 4, 4)),),
        (InputProfile("x", (8, 1, 4, 4), (16, 1, 4, 4), (64, 1, 4, 4)),),
    )
    assert (found.refittable, found.device_memory) == (True, 1572864)
    assert [layer.name for layer in found.layers] == ["stn_0", "conv + relu"]


def test_an_engine_of_fixed_shapes_has_profiles_without_inputs() -> None:
    plan = plan_of(tensors=[{**X, "shape": [2, 1, 4, 4]}, Y], profiles=[{}], layers=[])
    found = inspect_plan(RUNTIME, plan, make_logger(RUNTIME.module), device=None)
    assert (found.profiles, found.layers) == (((),), ())


def test_an_engine_that_is_refused() -> None:
    logger = make_logger(RUNTIME.module)
    with pytest.raises(
        ModelError, match=r"TensorRT 11\.4\.0\.106 cannot load the engine: Serialization assertion"
    ) as it:
        inspect_plan(RUNTIME, b"ftrt" + bytes(24) + b"{", logger, device=None)
    assert "\n" not in str(it.value)
    plan = plan_of(host_code=True)
    with pytest.raises(ModelError, match="the engine contains host code"):
        inspect_plan(RUNTIME, plan, make_logger(RUNTIME.module), device=None)
    assert inspect_plan(RUNTIME, plan, make_logger(RUNTIME.module), device=None, host_code=True).layers


def layer(**change: Any) -> Layer:
    return layer_of(json.dumps({**CONVOLUTION, **change}))


def test_a_layer_of_the_plugin_and_one_of_fused_nodes() -> None:
    assert layer_of(json.dumps(SPATIAL)) == Layer(
        "stn_0",
        "PluginV3",
        ("fp32", "fp32"),
        ("fp32",),
        ("node_grid_sampler",),
        "SpatialTransformer: SpatialTransformer affine bilinear zeros half_pixel 4x4",
    )
    nodes = ("conv", "outer (Block)", "relu[0]")
    wanted = Layer("conv + relu", "CaskConvolution", ("int8",), ("fp16",), nodes, "", "sm80_xmma_fprop")
    assert layer() == wanted and wanted.precision == "int8 > fp16"
    assert layer(Metadata="[ONNX Layer: a][ONNX Layer: b]\x1e[ONNX Layer: a]").nodes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format", "bf16"),
        ("Row major Int8 format", "int8"),
        ("UInt8", "uint8"),
        ("Int64", "int64"),
        ("FP8", "fp8"),
        ("Bool", "bool"),
    ],
)
def test_types_in_the_words_of_tensorrt(text: str, kind: str) -> None:
    assert layer(Inputs=[{"Format/Datatype": text}]).inputs == (kind,)


@pytest.mark.parametrize(
    ("inputs", "outputs", "precision"),
    [
        (["Half", "Half"], ["Half"], "fp16"),
        (["Half", "Float"], ["Half"], "fp16+fp32 > fp16"),
        ([], ["Float"], "fp32"),
        (["a format of a later version"], [], ""),
    ],
)
def test_the_precision_of_a_layer(inputs: list[str], outputs: list[str], precision: str) -> None:
    sides = {"Inputs": inputs, "Outputs": outputs}
    made = layer(**{side: [{"Format/Datatype": text} for text in texts] for side, texts in sides.items()})
    assert made.precision == precision


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('"conv + relu"', Layer("conv + relu", nodes=("conv", "relu"))),
        ('"a||b"', Layer("a||b", nodes=("a", "b"))),
        ('"single"', Layer("single", nodes=("single",))),
        ("{not JSON", Layer("{not JSON")),
        ('{"Name": "n", "LayerType": "Reformat"}', Layer("n", "Reformat", nodes=("n",))),
        (
            '{"Name": "p", "LayerType": "PluginV2", "Inputs": 7}',
            Layer("p", "PluginV2", nodes=("p",), plugin="a plugin"),
        ),
        ("{}", Layer("")),
    ],
)
def test_a_layer_of_which_less_is_stored(text: str, wanted: Layer) -> None:
    assert layer_of(text) == wanted
