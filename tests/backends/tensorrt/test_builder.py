"""The builder's calls to full TensorRT with the plugin, against a recording stand-in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.api.engines.build import build
from stn_infer.backends.tensorrt import engine as building
from stn_infer.backends.tensorrt.builder import build_plan, load_plugins
from stn_infer.backends.tensorrt.engine_cache import InputProfile
from stn_infer.backends.tensorrt.options import BuilderSettings
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT, make_logger
from stn_infer.errors import ModelError
from stn_infer.fusion.op import attach_functions, node_attributes
from tests.support.tensorrt_builder import Recorder
from tests.support.tensorrt_parts import library_or_skip, module_or_skip

PROFILES = ((InputProfile("input", (1, 1, 4, 4), (2, 1, 4, 4), (4, 1, 4, 4)),),)
LIBRARY = Path("/somewhere/libstn_plugins.so")
# What every configuration is told.
DEFAULTS = [("clear_flag", "TF32"), ("profiling_verbosity", "DETAILED")]


def model(nodes: int = 1) -> onnx.ModelProto:
    """``nodes`` spatial transformers in a row."""
    names = ["input", *(f"warped_{index}" for index in range(nodes))]
    attributes = node_attributes("affine", (4, 4))
    graph = helper.make_graph(
        [
            helper.make_node(
                "SpatialTransformer", [a, "theta", "basis"], [b], name=f"stn_{b}", domain="stn", **attributes
            )
            for a, b in pairwise(names)
        ],
        "model",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 4, 4]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["n", 2, 3]),
        ],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n", 1, 4, 4])],
        [numpy_helper.from_array(np.ones((3, 16), np.float32), "basis")],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    attach_functions(result)
    return result


def runtime(module: Recorder, version: str = "11.4.0.106") -> TensorRT:
    return TensorRT("tensorrt", module, version)


def test_tensorrt_11_with_the_plugin() -> None:
    module = Recorder(layers=["SHUFFLE", "PLUGIN_V3"])
    plan = build_plan(runtime(module), model(), PROFILES, plugin=LIBRARY)
    assert (plan.engine, plan.fused) == (b"engine", ("layer_1",))
    assert module.calls == [
        ("load_library", str(LIBRARY)),
        ("create_network", 0),
        ("parser.set_flag", "ENABLE_PLUGIN_OVERRIDE"),
        *DEFAULTS,
        ("set_shape", "input", (1, 1, 4, 4), (2, 1, 4, 4), (4, 1, 4, 4)),
        "add_optimization_profile",
    ]


def test_tensorrt_10_builds_strongly_typed_without_newer_flags() -> None:
    module = Recorder(layers=["PLUGIN_V3"], newest=False)
    build_plan(runtime(module, "10.8.0.43"), model(), (), plugin=LIBRARY, settings=BuilderSettings(tf32=True))
    flags = [("set_flag", "TF32"), DEFAULTS[1]]
    assert module.calls == [("load_library", str(LIBRARY)), ("create_network", 0b10), *flags]


def test_each_profile_is_added_in_turn() -> None:
    module = Recorder(layers=["SHUFFLE"])
    second = (InputProfile("input", (5, 1, 4, 4), (8, 1, 4, 4), (9, 1, 4, 4)),)
    build_plan(runtime(module), model(), (*PROFILES, second))
    assert module.calls[-4:] == [
        ("set_shape", "input", (1, 1, 4, 4), (2, 1, 4, 4), (4, 1, 4, 4)),
        "add_optimization_profile",
        ("set_shape", "input", (5, 1, 4, 4), (8, 1, 4, 4), (9, 1, 4, 4)),
        "add_optimization_profile",
    ]


def test_native_layers_load_no_library() -> None:
    module = Recorder(layers=["SHUFFLE"])
    assert build_plan(runtime(module), model(), ()).fused == ()
    assert module.calls == [("create_network", 0), *DEFAULTS]


def test_a_library_is_loaded_once_in_a_process() -> None:
    module = Recorder(layers=["PLUGIN_V3"])
    for _ in range(2):
        build_plan(runtime(module), model(), (), plugin=LIBRARY)
    assert module.calls.count(("load_library", str(LIBRARY))) == 1


def test_a_plugin_that_the_parser_ignores_is_an_error() -> None:
    module = Recorder(layers=["PLUGIN_V3", "SHUFFLE"])
    with pytest.raises(ModelError, match="used the plugin for only 1 of 2 nodes of domain stn"):
        build_plan(runtime(module), model(nodes=2), (), plugin=LIBRARY)


def test_a_rejected_library_and_a_failed_build_give_one_line() -> None:
    with pytest.raises(ModelError, match=r"cannot load plugins from /somewhere/libstn_plugins\.so"):
        build_plan(runtime(Recorder(layers=[], takes_library=False)), model(), (), plugin=LIBRARY)
    with pytest.raises(ModelError, match=r"TensorRT 11\.4\.0\.106 cannot build the model"):
        build_plan(runtime(Recorder(layers=[], builds=False)), model(), ())


@pytest.mark.parametrize(("version", "functions"), [("10.1.0.27", 0), ("10.7.0.23", 0), ("10.8.0.43", 1)])
def test_old_parsers_get_no_functions(
    version: str, functions: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole command without TensorRT and a GPU: the plugin must run nodes without functions."""
    module, library = Recorder(layers=["PLUGIN_V3"], newest=False), tmp_path / "libstn_plugins.so"
    library.write_bytes(b"a library")
    onnx.save(model(), tmp_path / "m.onnx")
    monkeypatch.setattr(building, "load_runtime", lambda name: runtime(module, version))
    monkeypatch.setattr(building, "current_gpu", lambda index: Gpu("", "sm89"))
    monkeypatch.setattr(building, "_cuda_library", lambda device: library)
    engine = build(tmp_path / "m.onnx", tmp_path / "m.engine", cache=tmp_path / "cache")
    assert (engine.data, engine.sidecar.fused) == (b"engine", ("layer_0",))
    (parsed,) = module.parsed
    assert len(parsed.functions) == functions
    assert [node.op_type for node in parsed.graph.node] == ["SpatialTransformer"]


def test_load_plugins_with_a_real_registry(tmp_path: Path) -> None:
    lean = module_or_skip("tensorrt_lean", "tensorrt-lean")
    library, logger = library_or_skip(), make_logger(lean)
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    if lean.get_plugin_registry().get_creator("SpatialTransformer", "1", "stn") is None:
        with pytest.raises(ModelError, match="cannot load plugins from"):
            load_plugins(lean, wrong, logger)
    load_plugins(lean, library, logger)
    load_plugins(lean, library, logger)
    for name, space in (("SpatialTransformer", "stn"), ("ProjectiveTransformer", "stn"), ("GridSample", "")):
        assert lean.get_plugin_registry().get_creator(name, "1", space) is not None
