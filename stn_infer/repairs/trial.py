"""Runs a third-party model in a separate process first, so that a crash of a native library is contained.

The structure is checked before (proto/check.py), and no file is known that passes the check and crashes the process.
But operators' attributes can request any amount of memory or time, and native code has bugs. The child process has an
address-space limit and a timeout.
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

from stn_infer.errors import ModelError, UsageError, one_line
from stn_infer.isolation import python_child

# Address space: libraries and threads reserve 3 GB without using it.
_LEAST_BYTES = 6 << 30
_SHARE_OF_MACHINE = 0.75
_SECONDS = 600
_RESULT = "stn-infer-trial:"


def try_model(
    source: Path,
    model: onnx.ModelProto,
    folder: Path | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Runs onnx's checker, shape inference, and onnxruntime on random inputs for ``model`` in a child process.

    Ordinary errors in the child are ignored: the same step fails again in this process, with its own message.

    Args:
        source: the file, for messages.
        model: the model without its external data.
        folder: the folder of external data.
        shapes: input shapes by name.

    Raises:
        ModelError: the child crashed, or exceeded its memory limit or timeout.
    """
    job = {
        "folder": None if folder is None else str(folder),
        "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
        "memory": _limit(model),
    }
    with python_child(
        "stn_infer.repairs.trial",
        [json.dumps(job)],
        environment={"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            output, _ = child.communicate(model.SerializeToString(), timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise ModelError(f"{source}: a trial run in onnxruntime did not finish within {_SECONDS} s") from None
    if child.returncode == 0:
        return
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise ModelError(f"{source}: a native library crashed on it ({name}) in a trial run; the file is damaged")
    lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith(_RESULT)]
    reason = lines[-1].removeprefix(_RESULT) if lines else f"exit code {child.returncode}"
    raise ModelError(f"{source}: {one_line(reason)}")


def _limit(model: onnx.ModelProto) -> int:
    """The child's address-space limit in bytes: most of the machine's memory, plus room for the weights."""
    from stn_infer.repairs.large_weights import bytes_of_weights

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(_LEAST_BYTES, int(_SHARE_OF_MACHINE * machine)) + 3 * bytes_of_weights(model)


def _child(job: dict[str, object]) -> int:
    """Runs every native step once. Returns 1 if memory was insufficient, else 0, even if a step fails."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = int(str(job["memory"]))
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from stn_infer.proto.inputs import plan_inputs
    from stn_infer.proto.session import Stored
    from stn_infer.repairs.equivalence import run_at_plausible_sizes

    model = onnx.ModelProto()
    model.ParseFromString(sys.stdin.buffer.read())
    folder = None if job["folder"] is None else Path(str(job["folder"]))
    shapes = job["shapes"]
    assert isinstance(shapes, dict)
    try:
        for step in (onnx.checker.check_model, onnx.shape_inference.infer_shapes):
            try:
                step(model)
            except Exception as error:
                _raise_out_of_memory(error)
        plans = plan_inputs(model, {name: tuple(shape) for name, shape in shapes.items()})
        run_at_plausible_sizes(Stored(model, folder), plans)
    except UsageError:
        return 0
    except (ModelError, MemoryError) as error:
        try:
            _raise_out_of_memory(error)
        except MemoryError:
            print(f"{_RESULT}it requests more memory than {limit >> 30} GiB ({one_line(error, 160)})", flush=True)
            return 1
    return 0


def _raise_out_of_memory(error: Exception) -> None:
    """Raises MemoryError if a native library's error means that memory was insufficient."""
    if isinstance(error, MemoryError) or re.search(r"bad_alloc|allocat|out of memory", str(error), re.IGNORECASE):
        raise MemoryError(str(error))


if __name__ == "__main__":
    # No interpreter shutdown: a native library's destructors are not part of the trial.
    os._exit(_child(json.loads(sys.argv[1])))
