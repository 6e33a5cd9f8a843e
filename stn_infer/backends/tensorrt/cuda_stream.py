"""A stream on a GPU, and CUDA graphs recorded on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from stn_infer.backends.slots import captured


class Cuda(Protocol):
    """The executor's interface to a device; tests implement it without a GPU."""

    device: torch.device

    @property
    def stream(self) -> int:
        """The address of the stream on which all work runs."""
        ...

    def ordered(self) -> AbstractContextManager[None]:
        """A context on this device: its work runs after the caller's previous work and before its next work."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` enqueues, without running it; calling the result runs it."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream is idle."""
        ...


class CudaDevice:
    """A GPU, through PyTorch."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        self._stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @property
    def stream(self) -> int:
        """The address of the stream; not the default stream, on which TensorRT adds synchronizations."""
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
        return captured(work, self._stream)

    def synchronize(self) -> None:
        """See :class:`Cuda`."""
        self._stream.synchronize()
