"""Spreads the shards of a job over a Ray cluster. A shard is the unit of work and of retry.

Ray Data would try a shard that ends its process for ever, or count a restart against the other shards of a worker, and
end the job with the first exception. So each try of a shard is a pass of its own over those that are missing: a worker
has one shard at a time, is started again without limit, as is Ray Data's default, and its task is not retried by Ray.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from stn_infer import errors
from stn_infer.backends.base import Backend
from stn_infer.cluster.session import slots
from stn_infer.cluster.worker import (
    Described,
    Outcome,
    ShardPredictor,
    ShardTask,
    describe,
    is_relative,
    packed,
    unpacked,
)
from stn_infer.data.inputs import Sample
from stn_infer.errors import ClusterError, StnInferError, one_line
from stn_infer.pipeline.plan import RunOptions
from stn_infer.pipeline.shards import Writer
from stn_infer.version import __version__

TRIES = 3
_LOST = f"the process that predicted its shard ended {TRIES} times without an answer (out of memory, or a crash)"


@dataclass(frozen=True)
class Shards:
    """The predictor of shards on a cluster, with a model that a worker has opened.

    Attributes:
        ray: connected.
        opener: opens the model on a worker's device; pickled.
        options: the job's.
        workers, cpus, gpus: the largest number of workers, and what each takes.
        described: the model as the first worker has it.
    """

    ray: Any
    opener: Callable[[], Backend]
    options: RunOptions
    workers: int
    cpus: int
    gpus: int
    described: Described

    @classmethod
    def open(cls, ray: Any, opener: Callable[[], Backend], options: RunOptions, device: str) -> Shards:
        """Open a model on one worker, which shows what it takes and gives.

        Raises:
            ClusterError: there is no room for a worker, or no node can run the package.
            StnInferError: the model cannot be opened there.
        """
        gpus = 1 if device.startswith("cuda") else 0
        workers, cpus = slots(ray, options.workers, gpus)
        ask = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=TRIES - 1, max_calls=1)(describe)
        try:
            described: Described = ray.get(ask.remote(ray.put(opener)))
        except ray.exceptions.RayError as error:
            raise _told(error) from error
        if described.environment.stn_infer != __version__:
            raise ClusterError(
                f"stn-infer is {described.environment.stn_infer} on the worker {described.place}, and {__version__} "
                "here; install the same version on all nodes"
            )
        return cls(ray, opener, options, workers, cpus, gpus, described)

    def __call__(self, writer: Writer, shards: Iterator[tuple[int, tuple[Sample, ...]]]) -> None:
        """Have shards predicted and written, and count them; see :data:`~stn_infer.pipeline.inference.Spread`.

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
            environment=self.described.environment,
            place=self.described.place,
            directory=directory,
        )
        failed: dict[int, Outcome] = {}
        total = len(missing)
        model = self.ray.put(self.opener)
        for _ in range(TRIES):
            if missing:
                for outcome in self._outcomes(task, model, missing):
                    if outcome.refused:
                        raise _error(outcome)
                    if outcome.error:
                        failed[outcome.shard] = outcome
                    else:
                        del missing[outcome.shard]
                        failed.pop(outcome.shard, None)
                        writer.take_shard(outcome.shard)
        if failed and len(failed) == total and len({(each.error, each.text) for each in failed.values()}) == 1:
            raise _error(next(iter(failed.values())))  # no shard, so it is not their inputs
        for shard, content in missing.items():
            if writer.folder.is_done(shard):  # and its answer was lost
                writer.take_shard(shard)
            else:
                reason = f"its shard failed {TRIES} times: {failed[shard].text}" if shard in failed else _LOST
                writer.fail_shard(shard, unpacked(content)[0], reason)

    def _outcomes(self, task: ShardTask, model: object, missing: Mapping[int, bytes]) -> Iterator[Outcome]:
        """One try of each shard; those whose processes were lost have no outcome."""
        data = self.ray.data
        shards = [{"shard": shard, "samples": content} for shard, content in missing.items()]
        dataset = data.from_items(shards, override_num_blocks=len(shards))
        context = dataset.context
        context.max_errored_blocks = -1  # go on without the blocks whose worker was lost
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        workers = min(self.workers, len(shards))
        pool = data.ActorPoolStrategy(
            min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that options of actors will get names of their own
            dataset = dataset.map_batches(
                ShardPredictor,
                fn_constructor_args=(task, model),
                batch_size=1,
                num_cpus=self.cpus,
                num_gpus=self.gpus or None,
                compute=pool,
                max_task_retries=0,
            )
        try:
            with closing(iter(dataset.iter_rows())) as rows:
                for row in rows:
                    yield Outcome(int(row["shard"]), str(row["error"]), str(row["text"]), bool(row["refused"]))
        except self.ray.exceptions.RayError as error:
            raise _told(error) from error


def _error(outcome: Outcome) -> StnInferError:
    kind = getattr(errors, outcome.error, ClusterError)
    found: StnInferError = kind(outcome.text)
    return found


def _told(error: BaseException) -> StnInferError:
    """What Ray raised, as an error of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, StnInferError):
        return cause
    text = str(error)
    if "ModuleNotFoundError" in text and "stn_infer" in text:
        return ClusterError(f"a worker cannot import stn_infer; install stn-infer {__version__} on all nodes")
    return ClusterError(f"the cluster failed: {one_line(text)}")
