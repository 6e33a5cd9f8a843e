"""PyTorch's variants: CUDA graphs with stand-ins for its streams, and the compiler that is watched."""

from __future__ import annotations

import contextlib
import types
from typing import Any

import pytest
import torch

from stn_infer.benchmarking.variants import pytorch as torch_variants
from stn_infer.errors import ModelError


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
