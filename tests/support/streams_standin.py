"""Streams of a device without one, to test in which order work on them runs."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from stn_infer.backends.slots import Stream


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
