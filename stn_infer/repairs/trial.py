"""Runs a third-party model in a separate process first, so that a crash of a native library is contained.

The structure is checked before (proto/check.py). But operators' attributes can request any amount of memory or time,
and native code has bugs. The child process has limits on address space and CPU time, and a timeout.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx

from stn_infer.budget import Budget
from stn_infer.errors import ModelError, StnInferError, one_line
from stn_infer.isolation import python_child

_RESULT = "stn-infer-trial:"
_DEADLINE = 10.0  # seconds of wall time for each of CPU time: the machine may be busy
_WEIGHTS = 3  # copies of the weights: in protobuf, serialized, in onnxruntime
_SHARE = 0.5  # of the CPU time, after which a model that fails is not tried at other sizes


def try_model(
    model: Path | bytes, name: str, budget: Budget, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """Runs onnx's checker, shape inference, and onnxruntime on random inputs for a model in a child process.

    Ordinary errors in the child are ignored: the same step fails again in this process, with its own message.

    Args:
        model: an ONNX file or the bytes of one, whose structure and external data were checked.
        name: what messages call it.
        budget: of the child.
        shapes: of inputs, by name.

    Raises:
        ModelError: the child crashed, or exceeded its memory limit or timeout.
    """
    job = {
        "path": str(model.absolute()) if isinstance(model, Path) else None,
        "shapes": {key: list(shape) for key, shape in (shapes or {}).items()},
        "seconds": budget.seconds,
        "bytes": budget.bytes,
    }
    slow = f"{name}: onnxruntime takes more than {budget.seconds:g} s to analyze it; STN_TRIAL_SECONDS raises the limit"
    with python_child(
        "stn_infer.repairs.trial",
        [json.dumps(job)],
        environment={"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            answer, _ = child.communicate(b"" if isinstance(model, Path) else model, budget.seconds * _DEADLINE)
        except subprocess.TimeoutExpired:
            raise ModelError(slow) from None
    if child.returncode == 0:
        return
    if child.returncode == -signal.SIGXCPU:
        raise ModelError(slow)
    if child.returncode < 0:
        ended_by = signal.Signals(-child.returncode).name
        raise ModelError(f"{name}: a native library crashed on it ({ended_by}) in a trial run; the file is damaged")
    lines = [line for line in answer.decode(errors="replace").splitlines() if line.startswith(_RESULT)]
    reason = lines[-1].removeprefix(_RESULT) if lines else f"its trial ended with exit code {child.returncode}"
    raise ModelError(f"{name}: {one_line(reason)}")


def _child(path: str | None, shapes: dict[str, list[int]], seconds: float, bytes: int) -> int:
    """Runs every native step once. Returns 1 if memory was insufficient, else 0, even if a step fails."""
    from stn_infer.proto.inputs import plan_inputs
    from stn_infer.proto.session import Stored, import_onnxruntime, open_session
    from stn_infer.repairs.equivalence import run_at_plausible_sizes
    from stn_infer.repairs.large_weights import bytes_of_weights, light_copy

    import_onnxruntime()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, max(1, round(seconds)))
    model = onnx.ModelProto()
    try:
        content = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        model.ParseFromString(content)
        # libraries hold gigabytes of address space that they don't use
        _limit(resource.RLIMIT_AS, _address_space() + bytes + _WEIGHTS * bytes_of_weights(model))
        del content
        folder = None if path is None else Path(path).parent
        light = light_copy(model, folder or Path("/nonexistent"))
        for step in (onnx.checker.check_model, onnx.shape_inference.infer_shapes):
            try:
                step(light)
            except Exception as error:
                _raise_out_of_memory(error)
        del light
        stored = Stored(model, folder)
        plans = plan_inputs(model, {name: tuple(shape) for name, shape in shapes.items()})
        run_at_plausible_sizes(stored, plans, threads=1, seconds=seconds * _SHARE)
        open_session(stored, threads=1)
    except (StnInferError, MemoryError) as error:
        try:
            _raise_out_of_memory(error)
        except MemoryError:
            told = one_line(error, 160)
            gib = f"{bytes / 2**30:g} GiB"
            print(
                f"{_RESULT}it requests more memory than {gib} beside its weights ({told}); "
                "STN_TRIAL_GIB raises the limit",
                flush=True,
            )
            return 1
    return 0


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
