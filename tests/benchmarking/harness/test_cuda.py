"""The order of CUDA events, with stand-ins for CUDA."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from stn_infer.benchmarking.harness.cuda import EventTimer


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
