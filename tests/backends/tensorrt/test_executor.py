"""The executor and the backend around it, against a recording stand-in of TensorRT's Python API."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stn_infer import plugin
from stn_infer.backends.base import Backend, BatchingBackend, PixelBackend
from stn_infer.backends.tensorrt import backend as backend_module
from stn_infer.backends.tensorrt import engine as building
from stn_infer.backends.tensorrt.backend import (
    Opened,
    TensorRTBackend,
    open_engine,
    open_tensorrt,
    register_plugins,
)
from stn_infer.backends.tensorrt.cuda_stream import CudaDevice
from stn_infer.backends.tensorrt.engine_cache import EngineKey, Sidecar, write_engine
from stn_infer.backends.tensorrt.executor import Executor
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT, make_logger
from stn_infer.errors import DeviceWarning, InputError, MissingDependencyError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from tests.support import tensorrt_standin as standin
from tests.support.streams_standin import Inline, Late
from tests.support.tensorrt_engines import plan_of
from tests.support.tensorrt_parts import library_or_skip, module_or_skip
from tests.support.tensorrt_standin import Cuda, DataType, Module, Script

GPU = Gpu("a GPU", "sm89")
# Of an engine's second profile: larger batches, and wider rows.
LARGE = ((8, 3), (64, 3), (64, 3))
WIDE = ((1, 3), (2, 8), (4, 8))


def executor_of(script: Script) -> Executor:
    module = Module(script)
    return Executor(TensorRT("tensorrt", module, "11.4.0"), b"engine", Cuda(script), make_logger(module))


def backend_of(script: Script) -> TensorRTBackend:
    opened = Opened("m.engine", TensorRT("tensorrt", Module(script), "11.4.0"), GPU, "cpu", 1)
    return TensorRTBackend(executor_of(script), opened, ModelMetadata(source="m"), Inline())


def rows(count: int, start: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(start, start + count * 3, dtype=np.float32).reshape(count, 3)


def test_the_stand_in_has_only_members_of_the_real_api() -> None:
    rtx = module_or_skip("tensorrt_rtx", "tensorrt-rtx")
    for fake, real in ((standin.Context, rtx.IExecutionContext), (standin.Engine, rtx.ICudaEngine)):
        methods = [name for name in vars(fake) if not name.startswith("_")]
        assert methods and all(hasattr(real, name) for name in methods)
    for method, argument in (
        ("execute_async_v3", "stream_handle"),
        ("set_tensor_address", "memory"),
        ("set_optimization_profile_async", "profile_index: typing.SupportsInt, stream_handle"),
    ):
        assert argument in getattr(rtx.IExecutionContext, method).__doc__
    assert hasattr(rtx.Runtime, "deserialize_cuda_engine") and hasattr(rtx.Runtime, "engine_host_code_allowed")
    for fake_enum, real_enum in (
        (standin.TensorIOMode, rtx.TensorIOMode),
        (standin.DataType, rtx.DataType),
        (standin.ILogger.Severity, rtx.ILogger.Severity),
        (standin.ExecutionContextAllocationStrategy, rtx.ExecutionContextAllocationStrategy),
    ):
        assert all(hasattr(real_enum, member.name) for member in fake_enum)


def test_the_first_run_enqueues_the_second_records_a_graph_and_later_ones_replay_it() -> None:
    script = Script()
    executor = executor_of(script)
    x = torch.from_numpy(rows(2))
    out = executor.run({"x": x})["y"]
    assert script.calls == [
        "ordered",  # loading the engine
        "ordered",
        "create_execution_context",
        ("set_input_shape", "x", (2, 3)),
        ("set_tensor_address", "x"),
        ("set_tensor_address", "y"),
        ("execute_async_v3", 77),
    ]
    assert torch.equal(out, x * 2)
    for step, calls in ((1, ["ordered", "capture", ("execute_async_v3", 77), "replay"]), (2, ["ordered", "replay"])):
        script.calls.clear()
        x += step
        again = executor.run({"x": x})["y"]
        assert script.calls == calls
        assert again.data_ptr() == out.data_ptr(), "outputs stay where they are"
        assert torch.equal(again, x * 2)
    assert executor.graph_problem is None


@pytest.mark.parametrize("host_code", [False, True])
def test_an_engine_runs_host_code_only_where_it_may(host_code: bool) -> None:
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda engine: standin.Engine(Script()))
    module = Module(Script())
    module.Runtime = lambda logger: runtime  # type: ignore[method-assign]
    loaded = TensorRT("tensorrt", module, "11.4.0")
    Executor(loaded, b"engine", Cuda(Script()), make_logger(module), host_code=host_code)
    assert getattr(runtime, "engine_host_code_allowed", False) is host_code


def test_another_tensor_or_shape_gets_its_own_plan() -> None:
    script = Script()
    executor = executor_of(script)
    tensors = [torch.from_numpy(rows(count)) for count in (1, 2, 3, 4)]
    outputs = [executor.run({"x": x})["y"] for x in tensors for _ in range(3)]
    assert script.calls.count("create_execution_context") == 4
    assert script.calls.count("capture") == 4
    for index, x in enumerate(tensors):
        assert torch.equal(outputs[3 * index], x * 2)


def test_the_least_recently_used_plan_is_dropped() -> None:
    script = Script()
    executor = executor_of(script)
    tensors = [torch.from_numpy(rows(1, start)) for start in range(5)]
    for x in (tensors[0], tensors[1], tensors[2], tensors[3], tensors[0], tensors[4]):
        executor.run({"x": x})
    assert script.calls.count("create_execution_context") == 5
    assert script.calls.count("synchronize") == 1
    executor.run({"x": tensors[0]})  # was used after the second one, so it is still there
    assert script.calls.count("create_execution_context") == 5
    executor.run({"x": tensors[1]})
    assert script.calls.count("create_execution_context") == 6


def test_each_batch_runs_in_the_profile_whose_optimum_is_nearest() -> None:
    """Profiles have contexts of their own, made when they are needed, and a change between them costs no call."""
    script = Script(profile=((1, 3), (1, 3), (16, 3)), more_profiles=(LARGE,))
    executor = executor_of(script)
    tensors = {count: torch.from_numpy(rows(count)) for count in (1, 8, 40, 64)}
    chosen = []
    for x in tensors.values():
        script.calls.clear()
        assert torch.equal(executor.run({"x": x})["y"], x * 2)
        assert script.calls[1] == "create_execution_context", "one for each set of tensors"
        chosen.append(script.calls[2])
    assert chosen == [("set_optimization_profile_async", index, 77) for index in (0, 0, 1, 1)]
    for turn in range(2):
        for x in tensors.values():
            script.calls.clear()
            x += 1
            assert torch.equal(executor.run({"x": x})["y"], x * 2)
            assert script.calls == ["ordered", "replay"] or (turn == 0 and script.calls[1] == "capture")


def test_a_profile_drops_no_context_of_another() -> None:
    script = Script(more_profiles=(LARGE,))
    executor = executor_of(script)
    small, large = ([torch.from_numpy(rows(count, start)) for start in range(4)] for count in (1, 64))
    for _ in range(3):
        for x in (*small, *large):
            executor.run({"x": x})
    assert script.calls.count("create_execution_context") == script.calls.count("capture") == 8
    executor.run({"x": torch.from_numpy(rows(1, 9))})  # the fifth in its profile
    script.calls.clear()
    for x in (*small[1:], *large):
        executor.run({"x": x})
    assert "create_execution_context" not in script.calls


def test_an_engine_that_cannot_be_captured_is_enqueued() -> None:
    script = Script(capturable=False)
    executor = executor_of(script)
    x = torch.from_numpy(rows(2))
    for _ in range(3):
        assert torch.equal(executor.run({"x": x})["y"], x * 2)
    assert executor.graph_problem == "operation not permitted when stream is capturing"
    assert script.calls.count("capture") == 1


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.zeros(2, 3, dtype=torch.float16), "takes a contiguous torch.float32 tensor on cpu, given torch.float16"),
        (torch.zeros(3, 2).T, "not contiguous"),
        (
            torch.zeros(5, 3),
            "^x=5x3 is outside of the engine's profile, x=1x3:2x3:4x3; build the engine with another --profile$",
        ),
        (torch.zeros(2, 4), "x=2x4 is outside of"),
        (torch.zeros(2, 3, 1), "x=2x3x1 is outside of"),
    ],
)
def test_tensors_that_do_not_match_are_rejected(given: torch.Tensor, message: str) -> None:
    executor = executor_of(Script())
    with pytest.raises(InputError, match=message):
        executor.run({"x": given})
    x = torch.from_numpy(rows(2))
    assert torch.equal(executor.run({"x": x})["y"], x * 2), "a refused input leaves nothing behind"


@pytest.mark.parametrize(
    "script, message",
    [
        (Script(deserializes=False), "cannot load the engine: Serialization assertion failed magic tag does not match"),
        (Script(has_context=False), "cannot create an execution context"),
        (Script(more_profiles=(WIDE,), changes_profile=False), "cannot choose profile 0: it gives no reason"),
        (Script(takes_shape=False), r"TensorRT rejects \(2, 3\) for input 'x': it gives no reason"),
        (Script(runs=False), "failed while running the engine"),
        (Script(output_shape=(-1, 3)), "is data-dependent"),
        (Script(dtype=DataType.FP8), "is FP8, for which PyTorch has no dtype"),
    ],
)
def test_tensorrt_errors_are_one_line(script: Script, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        executor_of(script).run({"x": torch.from_numpy(rows(2))})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("smallest", [1, 2])
def test_the_backend_takes_any_batch(count: int, smallest: int) -> None:
    backend = backend_of(Script(profile=((smallest, 3), (2, 3), (4, 3))))
    assert isinstance(backend, Backend)
    np.testing.assert_array_equal(backend.run({"x": rows(count)})["y"], rows(count) * 2)


@pytest.mark.parametrize(
    "count, runs", [(0, [1]), (1, [1]), (2, [2]), (3, [8]), (8, [8]), (64, [64]), (66, [64, 2]), (131, [64, 64, 8])]
)
def test_batches_between_above_and_within_two_profiles(count: int, runs: list[int]) -> None:
    script = Script(profile=((1, 3), (1, 3), (2, 3)), more_profiles=(LARGE,))
    backend = backend_of(script)
    np.testing.assert_array_equal(backend.run({"x": rows(count)})["y"], rows(count) * 2)
    shapes = [call[2] for call in script.calls if call[0] == "set_input_shape"]
    assert shapes == [(size, 3) for size in dict.fromkeys(runs)], "each shape is set once"
    assert sum(call[0] == "execute_async_v3" for call in script.calls) == len(runs)
    assert backend.describe()["profiles"] == "x=1x3:1x3:2x3; x=8x3:64x3:64x3"


def test_an_input_in_no_profile_is_one_sentence_with_all_of_them() -> None:
    backend = backend_of(Script(shape=(-1, -1), more_profiles=(WIDE,)))
    for width, count in ((3, 1), (8, 6), (5, 2)):
        x = np.ones((count, width), np.float32)
        np.testing.assert_array_equal(backend.run({"x": x})["y"], x * 2)
    message = (
        r"^x=7x9 is outside of the engine's 2 profiles, 0: x=1x3:2x3:4x3; 1: x=1x3:2x8:4x8; build the engine with "
        "another --profile$"
    )
    with pytest.raises(InputError, match=message):
        backend.run({"x": np.zeros((7, 9), np.float32)})


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_an_engine_with_a_fixed_batch_takes_any(count: int) -> None:
    backend = backend_of(Script(shape=(3, 3), profile=((3, 3), (3, 3), (3, 3))))
    assert backend.inputs[0].shape == (None, 3)
    np.testing.assert_array_equal(backend.run({"x": rows(count)})["y"], rows(count) * 2)


def test_arrays_of_one_shape_use_one_buffer_and_so_one_graph() -> None:
    script = Script()
    backend = backend_of(script)
    first = backend.run({"x": rows(2)})["y"]
    for start in range(1, 5):
        np.testing.assert_array_equal(backend.run({"x": rows(2, start)})["y"], rows(2, start) * 2)
    np.testing.assert_array_equal(first, rows(2) * 2)
    assert script.calls.count("create_execution_context") == 1
    assert script.calls.count("replay") == 4


def test_calls_that_overlap_have_buffers_and_graphs_of_their_own() -> None:
    """Streams run each step late; the engine's outputs are overwritten by the next call in a slot, and not before."""
    script, streams = Script(), Late()
    opened = Opened("m.engine", TensorRT("tensorrt", Module(script), "11.4.0"), GPU, "cpu", 1)
    backend = TensorRTBackend(executor_of(script), opened, ModelMetadata(), streams)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda start: backend.run({"x": rows(2, start)})["y"], range(40)))
    assert all(np.array_equal(y, rows(2, start) * 2) for start, y in enumerate(found)) and streams.errors == []
    assert script.calls.count("create_execution_context") <= backend.in_flight
    assert script.calls.count("replay") >= 40 - backend.in_flight
    backend.close()


