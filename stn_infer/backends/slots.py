"""Overlaps the copies to a GPU, the computation and the copies back of calls that come from several threads.

A call takes one of a few slots, each with pinned memory and memory on the device for one batch. It copies its inputs
to pinned memory, and enqueues its three steps on three streams, each of which waits for the step before by an event:

    up       copy 1   copy 2   copy 3
    compute           model 1  model 2  model 3
    down                       copy 1   copy 2   copy 3

The call then waits for its last copy without the interpreter's lock, so that other threads enqueue theirs. Its slot is
free once its outputs are out of it: no buffer is written while a step of an earlier call may read it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from stn_infer.arrays import Array

#: Slots of a backend: one for each step of a batch.
SLOTS = 3
_MOST_SHAPES = 4  # of one buffer, whose memory a slot keeps

Stream = Literal["up", "compute", "down"]


class Streams(Protocol):
    """Three streams of a device; tests implement it without a GPU."""

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of this machine, which copies to and from the device can read and write by themselves."""
        ...

    def memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        ...

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Enqueue what ``work`` launches on a stream."""
        ...

    def record(self, stream: Stream) -> Any:
        """An event after all that has been enqueued on a stream."""
        ...

    def wait(self, stream: Stream, event: Any) -> None:
        """What is enqueued on a stream from now on runs after ``event``."""
        ...

    def synchronize(self, event: Any) -> None:
        """Wait in this thread for ``event``."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` launches on the compute stream, without running it; calling the result launches it.

        What ``work`` allocates is used again by what is captured later: its results must be copied out of it.

        Raises:
            RuntimeError: ``work`` does something that cannot be recorded, such as waiting for the device.
        """
        ...


class CudaStreams:
    """Streams of a GPU; a :class:`Streams`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda: Any = torch.cuda
        self._device = device
        self._streams = {name: self._cuda.Stream(device) for name in ("up", "compute", "down")}
        self._pool = self._cuda.graph_pool_handle()  # graphs run one after the other, in the same memory
        self._cuda.synchronize(device)  # the model's weights are there

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See :class:`Streams`."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See :class:`Streams`."""
        # on a stream of ours: a block of the caller's may still be read by what the caller has enqueued
        with self._cuda.stream(self._streams["up"]):
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        """See :class:`Streams`."""
        with self._cuda.device(self._device), self._cuda.stream(self._streams[stream]):
            work()

    def record(self, stream: Stream) -> Any:
        """See :class:`Streams`."""
        return self._streams[stream].record_event()

    def wait(self, stream: Stream, event: Any) -> None:
        """See :class:`Streams`."""
        self._streams[stream].wait_event(event)

    def synchronize(self, event: Any) -> None:
        """See :class:`Streams`."""
        event.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Streams`."""
        return captured(work, self._streams["compute"], self._pool)

    @property
    def address(self) -> int:
        """The address of the compute stream, for a runtime that is told where to run."""
        return int(self._streams["compute"].cuda_stream)


def captured(work: Callable[[], None], stream: Any, pool: Any = None) -> Callable[[], None]:
    """A CUDA graph of what ``work`` launches on a stream, as a function that launches it.

    Args:
        pool: whose memory ``work`` allocates; None: of a new one.

    Raises:
        RuntimeError: as for :meth:`Streams.capture`.
    """
    graph: Any = torch.cuda.CUDAGraph()
    # other threads of this process allocate and wait meanwhile
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


class Slot:
    """Memory for one batch: buffers by name and shape, of the same address for the same name and shape."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._buffers: dict[str, dict[tuple[Any, ...], Tensor]] = {}

    def pinned(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory."""
        return self._buffer(f"pinned {name}", self._streams.pinned, shape, dtype)

    def memory(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        return self._buffer(f"device {name}", self._streams.memory, shape, dtype)

    def _buffer(
        self, name: str, make: Callable[[Sequence[int], torch.dtype], Tensor], shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        kept, key = self._buffers.setdefault(name, {}), (tuple(shape), dtype)
        if key not in kept and len(kept) >= _MOST_SHAPES:
            kept.pop(next(iter(kept)))  # no step uses it: the slot's last call has ended
        found = kept.pop(key, None)
        kept[key] = make(shape, dtype) if found is None else found  # the last one used is the last one dropped
        return kept[key]


#: Enqueues a model's work on its inputs, in the current stream; its outputs stay until the slot's next call.
Compute = Callable[[Sequence[Tensor], Slot], Sequence[Tensor]]


class Slots:
    """The slots of a backend; threads may share it.

    Args:
        streams: the device's.
        count: the number of slots, and so of calls that are on their way at once.
    """

    def __init__(self, streams: Streams, count: int = SLOTS) -> None:
        self._streams = streams
        self._enqueuing, self._closing = threading.Lock(), threading.Lock()
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()  # calls one after the other use one slot
        self._count = count
        for _ in range(count):
            self._free.put(Slot(streams))

    def run(self, inputs: Sequence[Array], compute: Compute) -> list[Array]:
        """A model's outputs for arrays of any memory layout, in arrays of their own.

        Args:
            inputs: of this machine; bfloat16 as uint16.
            compute: runs the model; one at a time.

        Raises:
            Whatever ``compute`` raises, and RuntimeError of the device.
        """
        slot = self._free.get()
        try:
            return self._run(slot, inputs, compute)
        finally:
            self._free.put(slot)

    def free(self) -> int:
        """The number of slots without a call."""
        return self._free.qsize()

    def close(self, then: Callable[[], None]) -> None:
        """Wait for all calls, release the slots' memory, and call ``then`` before any new call."""
        with self._closing:
            slots = [self._free.get() for _ in range(self._count)]
            try:
                then()
            finally:
                for _ in slots:
                    self._free.put(Slot(self._streams))

    def _run(self, slot: Slot, inputs: Sequence[Array], compute: Compute) -> list[Array]:
        pinned = [_filled(slot, str(index), array) for index, array in enumerate(inputs)]
        given = [slot.memory(str(index), tensor.shape, tensor.dtype) for index, tensor in enumerate(pinned)]
        found: list[Tensor] = []  # on the device
        outputs: list[Tensor] = []  # in pinned memory

        def upload() -> None:
            for target, source in zip(given, pinned, strict=True):
                target.copy_(source, non_blocking=True)

        def download() -> None:
            for index, output in enumerate(found):
                outputs.append(slot.pinned(f"output {index}", output.shape, output.dtype))
                outputs[-1].copy_(output, non_blocking=True)

        try:
            with self._enqueuing:
                self._streams.enqueue("up", upload)
                self._follow("up", "compute")
                self._streams.enqueue("compute", lambda: found.extend(compute(given, slot)))
                self._follow("compute", "down")
                self._streams.enqueue("down", download)
                done = self._streams.record("down")
        except BaseException:
            self._settle()
            raise
        self._streams.synchronize(done)
        return [_array(output) for output in outputs]

    def _follow(self, first: Stream, second: Stream) -> None:
        self._streams.wait(second, self._streams.record(first))

    def _settle(self) -> None:
        """Wait for what was enqueued of a call that failed: it may use the slot's memory."""
        with suppress(RuntimeError):  # the device is broken; the caller has the first error
            for stream in ("up", "compute", "down"):
                self._streams.synchronize(self._streams.record(stream))


def _filled(slot: Slot, name: str, array: Array) -> Tensor:
    """Pinned memory with the values of an array."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = slot.pinned(name, array.shape, dtype)
    np.copyto(tensor.numpy(), array)
    return tensor


def _array(tensor: Tensor) -> Array:
    """A copy of pinned memory; bfloat16 as uint16."""
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
    return array
