"""A thread pool for three steps per batch: load it, run the model on it, finish (encode) the outputs.

Finishing a batch may give a fourth step, which writes a file: the disk is slow, and other steps run meanwhile.

Decoding small images and encoding rows is Python code that holds the GIL, so concurrent threads slow each other down;
running a model releases the GIL. Therefore threads are not bound to a batch or a step. A free thread takes the first
step that may run now: write, finish (one thread at a time), load (one thread at a time for small images; decoding
large images releases the GIL), else run the model. No thread is idle while a step may run, with one exception: where
loading holds the GIL and the model answers at once, one thread takes all steps, because every change of threads would
cost more than it gains.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

# A model is quick if it answers sooner than another thread could be woken up and get hold of the GIL.
QUICK_SECONDS = 0.0005

Batch = TypeVar("Batch")
Loaded = TypeVar("Loaded", bound="HasCost")
Answered = TypeVar("Answered")


class HasCost(Protocol):
    """A loaded batch, as the schedule needs it."""

    @property
    def holds_the_lock(self) -> bool:
        """Whether loading held the GIL most of the time, so that a second loading thread would not help."""


@dataclass
class Schedule(Generic[Batch, Loaded, Answered]):
    """Runs three steps on each batch, with a bounded number of batches in flight.

    Attributes:
        batches: the batches; advanced by one thread at a time.
        load: reads and decodes a batch, in any thread.
        infer: runs the model, in at most ``inferring`` threads at once.
        finish: takes the model's outputs, in the order of ``batches``, one at a time. What it returns is called next,
            in order and one at a time: a write that may run beside other steps.
        workers: the number of threads.
        inferring: the largest number of threads that run the model at once; 1 on a GPU.
        ahead: the largest number of batches that are loaded or being loaded, and not yet run.
    """

    batches: Iterator[Batch]
    load: Callable[[Batch], Loaded]
    infer: Callable[[Loaded], Answered]
    finish: Callable[[Batch, Loaded, Answered], Callable[[], None] | None]
    workers: int
    inferring: int
    ahead: int

    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _changed: threading.Condition = field(init=False)  # a step may run
    _left: threading.Condition = field(init=False)  # a thread has ended
    _loaded: deque[tuple[int, Batch, Loaded]] = field(default_factory=deque, init=False)
    _answered: dict[int, tuple[Batch, Loaded, Answered]] = field(default_factory=dict, init=False)
    _dealt: int = field(default=0, init=False)
    _finished: int = field(default=0, init=False)
    _loading: int = field(default=0, init=False)
    _running: int = field(default=0, init=False)
    _ended: int = field(default=0, init=False)
    _in_turn: bool = field(default=False, init=False)  # a thread is loading exclusively, or finishing
    _alone: bool = field(default=True, init=False)  # only one thread may load at a time
    _quick: bool = field(default=False, init=False)  # the model answered the last batch at once
    _writes: deque[Callable[[], None]] = field(default_factory=deque, init=False)
    _writing: bool = field(default=False, init=False)
    _exhausted: bool = field(default=False, init=False)
    _error: BaseException | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._changed, self._left = threading.Condition(self._lock), threading.Condition(self._lock)

    def run(self) -> None:
        """Run until all batches are finished.

        Raises:
            The first exception from a step or ``batches``, or KeyboardInterrupt. It is raised after all threads have
            ended. No batch is loaded or run after it; those before it that the model has answered are finished.
        """
        threads = [threading.Thread(target=self._work, name=f"stn-worker-{i}") for i in range(self.workers)]
        try:
            for thread in threads:
                thread.start()
            self._wait(threads)
        except BaseException as error:
            self._stop(error)
            self._wait([thread for thread in threads if thread.ident is not None])
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if self._error is not None:
            raise self._error

    def _wait(self, threads: list[threading.Thread]) -> None:
        """Wait until all threads have ended. Ctrl-C during ``join`` would mark a running thread as ended."""
        with self._lock:
            while self._ended < len(threads):
                self._left.wait()

    def _work(self) -> None:
        try:
            self._take_steps()
        finally:
            with self._lock:
                self._ended += 1
                self._left.notify_all()
                self._changed.notify_all()

    def _take_steps(self) -> None:
        while True:
            with self._lock:
                while (step := self._next()) is None:
                    if self._over():
                        return
                    self._changed.wait()
                # Whoever changes the state takes the next step, and wakes another thread only if there is one more.
                if self._may_help():
                    self._changed.notify()
            try:
                step()
            except BaseException as error:
                self._stop(error)

    def _over(self) -> bool:
        nothing_left = self._error is not None or (self._exhausted and self._finished == self._dealt)
        return nothing_left and not self._writes and not self._writing

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        """Takes the next step; None if no step may run now. The caller holds the lock."""
        if self._may_write():
            self._writing = True
            return partial(self._write, self._writes.popleft())
        if self._may_finish():
            self._in_turn = True
            return partial(self._finish, *self._answered.pop(self._finished))
        if self._error is not None:
            return None
        if self._may_load():
            # advancing ``batches`` is quick, and the lock makes it exclusive
            try:
                batch = next(self.batches)
            except StopIteration:
                self._exhausted = True
                self._changed.notify_all()
            except BaseException as error:
                self._error = error
                self._changed.notify_all()
                return None
            else:
                self._in_turn = self._in_turn or self._alone
                self._loading += 1
                self._dealt += 1
                return partial(self._load, self._dealt - 1, batch, self._alone)
        if self._may_infer():
            self._running += 1
            return partial(self._infer, *self._loaded.popleft())
        return None

    def _may_help(self) -> bool:
        """Whether another thread can take a step that is worth waking it for."""
        if self._may_write():
            return True
        if self._quick and self._alone and not self._writing:
            return False
        return self._may_finish() or self._may_load() or self._may_infer()

    def _may_write(self) -> bool:
        return bool(self._writes) and not self._writing

    def _may_finish(self) -> bool:
        """Whether the next batch has been answered; the outputs of at most two files are held at once."""
        return not self._in_turn and not self._writes and self._finished in self._answered

    def _may_load(self) -> bool:
        """Whether another batch may be loaded: the queues before and after the model are not full."""
        waiting = self._loading + len(self._loaded)
        room = waiting < self.ahead and len(self._answered) < self.ahead + self.workers
        return room and not self._exhausted and not (self._alone and (self._in_turn or self._loading))

    def _may_infer(self) -> bool:
        return bool(self._loaded) and self._running < self.inferring

    def _load(self, number: int, batch: Batch, alone: bool) -> None:
        loaded = self.load(batch)
        with self._lock:
            self._in_turn = self._in_turn and not alone
            self._alone = loaded.holds_the_lock
            self._loading -= 1
            self._loaded.append((number, batch, loaded))

    def _infer(self, number: int, batch: Batch, loaded: Loaded) -> None:
        start = time.perf_counter()
        answered = self.infer(loaded)
        quick = time.perf_counter() - start < QUICK_SECONDS
        with self._lock:
            self._running -= 1
            self._quick = quick
            self._answered[number] = (batch, loaded, answered)

    def _finish(self, batch: Batch, loaded: Loaded, answered: Answered) -> None:
        write = self.finish(batch, loaded, answered)
        with self._lock:
            self._in_turn = False
            self._finished += 1
            if write is not None:
                self._writes.append(write)

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException:
            with self._lock:
                self._writes.clear()
            raise
        finally:
            with self._lock:
                self._writing = False