@pytest.mark.parametrize("dtype, kind", [(DataType.FLOAT, np.float32), (DataType.HALF, np.float16)])
def test_pixels_are_normalized_beside_the_engine(dtype: DataType, kind: type) -> None:
    rule = Preprocess("rgb", mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    script = Script(shape=(-1, 3, 2, 5), profile=((2, 3, 2, 5), (2, 3, 2, 5), (4, 3, 2, 5)), dtype=dtype)
    backend = backend_of(script)
    assert isinstance(backend, PixelBackend) and isinstance(backend, BatchingBackend) and backend.takes_pixels
    for count in (4, 3, 4, 1, 9, 0, 4):  # a batch within the profile's limits, and others
        pixels = np.arange(count * 30, dtype=np.uint8).reshape(count, 2, 5, 3).transpose(0, 3, 1, 2)
        expected = normalize(pixels, rule).astype(kind) * 2
        found = backend.run_pixels(pixels, rule)["y"]
        assert found.dtype == kind
        np.testing.assert_allclose(found, expected, rtol=1e-6 if kind is np.float32 else 2e-3, atol=1e-6)
    assert script.calls.count("replay") >= 2  # batches of equal size have one graph


@pytest.mark.parametrize("dtype, kind", [(DataType.HALF, np.float16), (DataType.BF16, np.uint16)])
def test_half_precision_arrays(dtype: DataType, kind: type) -> None:
    backend = backend_of(Script(dtype=dtype))
    assert backend.inputs[0].dtype == backend.outputs[0].dtype == kind
    x = rows(2).astype(np.float16) if kind is np.float16 else (rows(2).view(np.uint32) >> 16).astype(np.uint16)
    y = backend.run({"x": x})["y"]
    wide = y.astype(np.float32) if kind is np.float16 else (y.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(wide, rows(2) * 2)


def test_the_backend_rejects_wrong_arrays_and_describes_itself() -> None:
    backend = backend_of(Script())
    with pytest.raises(InputError, match=r"takes shape \[\?, 3\], given \[2, 4\]"):
        backend.run({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(InputError, match="takes float32 values, given float64"):
        backend.run({"x": np.zeros((2, 3))})
    assert backend.describe() == {
        "engine": "m.engine",
        "runtime": "TensorRT",
        "version": "11.4.0",
        "device": "cpu, a GPU (sm89)",
        "spatial transformers": "1 by the plugin",
        "CUDA graphs": "yes",
    }
    backend.close()
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        backend.run({"x": rows(1)})


# Requirements on an engine file, all checked before TensorRT is called.
KEY = EngineKey("a", "b", "tensorrt", "11.4.0", GPU.name, GPU.sm, "", (), "float32", ())


def sidecar_of(**change: Any) -> Sidecar:
    return Sidecar(replace(KEY, **change), hashlib.sha256(b"engine").hexdigest(), 6, "m.onnx", "2026", 1.0)


def test_an_engine_built_with_another_plugin_is_rejected() -> None:
    library_or_skip()
    with pytest.raises(ModelError, match="was built with another plugin library"):
        register_plugins("m", sidecar_of(plugin_sha256="0"), TensorRT("tensorrt", None, "11.4.0"), None)


def test_an_engine_whose_plugin_is_missing_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(plugin.ENVIRONMENT, str(tmp_path / "none.so"))
    with pytest.raises(MissingDependencyError, match="the plugin library is not built"):
        register_plugins("m", sidecar_of(plugin_sha256="0"), TensorRT("tensorrt", None, "11.4.0"), None)


def test_engines_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    with pytest.raises(ModelError, match="expected a TensorRT engine"):
        open_engine(path)
    write_engine(path, b"engine", sidecar_of(runtime="tensorrt-rtx"))
    with pytest.raises(
        ModelError, match=r"m\.engine is a tensorrt-rtx engine, not a tensorrt engine; use --backend tensorrt-rtx"
    ):
        open_engine(path)
    path.write_bytes(b"eng")
    with pytest.raises(ModelError, match="3 of 6 bytes: it is truncated"):
        open_engine(path)
    with pytest.raises(UsageError, match="engines run on GPUs"):
        open_engine(path, device="cpu")
    with pytest.raises(UsageError, match="a runtime is one of tensorrt, tensorrt-rtx"):
        open_engine(path, "openvino")


@pytest.mark.parametrize("deserializes", [True, False])
def test_opening_an_engine_and_a_file_that_is_not_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deserializes: bool
) -> None:
    script = Script(deserializes=deserializes)
    monkeypatch.setattr(backend_module, "load_runtime", lambda name: TensorRT(name, Module(script), "11.4.0"))
    monkeypatch.setattr(backend_module, "current_gpu", lambda index: GPU)
    monkeypatch.setattr("stn_infer.backends.tensorrt.cuda_stream.CudaDevice", lambda index: Cuda(script))
    monkeypatch.setattr("stn_infer.backends.slots.CudaStreams", lambda device: Inline())
    path = tmp_path / "m.engine"
    if not deserializes:
        path.write_bytes(plan_of())
        monkeypatch.setenv(plugin.ENVIRONMENT, str(tmp_path / "none.so"))
        with pytest.raises(ModelError, match=r"TensorRT 11\.4\.0 cannot load the engine: Serialization"):
            open_engine(path)
        return
    sidecar = replace(sidecar_of(), fused=("a", "b"), metadata=ModelMetadata(labels=("0", "1")).to_props())
    write_engine(path, b"engine", sidecar)
    backend = open_engine(path, device="cuda")
    assert backend.metadata.labels == ("0", "1")
    assert backend.describe()["spatial transformers"] == "2 by the plugin"
    assert (backend.name, backend.device) == ("tensorrt", "cuda:0")


def test_an_engine_of_another_gpu_and_a_version_compatible_one_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, allowed = Script(), []

    def executor(*arguments: Any, host_code: bool) -> Executor:
        allowed.append(host_code)
        return Executor(*arguments, host_code=host_code)

    monkeypatch.setattr(backend_module, "load_runtime", lambda name: TensorRT(name, Module(script), "11.4.0"))
    monkeypatch.setattr(backend_module, "current_gpu", lambda index: GPU)
    monkeypatch.setattr("stn_infer.backends.tensorrt.cuda_stream.CudaDevice", lambda index: Cuda(script))
    monkeypatch.setattr("stn_infer.backends.slots.CudaStreams", lambda device: Inline())
    monkeypatch.setattr("stn_infer.backends.tensorrt.executor.Executor", executor)
    path = tmp_path / "m.engine"
    write_engine(path, b"engine", sidecar_of(gpu="another"))
    with pytest.warns(DeviceWarning, match=r"m\.engine was built for another \(sm89\), this is a GPU \(sm89\)"):
        open_engine(path)
    write_engine(path, b"engine", sidecar_of(runtime_version="10.3.0", flags=("version-compatible",)))
    open_engine(path)
    assert allowed == [False, True]


def test_a_model_is_built_through_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    script, asked = Script(), []

    def engine_for(model: Path, options: building.BuildOptions, **named: object) -> building.Engine:
        asked.append((model, options))
        return building.Engine(b"engine", sidecar_of(), True, "no engine is cached")

    monkeypatch.setattr(building, "engine_for", engine_for)
    monkeypatch.setattr(backend_module, "load_runtime", lambda name: TensorRT(name, Module(script), "11.4.0"))
    monkeypatch.setattr(backend_module, "current_gpu", lambda index: GPU)
    monkeypatch.setattr("stn_infer.backends.tensorrt.cuda_stream.CudaDevice", lambda index: Cuda(script))
    monkeypatch.setattr("stn_infer.backends.slots.CudaStreams", lambda device: Inline())
    backend = open_tensorrt(Path("m.onnx"), device="cuda:1")
    assert asked == [(Path("m.onnx"), building.BuildOptions(runtime="tensorrt", device=1))]
    assert backend.describe()["engine"] == "m.onnx"


@pytest.mark.gpu
def test_the_real_device_orders_and_captures() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    cuda = CudaDevice(0)
    x = torch.zeros(1 << 20, device=cuda.device)
    y = torch.zeros_like(x)
    for _ in range(3):
        x += 1
        with cuda.ordered():
            assert torch.cuda.current_stream(cuda.device).cuda_stream == cuda.stream != 0
            torch.add(x, 1, out=y)
        assert torch.equal(y, x + 1)
    with cuda.ordered():
        replay = cuda.capture(lambda: torch.mul(x, 3, out=y))
        assert torch.equal(y, x + 1), "captured work has not run"
        replay()
    assert torch.equal(y, x * 3)
    x.fill_(5)
    with cuda.ordered():
        replay()
    assert torch.equal(y, x * 3)
    cuda.synchronize()
