"""What runs on the nodes of a cluster. A worker writes whole shards, as ``run`` does on one machine."""

from __future__ import annotations

import marshal
import os
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stn_infer import remote
from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, TensorSpec
from stn_infer.data.inputs import Sample
from stn_infer.errors import (
    ClusterError,
    MissingDependencyError,
    ModelError,
    OutputError,
    StnInferError,
    UsageError,
    one_line,
)
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.environment import Environment
from stn_infer.pipeline.job import Folder, Job
from stn_infer.pipeline.plan import Plan, RunOptions
from stn_infer.pipeline.shards import Writer, batches_of, schedule
from stn_infer.pipeline.storage import storage_of


@dataclass
class Described:
    """A backend that is open elsewhere: what it takes and gives, without the model."""

    name: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: ModelMetadata
    about: dict[str, str]
    environment: Environment
    place: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises ModelError."""
        raise ModelError("the model is open on a cluster, not here")

    def describe(self) -> dict[str, str]:
        """The runtime's description there."""
        return self.about

    def close(self) -> None:
        """There is nothing to release here."""


def describe(backend: Backend) -> Described:
    """Describe a model that is open on this node."""
    found = Environment.of(backend)
    specs = backend.inputs, backend.outputs
    return Described(backend.name, backend.device, *specs, backend.metadata, backend.describe(), found, platform.node())


@dataclass(frozen=True)
class ShardTask:
    """What all workers of a job have in common.

    Attributes:
        options: the job's.
        threads: of each worker.
        output: the job's folder, absolute, or its URL.
        job: its description.
        directory: the one that relative paths of inputs are in; "" if there is none.
    """

    options: RunOptions
    threads: int
    output: str
    job: Job
    directory: str


@dataclass(frozen=True)
class Outcome:
    """What became of a shard in one try.

    Attributes:
        error: the type of the error; "" if the shard is written.
        text: the error's message.
        refused: whether the error is one of the worker or of the job, not of this shard.
    """

    error: str = ""
    text: str = ""
    refused: bool = False


class ShardPredictor:
    """An actor that predicts and writes one shard of a job per call.

    Args:
        opener: opens the model on this worker's device.
    """

    def __init__(self, opener: Callable[[], Backend]) -> None:
        self._opener = opener
        self._backend: Backend | None = None
        self._begun: tuple[Plan, Folder] | None = None

    def ready(self) -> Described:
        """Open the model, and describe it.

        Raises:
            StnInferError: it cannot be opened here.
        """
        self._backend = self._backend or self._opener()
        return describe(self._backend)

    def predict(self, task: ShardTask, shard: int, content: bytes) -> Outcome:
        """Predict and write a shard of the job of ``task``, whose samples are :func:`packed`."""
        try:
            try:
                begun = self._begun = self._begun or self._begin(task)
                samples, folders = unpacked(content)
                self._check(folders)
            except StnInferError as error:
                return Outcome(type(error).__name__, str(error), refused=True)
            self._write(*begun, task, shard, samples)
        except (OutputError, UsageError, MissingDependencyError) as error:  # so would every other shard
            return Outcome(type(error).__name__, f"{platform.node()}: {error}", refused=True)
        except StnInferError as error:
            return Outcome(type(error).__name__, str(error))
        except Exception as error:  # a bug of a library; the shard is tried again
            return Outcome("ModelError", f"{type(error).__name__}: {one_line(error)}")
        return Outcome()

    def _begin(self, task: ShardTask) -> tuple[Plan, Folder]:
        here = platform.node()
        if task.directory:
            try:
                os.chdir(task.directory)  # so that names and messages are those of a run on one machine
            except OSError:
                raise ClusterError(_unshared(here, task.directory, "inputs")) from None
        folder = Folder(storage_of(task.output), task.job)
        if not folder.has_job():
            raise ClusterError(_unshared(here, task.output, "output"))
        assert self._backend is not None, "the model is open"
        plan = Plan.of(self._backend, task.options)
        libraries = Environment.of(self._backend).reading(plan.loader, self._backend.device).libraries
        if libraries != task.job.libraries:  # what reads JPEG files is known here only
            raise ClusterError(
                f"a worker would give other results: libraries is {libraries} on {here}, and "
                f"{task.job.libraries} in the job; install the same versions on all nodes"
            )
        return plan, folder

    def _check(self, folders: Sequence[str]) -> None:
        """A folder that is missing on this node would make each of its inputs a failed row."""
        for folder in folders:
            if not _is_folder(folder):
                raise ClusterError(_unshared(platform.node(), folder, "inputs"))

    def _write(self, plan: Plan, folder: Folder, task: ShardTask, shard: int, samples: Sequence[Sample]) -> None:
        if folder.is_done(shard):  # by a try whose answer was lost
            return
        size = task.options.batch_size
        batches = batches_of(shard, folder.job.shard_rows, samples, size)
        schedule(plan.loader, plan.runner, Writer(folder, plan.encoder, None), batches, task.threads, size).run()


def _unshared(node: str, path: str, what: str) -> str:
    return f"the {what} must be on a file system of all nodes, or a URL: {path} of this job is not on the worker {node}"


@lru_cache(maxsize=4096)
def _is_folder(path: str) -> bool:
    return os.path.isdir(path)


def is_relative(sample: Sample) -> bool:
    """Whether a sample's path depends on the working directory."""
    return not (remote.is_url(sample.path) or os.path.isabs(sample.path))


def packed(samples: Sequence[Sample]) -> bytes:
    """Samples, and the folders in which their files are, for :func:`unpacked` on another machine."""
    rows = [tuple(sample) for sample in samples]
    above = {os.path.dirname(sample.path) or "." for sample in samples if not remote.is_url(sample.path)}
    return zlib.compress(marshal.dumps((rows, sorted(filter(_is_folder, above)))), level=1)


def unpacked(content: bytes) -> tuple[list[Sample], list[str]]:
    """Samples, and those of their folders that exist where they were packed."""
    rows, folders = marshal.loads(zlib.decompress(content))
    return [Sample(*row) for row in rows], folders
