"""Which thread does what next: load batches, run the model on them, finish what it answered.

Decoding small images and encoding rows is Python, which one thread at a time can do: two that try wait for each other
at every system call. Running a model is not. So threads belong to no batch and no step; whoever is free takes what is
most useful of what may run now: finish (one thread at a time), load (one at a time while images are small, for large
ones let go of the interpreter's lock), else run the model. No core waits for another while anything is to do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

Batch = TypeVar("Batch")
Loaded = TypeVar("Loaded", bound="HasCost")
Answered = TypeVar("Answered")


class HasCost(Protocol):
    """What a loaded batch tells the schedule."""

    @property
    def holds_the_lock(self) -> bool:
        """Whether loading it was mostly Python code, so that a second thread would only have stood in the way."""


@dataclass
class Schedule(Generic[Batch, Loaded, Answered]):
    """Takes batches through three steps with a bounded number under way.

    Attributes:
        batches: what is to do; advanced by one thread at a time.
        load: reads and decodes a batch, in any thread.
        infer: runs the model, in at most ``inferring`` threads at once.
        finish: takes what the model answered, in the order of ``batches``, one at a time.
        workers: threads.
        inferring: how many may run the model at once; 1 for a device that is fed by one.
        ahead: how many batches may be loaded, or being loaded, and not yet run.
    """

    batches: Iterator[Batch]
    load: Callable[[Batch], Loaded]
    infer: Callable[[Loaded], Answered]
    finish: Callable[[Batch, Loaded, Answered], None]
    workers: int
    inferring: int
    ahead: int

    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _loaded: deque[tuple[int, Batch, Loaded]] = field(default_factory=deque, init=False)
    _answered: dict[int, tuple[Batch, Loaded, Answered]] = field(default_factory=dict, init=False)
    _dealt: int = field(default=0, init=False)
    _finished: int = field(default=0, init=False)
    _loading: int = field(default=0, init=False)
    _running: int = field(default=0, init=False)
    _ended: int = field(default=0, init=False)
    _in_turn: bool = field(default=False, init=False)  # some thread is loading alone, or finishing
    _alone: bool = field(default=True, init=False)  # loading is for one thread at a time
    _exhausted: bool = field(default=False, init=False)
    _error: BaseException | None = field(default=None, init=False)

    def run(self) -> None:
        """Work until all batches are finished.

        Raises:
            Whatever a step or ``batches`` raises, the first of them; threads have ended by then, and what had not
            begun is dropped. So is it after Ctrl-C.
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
        """Until all have ended. Not by joining them: Python takes a thread for ended when Ctrl-C comes then."""
        with self._changed:
            while self._ended < len(threads):
                self._changed.wait()

    def _work(self) -> None:
        try:
            self._take_steps()
        finally:
            with self._changed:
                self._ended += 1
                self._changed.notify_all()

    def _take_steps(self) -> None:
        while True:
            with self._changed:
                while (step := self._next()) is None:
                    if self._over():
                        return
                    self._changed.wait()
            try:
                step()
            except BaseException as error:
                self._stop(error)

    def _over(self) -> bool:
        nothing_left = self._exhausted and self._finished == self._dealt
        return self._error is not None or nothing_left

    def _stop(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        """What to do now, taken; None where there is nothing. With the lock held."""
        if self._error is not None:
            return None
        if not self._in_turn and self._finished in self._answered:
            self._in_turn = True
            return partial(self._finish, *self._answered.pop(self._finished))
        if not self._exhausted and self._has_room() and not (self._alone and (self._in_turn or self._loading)):
            # the walk over the inputs is for one thread at a time, and short
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
        if self._loaded and self._running < self.inferring:
            self._running += 1
            return partial(self._infer, *self._loaded.popleft())
        return None

    def _has_room(self) -> bool:
        """Whether another batch may be loaded: neither before the model nor behind it is there a heap already."""
        waiting = self._loading + len(self._loaded)
        return waiting < self.ahead and len(self._answered) < self.ahead + self.workers

    def _load(self, number: int, batch: Batch, alone: bool) -> None:
        loaded = self.load(batch)
        with self._changed:
            self._in_turn = self._in_turn and not alone
            self._alone = loaded.holds_the_lock
            self._loading -= 1
            self._loaded.append((number, batch, loaded))
            self._changed.notify_all()

    def _infer(self, number: int, batch: Batch, loaded: Loaded) -> None:
        answered = self.infer(loaded)
        with self._changed:
            self._running -= 1
            self._answered[number] = (batch, loaded, answered)
            self._changed.notify_all()

    def _finish(self, batch: Batch, loaded: Loaded, answered: Answered) -> None:
        self.finish(batch, loaded, answered)
        with self._changed:
            self._in_turn = False
            self._finished += 1
            self._changed.notify_all()
