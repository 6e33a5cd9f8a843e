"""Analyzes a third-party model in a separate process first, under limits on CPU time and memory.

The structure is checked before (proto/check.py). But operators' attributes can request any amount of memory or time,
native code has bugs, and the passes over a graph can take more than linear time. What finishes here, finishes in the
caller's process too.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

import numpy as np
import onnx

from stn_infer.arrays import Array
from stn_infer.budget import MORE_MEMORY, MORE_TIME, Budget
from stn_infer.errors import ModelError, StnInferError, one_line
from stn_infer.isolation import python_child

if TYPE_CHECKING:
    from stn_infer.proto.session import Stored

_RESULT = "stn-infer-trial:"
_DEADLINE = 10.0  # seconds of wall time for each of CPU time: the machine may be busy
_WEIGHTS = 3  # copies of the weights: in protobuf, serialized, in onnxruntime
_SHARE = 0.5  # of the CPU time, after which a model that fails is not tried at other sizes
_OPENS, _DEPENDENT, _REJECTED = "opens", "batch-dependent: ", "rejected: "
_MOST_NAMES = 400  # characters of a verdict
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


class TrialCrashError(ModelError):
    """A native library crashed in a trial.

    Attributes:
        signal: the name of the signal that ended it.
    """

    def __init__(self, name: str, signal: str) -> None:
        super().__init__(f"{name}: a native library crashed on it ({signal}) in a trial run; the file is damaged")
        self.signal = signal


@dataclass(frozen=True)
class Verdict:
    """The result of a trial.

    Attributes:
        rejection: why onnxruntime rejects the model; "" if it opens it.
        batch_dependent: the outputs of a sample that depend on the other samples of its batch, on random inputs.
    """

    rejection: str = ""
    batch_dependent: tuple[str, ...] = ()

    def to_text(self) -> str:
        """One line of text, for :meth:`parse`; of many names, the first ones."""
        if self.rejection:
            return _REJECTED + self.rejection
        names = list(self.batch_dependent)
        while len(text := json.dumps(names)) > _MOST_NAMES:
            names.pop()
        return _DEPENDENT + text if names else _OPENS

    @classmethod
    def parse(cls, text: str) -> Verdict | None:
        """The verdict in a text; None if it contains none."""
        if text.startswith(_REJECTED):
            return cls(text.removeprefix(_REJECTED))
        if text.startswith(_DEPENDENT):
            with suppress(ValueError):
                return cls("", tuple(map(str, json.loads(text.removeprefix(_DEPENDENT)))))
        return cls() if text == _OPENS else None


def try_model(
    model: Path | bytes, name: str, budget: Budget, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Verdict:
    """Runs onnx's checker, shape inference, onnxruntime on random inputs, and our passes in a child process.

    Ordinary errors in the child are ignored: the same step fails again in this process, with its own message.

    Args:
        model: an ONNX file or the bytes of one, whose structure and external data were checked.
        name: what messages call it.
        budget: of the child.
        shapes: of inputs, by name.

    Returns:
        Whether onnxruntime opens the model, and what depends on the batch.

    Raises:
        ModelError: the child crashed, or exceeded its memory limit or timeout.
    """
    job = {
        "path": str(model.absolute()) if isinstance(model, Path) else None,
        "shapes": {key: list(shape) for key, shape in (shapes or {}).items()},
    }
    told = run_trial("stn_infer.repairs.trial", job, b"" if isinstance(model, Path) else model, name, budget)
    return Verdict.parse(told) or Verdict()


def run_trial(module: str, job: Mapping[str, object], content: bytes, name: str, budget: Budget) -> str:
    """Runs a module that calls :func:`report` in a child process, and returns what it reports.

    Args:
        module: the child's main module, which limits itself.
        job: its argument, as JSON, to which the budget's ``seconds`` and ``bytes`` are added.
        content: its standard input.
        name: what messages call the model.
        budget: of the child.

    Raises:
        ModelError: the child exceeded a limit, or says that the model is to be refused.
        TrialCrashError: it crashed.
    """
    slow = f"{name}: its analysis takes more than {budget.seconds:g} s of CPU time; {MORE_TIME}"
    with python_child(
        module,
        [json.dumps({**job, "seconds": budget.seconds, "bytes": budget.bytes})],
        environment={"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            answer, _ = child.communicate(content, budget.seconds * _DEADLINE)
        except subprocess.TimeoutExpired:
            raise ModelError(slow) from None
    if child.returncode == -signal.SIGXCPU:
        raise ModelError(slow)
    if child.returncode < 0:
        raise TrialCrashError(name, signal.Signals(-child.returncode).name)
    lines = [line for line in answer.decode(errors="replace").splitlines() if line.startswith(_RESULT)]
    told = lines[-1].removeprefix(_RESULT) if lines else f"its trial ended with exit code {child.returncode}"
    if child.returncode == 0 and lines:
        return told
    raise ModelError(f"{name}: {one_line(told)}")


def report(text: str, limit: int = 500) -> None:
    """Tells the parent the result, up to ``limit`` characters on one line; called by the child."""
    print(f"{_RESULT}{one_line(text, limit) if text else ''}", flush=True)


def _child(path: str | None, shapes: dict[str, list[int]], seconds: float, bytes: int) -> int:
    """Runs every native step and every pass once. Returns 1 if memory was insufficient, otherwise 0."""
    from stn_infer.proto.session import Stored, import_onnxruntime
    from stn_infer.repairs.large_weights import SMALL_MODEL, bytes_of_weights, light_copy
    from stn_infer.repairs.passes import run_passes

    import_onnxruntime()
    limit_time(seconds)
    model = onnx.ModelProto()

    dependent: list[str] = []

    def run() -> None:
        sizes = {name: tuple(shape) for name, shape in shapes.items()}
        dependent.extend(batch_dependent(stored, sizes, seconds * _SHARE))

    def analyze() -> None:
        light = light_copy(model, folder or Path("/nonexistent"))
        for step in (onnx.checker.check_model, onnx.shape_inference.infer_shapes, run_passes):
            _attempt(partial(step, light))

    try:
        content = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        model.ParseFromString(content)
        weights = bytes_of_weights(model)
        limit_memory(bytes + _WEIGHTS * weights)
        del content
        folder = None if path is None else Path(path).parent
        stored = Stored(model, folder)
        with ThreadPoolExecutor(1) as other:  # libraries release Python's lock; large weights are copied once at a time
            opened = other.submit(_rejection, stored) if weights < SMALL_MODEL else None
            for step in (run, analyze):
                _attempt(step)
            report(Verdict(_rejection(stored) if opened is None else opened.result(), tuple(dependent)).to_text())
    except MemoryError as error:
        gib = f"{bytes / 2**30:g} GiB"
        told = one_line(error, 120)
        report(f"it requests more memory than {gib} beside its weights ({told}); {MORE_MEMORY}")
        return 1
    return 0


def batch_dependent(
    stored: Stored, shapes: Mapping[str, tuple[int, ...]] | None = None, seconds: float = inf
) -> list[str]:
    """Runs a model on random inputs, and returns the outputs of a sample that change with the rest of its batch.

    None for a model with a fixed batch or with several batch axes, one that draws random numbers, or one whose outputs
    are not all tensors.

    Args:
        stored: the model.
        shapes: of inputs, by name.
        seconds: of this process's CPU time, after which nothing else is run.

    Raises:
        StnInferError: it does not run on random inputs.
    """
    from stn_infer.proto.inputs import batch_symbols, plan_inputs
    from stn_infer.proto.session import open_session
    from stn_infer.proto.traversal import every_node
    from stn_infer.repairs.dependence import dependent_outputs
    from stn_infer.repairs.equivalence import run_at_plausible_sizes

    plans = plan_inputs(stored.model, shapes)
    session = open_session(stored, optimized=False, threads=1, arena=False)  # what a run took is free for other threads
    feeds, outputs, _ = run_at_plausible_sizes(stored, plans, session=session, seconds=seconds)
    symbols = batch_symbols(plans)
    if len(symbols) != 1 or process_time() > seconds:
        return []
    feed, found = feeds[-1], outputs[-1]  # the largest batch
    axes = {plan.name: next((axis for axis, size in enumerate(plan.dims) if size in symbols), None) for plan in plans}
    first = [value if axes[name] is None else np.take(value, [0], axes[name]) for name, value in feed.items()]
    samples = next(value.shape[axis] for name, value in feed.items() if (axis := axes[name]) is not None)
    tensors = all(isinstance(value, np.ndarray) for value in found)  # not a sequence
    if not tensors or any(node.op_type in _RANDOM for node in every_node(stored.model)):
        return []

    def run(values: Sequence[Array]) -> list[Array]:
        return session.run(dict(zip(feed, values, strict=True)))

    return [session.outputs[index] for index in dependent_outputs(run, first, samples, found, exact=False)]


def _attempt(step: Callable[[], object]) -> None:
    """Calls ``step``; an error counts only if it means that memory was insufficient."""
    try:
        step()
    except Exception as error:
        _raise_out_of_memory(error)


def _rejection(model: Stored) -> str:
    """Why onnxruntime does not open the model; "" if it does."""
    from stn_infer.proto.session import open_session

    try:
        open_session(model, label="the file", threads=1)
    except StnInferError as error:
        _raise_out_of_memory(error)
        return str(error)
    return ""


def limit_time(seconds: float) -> None:
    """Limits this process's CPU time; a crash leaves no core file."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, max(1, round(seconds)))


def limit_memory(more: int) -> None:
    """Limits this process's memory to ``more`` bytes on top of what it has."""
    # libraries hold gigabytes of address space that they don't use
    _limit(resource.RLIMIT_AS, _address_space() + more)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int:
    """Bytes of it that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _raise_out_of_memory(error: Exception) -> None:
    """Raises MemoryError if a native library's error means that memory was insufficient."""
    if isinstance(error, MemoryError) or re.search(r"bad_alloc|allocat|out of memory", str(error), re.IGNORECASE):
        raise MemoryError(str(error))


if __name__ == "__main__":
    # No interpreter shutdown: a native library's destructors are not part of the trial.
    os._exit(_child(**json.loads(sys.argv[1])))
