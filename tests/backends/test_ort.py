"""The onnxruntime backend: what it accepts, what it rejects, and its messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stn_infer.api.open import open_backend
from stn_infer.backends.base import Backend
from stn_infer.backends.device import Device
from stn_infer.backends.ort import OrtBackend, _plugin_library, cuda_problem
from stn_infer.errors import InputError, MissingDependencyError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess


def tiny_model(batch: str | int = "N", dtype: int = TensorProto.FLOAT, op: str = "Neg", domain: str = "") -> bytes:
    """``y = op(x)`` on [batch, 3], with metadata."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], domain=domain)],
        "tiny",
        [helper.make_tensor_value_info("x", dtype, [batch, 3])],
        [helper.make_tensor_value_info("y", dtype, [batch, 3])],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(model, ModelMetadata(Preprocess(), ("a", "b", "c"), "tiny").to_props())
    return model.SerializeToString()


def batch_of(count: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(count * 3, dtype=dtype).reshape(count, 3)


def test_runs_like_the_reference_evaluator_for_every_batch_size() -> None:
    backend = OrtBackend(tiny_model())
    reference = ReferenceEvaluator(onnx.load_from_string(tiny_model()))
    assert isinstance(backend, Backend)
    for count in (0, 1, 5):
        x = batch_of(count)
        np.testing.assert_array_equal(backend.run({"x": x})["y"], reference.run(None, {"x": x})[0])


def test_inputs_outputs_and_metadata_are_described() -> None:
    backend = OrtBackend(tiny_model())
    assert [(spec.name, spec.shape, spec.dtype) for spec in backend.inputs] == [("x", (None, 3), np.dtype("float32"))]
    assert [spec.name for spec in backend.outputs] == ["y"]
    assert backend.metadata == ModelMetadata(Preprocess(), ("a", "b", "c"), "tiny")
    assert backend.describe()["providers"] == "CPUExecutionProvider"
    assert backend.describe()["threads"] == "one per core"


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 11])
def test_a_fixed_batch_size_is_run_in_chunks(count: int) -> None:
    backend = OrtBackend(tiny_model(batch=4))
    assert backend.inputs[0].shape == (None, 3)
    np.testing.assert_array_equal(backend.run({"x": batch_of(count)})["y"], -batch_of(count))


def test_opens_files_and_bytes_alike(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model())
    for model in (path, str(path), tiny_model()):
        np.testing.assert_array_equal(open_backend(model, threads=1).run({"x": batch_of(2)})["y"], -batch_of(2))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "takes the inputs x; given: none"),
        ({"x": batch_of(1), "z": batch_of(1)}, "given: x, z"),
        ({"x": batch_of(1, np.float64)}, "takes float32 values, given float64"),
        ({"x": batch_of(1)[0]}, r"takes shape \[\?, 3\], given \[3\]"),
        ({"x": np.zeros((2, 4), np.float32)}, r"takes shape \[\?, 3\], given \[2, 4\]"),
    ],
)
def test_inputs_that_do_not_match_are_rejected(inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words):
        OrtBackend(tiny_model()).run(inputs)


def test_inputs_of_different_batch_sizes_are_rejected() -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["z"], ["w"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "z")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("y", "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(InputError, match="the same batch size, given 1, 2"):
        OrtBackend(model.SerializeToString()).run({"x": batch_of(1), "z": batch_of(2)})


def test_unreadable_files_give_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(tiny_model()[:40])
    for model in (tmp_path / "missing.onnx", tmp_path, broken):
        with pytest.raises(ModelError) as caught:
            OrtBackend(model)
        assert model.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(ModelError, match=r"rejects the model: .*Warp"):
        OrtBackend(tiny_model(op="Warp", domain="nowhere"))


def test_bfloat16_inputs_are_rejected_with_a_reason() -> None:
    with pytest.raises(ModelError, match="'x' is bfloat16"):
        OrtBackend(tiny_model(dtype=TensorProto.BFLOAT16, op="Identity"))


def test_a_closed_backend_reports_it() -> None:
    backend = OrtBackend(tiny_model())
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        backend.run({"x": batch_of(1)})


def test_requesting_a_missing_gpu_reports_the_reason() -> None:
    problem = cuda_problem()
    if problem is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingDependencyError) as caught:
        OrtBackend(tiny_model(), device="cuda:0")
    assert problem in str(caught.value)


@pytest.mark.gpu
def test_runs_on_the_requested_gpu() -> None:
    if (problem := cuda_problem()) is not None:
        pytest.skip(problem)
    backend = OrtBackend(tiny_model(), device="cuda")
    assert backend.device == "cuda:0"
    assert "CUDAExecutionProvider" in backend.describe()["providers"]
    np.testing.assert_array_equal(backend.run({"x": batch_of(3)})["y"], -batch_of(3))


def test_unknown_backends_and_devices_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cpu', 'cuda' or 'cuda:N', not 'gpu'"):
        open_backend(tiny_model(), device="gpu")
    with pytest.raises(
        UsageError, match="unknown backend 'tvm': expected one of ort, eager, compile, openvino, tensorrt, tensorrt-rtx"
    ):
        open_backend(tiny_model(), backend="tvm")
    (tmp_path / "m.onnx").write_bytes(tiny_model())
    with pytest.raises(UsageError, match="not an ONNX file"):
        open_backend(tmp_path / "m.onnx", backend="eager")


def test_the_plugin_library_is_used_if_it_supports_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer import plugin

    content = tiny_model()
    assert OrtBackend(content, plugin=False).describe()["plugin"] == "none"
    if plugin.available():
        assert OrtBackend(content).describe()["plugin"] == plugin.FILE_NAME
    monkeypatch.setenv(plugin.ENVIRONMENT, "/nowhere/libstn_plugins.so")
    assert OrtBackend(content).describe()["plugin"] == "none"
    with pytest.raises(MissingDependencyError, match="not built"):
        OrtBackend(content, plugin=True)


def test_a_gpu_that_cannot_run_the_kernels_gets_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stn_infer import plugin

    state = plugin.PluginInfo(tmp_path, None, "1", True, "plain", True, True, None, None, None, ())
    monkeypatch.setattr(plugin, "load", lambda: None)
    monkeypatch.setattr(plugin, "info", lambda: state)
    monkeypatch.setattr(plugin, "cuda_problem", lambda device: f"no code for cuda:{device}" if device else None)
    plugin.warn_of.cache_clear()
    assert _plugin_library(Device("cuda", 0), required=True) == tmp_path
    with pytest.warns(RuntimeWarning, match="^no code for cuda:1; onnxruntime's operators are used instead$"):
        assert _plugin_library(Device("cuda", 1), required=False) is None
    assert _plugin_library(Device("cuda", 1), required=False) is None  # without a second warning
    with pytest.raises(MissingDependencyError, match=r"^no code for cuda:1$"):
        _plugin_library(Device("cuda", 1), required=True)


def test_no_samples_give_no_rows_where_an_operator_refuses_them() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["w", "x"], ["y"])],
        "left",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 4])],
        [numpy_helper.from_array(np.ones((2, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    backend = OrtBackend(model.SerializeToString())
    assert backend.run({"x": np.ones((0, 3, 4), np.float32)})["y"].shape == (0, 2, 4)
    np.testing.assert_array_equal(backend.run({"x": np.ones((2, 3, 4), np.float32)})["y"], np.full((2, 2, 4), 3))
