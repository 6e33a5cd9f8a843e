"""Timing on a GPU: events around each call, pinned copies, the level-2 cache flushed where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stn_infer.arrays import Array


class EventTimer:
    """Times calls by events on the current stream.

    Args:
        device: ``cuda:N``.
        flush: whether to overwrite twice the level-2 cache before each call, outside its events.
        stream: a PyTorch stream that the calls run on; None: the current one.
    """

    def __init__(self, device: str, flush: bool, stream: Any = None) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._stream = stream
        self._filler: Any = None
        if flush:
            size = int(torch.cuda.get_device_properties(self._device).L2_cache_size)
            self._filler = torch.empty(2 * size, dtype=torch.uint8, device=self._device)

    def burst(self, call: Callable[[], object], count: int) -> list[float]:
        """Times of ``count`` calls, each enqueued after the one before, milliseconds on the device."""
        torch = self._torch
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for start, end in pairs:
                if self._filler is not None:
                    self._filler.zero_()
                start.record()
                call()
                end.record()
            torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) for start, end in pairs]


class Staging:
    """Inputs in pinned memory, and pinned memory for outputs: copies at the full speed of the bus."""

    def __init__(self, inputs: Sequence[Any], device: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._host = [tensor.pin_memory() for tensor in inputs]
        self.resident = [tensor.to(self._device) for tensor in self._host]
        self._outputs: list[Any] = []

    def upload(self) -> list[Any]:
        """Enqueue the copies to the tensors of ``resident``, and give these."""
        for tensor, host in zip(self.resident, self._host, strict=True):
            tensor.copy_(host, non_blocking=True)
        return self.resident

    def download(self, outputs: Sequence[Any]) -> list[Any]:
        """Copy outputs to pinned memory, and wait for that."""
        if not self._outputs:
            self._outputs = [self._torch.empty(it.shape, dtype=it.dtype, pin_memory=True) for it in outputs]
        for host, output in zip(self._outputs, outputs, strict=True):
            host.copy_(output, non_blocking=True)
        self._torch.cuda.synchronize(self._device)
        return self._outputs


def require_gpu(device: str) -> None:
    """Raise MissingDependencyError unless this PyTorch can use ``device``, ``cuda:N``."""
    import torch

    from stn_infer.backends.device import Device
    from stn_infer.backends.eager import require_cuda

    require_cuda(torch, Device.parse(device))


def as_arrays(tensors: Sequence[Any]) -> list[Array]:
    """Tensors of any type and place as arrays in main memory; half types as float32."""
    import torch

    half = (torch.float16, torch.bfloat16)
    return [np.array((it.float() if it.dtype in half else it).detach().cpu().numpy()) for it in tensors]
