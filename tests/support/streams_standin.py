"""Streams of a device without one, to test in which order work on them runs."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stn_infer.backends.slots import Stream


class _Recorder(TorchDispatchMode):
    """Records operators with the tensors they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            raise RuntimeError("operation not permitted when stream is capturing\nand a second line")
        found = func(*args, **(kwargs or {}))
        made = [it for it in tree_leaves(found) if isinstance(it, Tensor)]
        self.steps.append((func, args, kwargs or {}, made))
        return found

    def replay(self) -> None:
        """Run the operators again, from and into the same memory."""
        with torch.inference_mode():
            for func, args, kwargs, made in self.steps:
                again = [it for it in tree_leaves(func(*args, **kwargs)) if isinstance(it, Tensor)]
                for target, value in zip(made, again, strict=True):
                    if target.data_ptr() != value.data_ptr():
                        target.copy_(value)


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph without CUDA: the operators of ``work``, which a replay runs on the memory that they had."""
    recorder = _Recorder()
    with recorder, torch.inference_mode():
        work()
    for _, _, _, made in recorder.steps[-1:]:  # what is only recorded computes nothing
        for tensor in made:
            tensor.fill_(77)
    return recorder.replay


class Inline:
    """Work runs when it is enqueued; a :class:`stn_infer.backends.slots.Streams`."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []  # shapes of the memory that was handed out

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.memory(shape, dtype)

    def memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.made.append(tuple(shape))
        return torch.full(tuple(shape), 77, dtype=dtype)

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        work()

    def record(self, stream: Stream) -> None:
        return None

    def wait(self, stream: Stream, event: None) -> None:
        pass

    def synchronize(self, event: None) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return recorded(work)


class Late:
    """Each stream is a thread that runs its work some time after it was enqueued, in any order that events allow.

    Args:
        ignored: ``wait`` or ``synchronize``, to see what goes wrong without it.
    """

    def __init__(self, ignored: Collection[str] = (), seed: int = 0, seconds: float = 0.002) -> None:
        self._ignored, self._random, self._seconds = ignored, random.Random(seed), seconds
        self._queues: dict[str, queue.Queue[Callable[[], object]]] = {}
        self.errors: list[BaseException] = []
        for name in ("up", "compute", "down"):
            self._queues[name] = queue.Queue()
            threading.Thread(target=self._work, args=(self._queues[name],), daemon=True).start()

    def _work(self, steps: queue.Queue[Callable[[], object]]) -> None:
        while True:
            step = steps.get()
            time.sleep(self._random.random() * self._seconds)
            try:
                step()
            except BaseException as error:
                self.errors.append(error)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), 77, dtype=dtype)

    memory = pinned

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        self._queues[stream].put(work)

    def record(self, stream: Stream) -> threading.Event:
        event = threading.Event()
        self._queues[stream].put(event.set)
        return event

    def wait(self, stream: Stream, event: threading.Event) -> None:
        if "wait" not in self._ignored:
            self._queues[stream].put(lambda: event.wait(60))

    def synchronize(self, event: threading.Event) -> None:
        if "synchronize" not in self._ignored:
            assert event.wait(60)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return recorded(work)
