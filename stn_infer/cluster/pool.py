"""The actors of a job on a Ray cluster, one for each slot. Each opens the model once and then has one shard at a time.

An actor that is lost is replaced by another one, which Ray starts where and when there is room.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stn_infer.backends.base import Backend
from stn_infer.cluster.worker import Described, Outcome, ShardPredictor, ShardTask
from stn_infer.errors import ClusterError, StnInferError, one_line
from stn_infer.version import __version__

TRIES = 3


@dataclass
class _Slot:
    """An actor, and what it does.

    Attributes:
        actor: its handle.
        shard: the one that it works on; None while it opens the model, or is asked whether it has.
        lost: how many actors in a row were lost here before they had opened the model.
    """

    actor: Any
    shard: int | None = None
    lost: int = 0


class Pool:
    """Actors that predict shards.

    Args:
        ray: connected.
        opener: opens the model on a worker's device; pickled.
        cpus, gpus: what each actor takes.

    Raises:
        ClusterError: the cluster cannot keep the model.
    """

    def __init__(self, ray: Any, opener: Callable[[], Backend], cpus: int, gpus: int) -> None:
        self._ray = ray
        with self._told():
            self._model = ray.put(opener)
        self._kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(ShardPredictor)
        self._busy: dict[Any, _Slot] = {}  # by the reference of the answer
        self._idle: deque[_Slot] = deque()
        self._first: Described | None = None

    def resize(self, count: int) -> None:
        """Start or end actors until there are ``count``, before the job.

        Raises:
            ClusterError: the cluster fails.
        """
        while len(self._busy) + len(self._idle) < count:
            self._start()
        while len(self._busy) + len(self._idle) > count:
            self._end(self._busy.popitem()[1] if self._busy else self._idle.pop())

    def first(self) -> Described:
        """The model as the first actor has it that has opened it.

        Raises:
            StnInferError: it cannot be opened there.
        """
        while self._first is None:
            self._next()
        return self._first

    def answers(
        self, task: ShardTask, queue: deque[int], contents: Mapping[int, bytes]
    ) -> Iterator[tuple[int, Outcome | None]]:
        """Have shards predicted until ``queue`` is empty; the caller may append to it.

        Args:
            task: what all shards have in common.
            queue: the numbers of shards.
            contents: of each shard, as packed.

        Yields:
            The number of a shard and its outcome; None if its process was lost.

        Raises:
            StnInferError: an actor cannot open the model, or has another environment than the first; the cluster fails.
        """
        with self._told():
            common = self._ray.put(task)
        while True:
            while queue and self._idle:
                slot = self._idle.popleft()
                slot.shard = queue.popleft()
                with self._told():
                    self._busy[slot.actor.predict.remote(common, slot.shard, contents[slot.shard])] = slot
            if not queue and all(slot.shard is None for slot in self._busy.values()):
                return
            answer = self._next()
            if answer is not None:
                _, outcome = answer
                if outcome is None or outcome.error:
                    self._ask_idle()
                yield answer

    def close(self) -> None:
        """End all actors."""
        self.resize(0)

    def _start(self, lost: int = 0) -> None:
        with self._told():
            self._ask(_Slot(self._kind.remote(self._model), lost=lost))

    def _ask(self, slot: _Slot) -> None:
        self._busy[slot.actor.ready.remote()] = slot

    def _ask_idle(self) -> None:
        """Ask actors without a shard whether they are alive, before they get one again: a lost one would cost a try."""
        with self._told():
            while self._idle:
                self._ask(self._idle.popleft())

    def _end(self, slot: _Slot) -> None:
        with contextlib.suppress(Exception):  # it, or the cluster, has ended already
            self._ray.kill(slot.actor)

    def _next(self) -> tuple[int, Outcome | None] | None:
        """Wait for an actor. Returns what became of its shard, or None if it had none."""
        with self._told():
            (reference, *_), _ = self._ray.wait(list(self._busy), num_returns=1)
        slot = self._busy.pop(reference)
        shard, slot.shard = slot.shard, None
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._end(slot)
            if shard is None:
                if slot.lost + 1 == TRIES or not _is_loss(error):
                    raise told(error) from error
                self._start(slot.lost + 1)
                return None
            self._start()
            return shard, None
        self._idle.append(slot)
        if shard is None:
            slot.lost = 0
            self._compare(answer)
            return None
        return shard, answer

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A block that raises what Ray raises as :func:`told`."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise told(error) from error

    def _compare(self, described: Described) -> None:
        """Raises ClusterError if an actor's results could differ from the first's."""
        if self._first is None:
            self._first = described
            return
        different = self._first.environment.difference(described.environment, self._first.place, described.place)
        if different:
            raise ClusterError(
                f"a worker would give other results: {different}; install the same versions on all nodes, of one "
                "kind of CPU"
            )


def _is_loss(error: BaseException) -> bool:
    """Whether a process was lost; else it raised an exception, or does not know our package."""
    return getattr(error, "cause", None) is None and "ModuleNotFoundError" not in str(error)


def told(error: BaseException) -> StnInferError:
    """What Ray raised, as an error of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, StnInferError):
        return cause
    text = str(error)
    if "ModuleNotFoundError" in text and "stn_infer" in text:
        return ClusterError(f"a worker cannot import stn_infer; install stn-infer {__version__} on all nodes")
    return ClusterError(f"the cluster failed: {one_line(text)}")
