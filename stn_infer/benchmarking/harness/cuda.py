"""Timing on a GPU: events around each call, copies as `run` makes them, the level-2 cache flushed on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.arrays import Array

if TYPE_CHECKING:
    from stn_infer.backends.slots import Streams


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
    """Inputs in main memory, which go to a GPU, and outputs back, by the code that `run` uses (``backends/slots.py``).

    Args:
        inputs: tensors in main memory.
        device: ``cuda:N``.
        streams: of the device; None: a GPU's.
    """

    def __init__(self, inputs: Sequence[Any], device: str, streams: Streams | None = None) -> None:
        import torch

        from stn_infer.backends.slots import CudaStreams, Slots

        self._slots = Slots(streams or CudaStreams(torch.device(device)), count=1)
        half = torch.bfloat16
        self._arrays: list[Array] = [(it.view(torch.uint16) if it.dtype == half else it).numpy() for it in inputs]
        self._dtypes = [tensor.dtype for tensor in inputs]
        self.resident: list[Any] = []
        """The inputs on the device; calls overwrite them in place."""
        self._slots.run(self._arrays, self._keep)

    def _keep(self, given: Sequence[Any], slot: object) -> list[Any]:
        self.resident = [tensor.view(dtype) for tensor, dtype in zip(given, self._dtypes, strict=True)]
        return []

    def call(self, compute: Callable[[], Sequence[Any]]) -> list[Array]:
        """The outputs of ``compute``, which reads ``resident``, as arrays; bfloat16 as uint16."""
        return self._slots.run(self._arrays, lambda given, slot: compute())

    def outputs(self, compute: Callable[[], Sequence[Any]]) -> list[Array]:
        """:meth:`call` with half types as float32."""
        import torch

        dtypes: list[Any] = []

        def noted() -> Sequence[Any]:
            found = compute()
            dtypes.extend(tensor.dtype for tensor in found)
            return found

        arrays = self.call(noted)
        return as_arrays([torch.from_numpy(array).view(dtype) for array, dtype in zip(arrays, dtypes, strict=True)])


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
