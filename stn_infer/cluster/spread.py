"""Spreads the shards of a job over a Ray cluster. A shard is the unit of work and of retry.

Ray Data is not used for it. It would try a shard that ends its process for ever, or count a restart against the other
shards of a worker; its executor, statistics and autoscaling took a tenth of a core, and left a worker without work
between two shards.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stn_infer import errors
from stn_infer.backends.base import Backend
from stn_infer.cluster.pool import TRIES, Pool
from stn_infer.cluster.session import slots
from stn_infer.cluster.worker import Described, Outcome, ShardTask, is_relative, packed, unpacked
from stn_infer.data.inputs import Sample
from stn_infer.errors import ClusterError, StnInferError
from stn_infer.pipeline.plan import RunOptions
from stn_infer.pipeline.shards import Writer
from stn_infer.version import __version__

_EARLY = 16  # workers that open the model before the number of shards is known
_LOST = f"the process that predicted its shard ended {TRIES} times without an answer (out of memory, or a crash)"


@dataclass(frozen=True)
class Shards:
    """The predictor of shards on a cluster, with a model that a worker has opened.

    Attributes:
        pool: the workers.
        options: the job's.
        workers: the largest number of workers.
        cpus: what each takes, and the number of its threads.
        described: the model as the first worker has it.
    """

    pool: Pool
    options: RunOptions
    workers: int
    cpus: int
    described: Described

    @classmethod
    def open(cls, ray: Any, opener: Callable[[], Backend], options: RunOptions, device: str) -> Shards:
        """Have workers open a model; the first one shows what it takes and gives.

        Raises:
            ClusterError: there is no room for a worker, or no node can run the package.
            StnInferError: the model cannot be opened there.
        """
        gpus = 1 if device.startswith("cuda") else 0
        workers, cpus = slots(ray, options.workers, gpus)
        pool = Pool(ray, opener, cpus, gpus)
        try:
            pool.resize(min(workers, _EARLY))
            described = pool.first()
            if described.environment.stn_infer != __version__:
                raise ClusterError(
                    f"stn-infer is {described.environment.stn_infer} on the worker {described.place}, and "
                    f"{__version__} here; install the same version on all nodes"
                )
        except BaseException:
            pool.close()
            raise
        return cls(pool, options, workers, cpus, described)

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def __call__(self, writer: Writer, shards: Iterator[tuple[int, tuple[Sample, ...]]]) -> None:
        """Have shards predicted and written, and count them; see :class:`~stn_infer.pipeline.inference.Spread`.

        Raises:
            StnInferError: a worker cannot work on the job, or the same error ended every shard.
        """
        directory = ""
        missing: dict[int, bytes] = {}
        for shard, samples in shards:
            missing[shard] = packed(samples)
            directory = directory or (os.getcwd() if any(map(is_relative, samples)) else "")
        path = writer.folder.path
        task = ShardTask(
            options=self.options,
            threads=self.cpus,
            output=path if isinstance(path, str) else os.path.abspath(path),
            job=writer.folder.job,
            directory=directory,
        )
        failed: dict[int, Outcome] = {}
        tries: Counter[int] = Counter()
        total = len(missing)
        queue = deque(missing)
        self.pool.resize(min(self.workers, total))
        for shard, outcome in self.pool.answers(task, queue, missing):
            if outcome is not None and outcome.refused:
                raise _error(outcome)
            if outcome is not None and not outcome.error:
                del missing[shard]
                failed.pop(shard, None)
                writer.take_shard(shard)
                continue
            if outcome is not None:
                failed[shard] = outcome
            tries[shard] += 1
            if tries[shard] < TRIES:
                queue.append(shard)
        if failed and len(failed) == total and len({(each.error, each.text) for each in failed.values()}) == 1:
            raise _error(next(iter(failed.values())))  # no shard, so it is not their inputs
        for shard, content in missing.items():
            if writer.folder.is_done(shard):  # and its answer was lost
                writer.take_shard(shard)
            else:
                reason = f"its shard failed {TRIES} times: {failed[shard].text}" if shard in failed else _LOST
                writer.fail_shard(shard, unpacked(content)[0], reason)


def _error(outcome: Outcome) -> StnInferError:
    kind = getattr(errors, outcome.error, ClusterError)
    found: StnInferError = kind(outcome.text)
    return found
