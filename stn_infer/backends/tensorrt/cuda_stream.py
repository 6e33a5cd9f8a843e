"""A stream on a GPU, and CUDA graphs recorded on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch


class Cuda(Protocol):
    """What the executor needs of a device; tests have one without a GPU."""

    device: torch.device

    @property
    def stream(self) -> int:
        """The address of the stream that everything runs on."""
        ...

    def ordered(self) -> AbstractContextManager[None]:
        """A context on this device: what runs inside comes after the caller's work and before what it does next."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` enqueues, without running it; the result runs it."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream is idle."""
        ...


class CudaDevice:
    """A GPU, by PyTorch."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        self._stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @property
    def stream(self) -> int:
        """The address of the stream: not the default one, where TensorRT would synchronize more than it must."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """See :class:`Cuda`."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Cuda`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def synchronize(self) -> None:
        """See :class:`Cuda`."""
        self._stream.synchronize()
