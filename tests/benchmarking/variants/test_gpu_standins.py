"""What the variants ask of a GPU, with stand-ins for onnxruntime's binding and for PyTorch's streams and graphs."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stn_infer.backends import ort as ort_backend
from stn_infer.backends.base import TensorSpec
from stn_infer.benchmarking.harness.worker import open_gpu, open_runtimes
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.variants import ort as ort_variants
from stn_infer.benchmarking.variants import pytorch as torch_variants
from stn_infer.errors import ModelError


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class GraphSession:
    """A session with CUDA graphs: for each number it keeps what was bound first, and replays that for ever."""

    def __init__(self) -> None:
        self.graphs: dict[str, Any] = {}

    def io_binding(self) -> Any:
        inputs: list[Any] = []
        outputs: list[Any] = []
        return types.SimpleNamespace(
            inputs=inputs,
            outputs=outputs,
            bind_ortvalue_input=lambda name, value: inputs.append(value),
            bind_ortvalue_output=lambda name, value: outputs.append(value),
        )

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"] * 2]

    def run_with_iobinding(self, binding: Any, options: Options) -> None:
        kept = self.graphs.setdefault(options.entries.get("gpu_graph_id", "0"), binding)
        kept.outputs[0].array[...] = kept.inputs[0].array * 2


class Value:
    def __init__(self, array: Any) -> None:
        self.array = np.array(array)

    def numpy(self) -> Any:
        return self.array

    def update_inplace(self, array: Any) -> None:
        self.array[...] = array


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ort_variants.OrtRunner:
    import onnxruntime

    values = types.SimpleNamespace(
        ortvalue_from_numpy=lambda array, kind, index: Value(array),
        ortvalue_from_shape_and_type=lambda shape, dtype, kind, index: Value(np.zeros(shape, dtype)),
    )
    monkeypatch.setattr(onnxruntime, "OrtValue", values)
    monkeypatch.setattr(onnxruntime, "RunOptions", Options)
    session = GraphSession()
    spec = TensorSpec("x", (None, 3), np.dtype(np.float32))
    backend = types.SimpleNamespace(inputs=(spec,), outputs=(spec,), session=session, close=lambda: None)
    monkeypatch.setattr(ort_variants, "OrtBackend", lambda *given, **named: backend)
    monkeypatch.setattr(ort_variants, "onnx_file", lambda name, prepared: "model.onnx")
    return ort_variants.OrtRunner("ort-graph", types.SimpleNamespace(cuts=()), "cuda:0", 1, Method())  # type: ignore[arg-type]


def test_each_binding_has_a_cuda_graph_of_its_own(runner: ort_variants.OrtRunner) -> None:
    """onnxruntime replays the graph of a number whatever is bound: with one number, the first batch's outputs."""
    small, large = (np.full((count, 3), count, np.float32) for count in (1, 2))
    for array in (small, large):
        bound = runner.bind([array])
        for _ in range(2):
            np.testing.assert_array_equal(bound.outputs()[0], array * 2)
        assert not bound.concurrent and "bound" in bound.alone
    assert set(runner.backend.session.graphs) == {"1", "2"}  # 0 is onnxruntime's own


def test_a_graph_is_captured_on_the_stream_that_was_warmed_up_of_the_device_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[object] = []

    class Stream:
        def __init__(self, device: str) -> None:
            self.device = device

        def wait_stream(self, other: object) -> None:
            order.append("wait")

    @contextlib.contextmanager
    def noted(what: str) -> Any:
        order.append(what)
        yield
        order.append(f"end of {what}")

    captured: dict[str, Any] = {}

    def graph(it: object, **named: Any) -> Any:
        captured.update(named)
        return noted("capture")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
    monkeypatch.setattr(torch.cuda, "device", lambda device: noted(device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: noted("side"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: types.SimpleNamespace(replay=lambda: order.append("replay")))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    given = types.SimpleNamespace(device="cuda:1", run=lambda tensors: order.append("run") or ["output"])
    replay, outputs = torch_variants._capture(given, [])  # type: ignore[arg-type]
    assert order == [
        "cuda:1", "wait", "side", "run", "run", "run", "end of side", "wait",
        "capture", "run", "end of capture", "end of cuda:1",
    ]  # fmt: skip
    assert outputs == ["output"] and captured["stream"].device == "cuda:1"
    assert captured["capture_error_mode"] == "thread_local"
    replay()
    assert order[-1] == "replay"

    def fails(it: object, **named: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    with pytest.raises(ModelError, match="cannot be captured in a CUDA graph: operation not permitted"):
        torch_variants._capture(given, [])  # type: ignore[arg-type]


def test_a_worker_opens_what_variants_need_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.benchmarking.harness import worker

    found: list[str] = []
    monkeypatch.setattr(worker.importlib, "import_module", found.append)
    open_runtimes(("ort", "eager", "compile-fused"))
    assert found == ["onnxruntime", "torch", "torch._inductor.compile_fx"]
    found.clear()
    open_runtimes(("ort-plain",))
    assert found == ["onnxruntime"]
    found.clear()
    open_runtimes(("trt", "trt-rtx"), "cpu")
    assert found == ["torch"]  # TensorRT has nothing to do on a CPU
    found.clear()
    preloaded: list[object] = []
    monkeypatch.setattr(ort_backend, "preload_cuda", preloaded.append)
    open_runtimes(("trt-fused", "trt-rtx", "ort"), "cuda:0")
    assert found == ["onnxruntime", "torch", "tensorrt", "tensorrt_rtx"] and len(preloaded) == 1
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device))
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    open_gpu("cuda:1")
    assert asked == ["cuda:1"] * 3
    monkeypatch.undo()
    if not torch.cuda.is_available():
        open_gpu("cuda:0")  # a PyTorch without CUDA: the variants say so themselves


def test_the_compiler_may_not_give_up_on_a_batch_size() -> None:
    compiler = torch_variants.Compiler(20)
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    assert config.recompile_limit >= 42 and config.fail_on_recompile_limit_hit

    def call() -> str:
        counters["inductor"]["fxgraph_cache_miss"] += 2
        counters["graph_break"]["why"] += 1
        return "done"

    assert compiler.watch(call) == "done"
    assert compiler.describe() == {
        "compiler": "2 compiled, 0 from its cache",
        "graph breaks": "1: parts of the model run eagerly",
    }
    compiler.close()
    assert not config.fail_on_recompile_limit_hit
    counters["inductor"]["fxgraph_cache_miss"] -= 2
    counters["graph_break"].clear()
