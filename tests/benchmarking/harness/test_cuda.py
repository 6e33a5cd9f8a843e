"""The order of CUDA events, and copies to a device and back, with stand-ins for CUDA."""

from __future__ import annotations

import contextlib
import types

import numpy as np
import pytest
import torch

from stn_infer.benchmarking.harness.cuda import EventTimer, Staging
from tests.support.streams_standin import Late


def test_events_surround_each_call_and_the_cache_is_flushed_outside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0

        def record(self) -> None:
            order.append("event")
            self.at = len(order)

        def elapsed_time(self, end: Event) -> float:
            return float(end.at - self.at)

    nothing = contextlib.nullcontext()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nothing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nothing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    timer = EventTimer("cuda:0", flush=False)
    timer._filler = types.SimpleNamespace(zero_=lambda: order.append("flush"))
    assert timer.burst(lambda: order.append("call"), 2) == [2.0, 2.0]
    assert order == ["flush", "event", "call", "event"] * 2 + ["wait"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_call_at_the_host_boundary_is_one_of_run(dtype: torch.dtype) -> None:
    streams = Late(seconds=0.005)
    staging = Staging([torch.arange(6).to(dtype), torch.ones(2, dtype=torch.int64)], "cuda:0", streams)
    first, second = staging.resident
    assert first.dtype == dtype and first.tolist() == [0, 1, 2, 3, 4, 5] and second.tolist() == [1, 1]
    static = torch.empty_like(first)  # as a CUDA graph writes its outputs

    def compute() -> list[torch.Tensor]:
        torch.mul(first, 2, out=static)
        first.zero_()  # a model may use its input's memory; the next call copies it again
        return [static, second + 1]

    for _ in range(3):
        doubled, more = staging.outputs(compute)
        assert doubled.dtype == np.float32 and doubled.tolist() == [0, 2, 4, 6, 8, 10] and more.tolist() == [2, 2]
    raw = staging.call(compute)[0]
    assert raw.dtype == {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}[dtype]
    assert staging.resident[0] is first and streams.errors == []
