"""The part of Ray that ``run --ray`` uses, in this process: for tests of what becomes of workers' answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


class RayError(Exception):
    """As in ``ray.exceptions``; ``cause`` is what a task raised."""

    def __init__(self, text: str, cause: BaseException | None = None) -> None:
        super().__init__(text)
        self.cause = cause


@dataclass
class StandIn:
    """Settings and records.

    Attributes:
        resources: of each node.
        lost: whether the process of a shard ends without an answer, by its number and the try, from 1.
        tries: the number of tries of each shard.
    """

    resources: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 2.0}])
    lost: Callable[[int, int], bool] = lambda shard, attempt: False
    tries: dict[int, int] = field(default_factory=dict)

    def rows(self, worker: Any, shards: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in shards:
            shard = row["shard"]
            self.tries[shard] = self.tries.get(shard, 0) + 1
            if not self.lost(shard, self.tries[shard]):
                found = worker({name: np.array([value], object) for name, value in row.items()})
                yield {name: values[0] for name, values in found.items()}


def install(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Let ``import ray`` find a stand-in, which is connected."""
    standin = StandIn()

    class Dataset:
        def __init__(self, shards: list[dict[str, Any]]) -> None:
            self.context, self.shards, self.worker = SimpleNamespace(), shards, None

        def map_batches(self, kind: Any, *, fn_constructor_args: tuple[Any, ...], **options: Any) -> Dataset:
            assert options["batch_size"] == 1 and options["max_task_retries"] == 0
            self.worker = kind(*fn_constructor_args)
            return self

        def iter_rows(self) -> Iterator[dict[str, Any]]:
            assert self.context.max_errored_blocks == -1
            return standin.rows(self.worker, self.shards)

    def remote(**options: Any) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(remote=lambda *given: (function, given))

    def get(reference: Any) -> Any:
        if not isinstance(reference, tuple):
            return reference
        function, given = reference
        try:
            return function(*given)
        except Exception as error:
            raise RayError("a task failed", error) from error

    data = ModuleType("ray.data")
    data.from_items = lambda items, override_num_blocks: Dataset(list(items))
    data.ActorPoolStrategy = lambda **options: options
    ray = ModuleType("ray")
    contents: Mapping[str, Any] = {
        "data": data,
        "exceptions": SimpleNamespace(RayError=RayError),
        "is_initialized": lambda: True,
        "shutdown": lambda: None,
        "put": lambda value: value,
        "get": get,
        "remote": remote,
        "nodes": lambda: [{"Alive": True, "Resources": each} for each in standin.resources],
    }
    for name, value in contents.items():
        setattr(ray, name, value)
    private, worker = ModuleType("ray._private"), ModuleType("ray._private.worker")
    ray._private, private.worker = private, worker
    for module in (ray, data, private, worker):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return standin
