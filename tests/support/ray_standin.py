"""The part of Ray that ``run --ray`` uses, in this process: for tests of what becomes of workers' answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class RayError(Exception):
    """As in ``ray.exceptions``; ``cause`` is what a task raised."""

    def __init__(self, text: str, cause: BaseException | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class Lost(RayError):
    """As ``ActorDiedError``: the process of an actor ended."""


@dataclass
class StandIn:
    """Settings and records.

    Attributes:
        resources: of each node.
        lost: whether the process of a shard ends without an answer, by its number and the try, from 1.
        late: whether it ends after it has written the shard.
        dead: whether the process of an actor ends before it has opened the model, by its number, from 0.
        gone: the actors whose processes ended while they had nothing to do.
        tries: the number of tries of each shard.
        actors: the number of actors that were started.
        ended: the actors that were ended.
    """

    resources: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 2.0}])
    lost: Callable[[int, int], bool] = lambda shard, attempt: False
    late: bool = False
    dead: Callable[[int], bool] = lambda actor: False
    gone: set[int] = field(default_factory=set)
    tries: dict[int, int] = field(default_factory=dict)
    actors: int = 0
    ended: set[int] = field(default_factory=set)


class _Reference:
    """The answer of a call, which is made when it is asked for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call


class _Actor:
    """The handle of an object of ``kind``."""

    def __init__(self, standin: StandIn, kind: type, given: tuple[Any, ...]) -> None:
        self.number, self.standin = standin.actors, standin
        standin.actors += 1
        self.instance = kind(*given)
        self.ready = SimpleNamespace(remote=lambda: _Reference(self._ready))
        self.predict = SimpleNamespace(remote=lambda *given: _Reference(lambda: self._predict(*given)))

    def _ready(self) -> Any:
        if self.standin.dead(self.number) or self.number in self.standin.gone:
            raise Lost("the actor died")
        try:
            return self.instance.ready()
        except Exception as error:
            raise RayError("a task failed", error) from error

    def _predict(self, task: Any, shard: int, content: bytes) -> Any:
        if self.number in self.standin.gone:
            raise Lost("the actor died")
        tries = self.standin.tries
        tries[shard] = tries.get(shard, 0) + 1
        if self.standin.lost(shard, tries[shard]):
            if self.standin.late:
                self.instance.predict(task, shard, content)
            raise Lost("the actor died")
        return self.instance.predict(task, shard, content)


def install(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Let ``import ray`` find a stand-in, which is connected."""
    standin = StandIn()

    def remote(**options: Any) -> Callable[[type], Any]:
        assert options["max_restarts"] == options["max_task_retries"] == 0
        return lambda kind: SimpleNamespace(remote=lambda *given: _Actor(standin, kind, given))

    ray = ModuleType("ray")
    contents: Mapping[str, Any] = {
        "exceptions": SimpleNamespace(RayError=RayError),
        "is_initialized": lambda: True,
        "shutdown": lambda: None,
        "put": lambda value: value,
        "get": lambda reference: reference.call(),
        "wait": lambda references, num_returns: (references[:1], references[1:]),
        "kill": lambda actor: standin.ended.add(actor.number),
        "remote": remote,
        "nodes": lambda: [{"Alive": True, "Resources": each} for each in standin.resources],
    }
    for name, value in contents.items():
        setattr(ray, name, value)
    private, worker = ModuleType("ray._private"), ModuleType("ray._private.worker")
    ray._private, private.worker = private, worker
    for module in (ray, private, worker):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return standin
