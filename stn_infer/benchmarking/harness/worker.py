"""A round in a process of its own, whose arguments are the files TASK.json and ANSWER.json.

Progress goes to standard output, one line per step; the runtimes' own output goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from stn_infer.benchmarking.decode import decode
from stn_infer.benchmarking.harness.round import RoundReport, RoundTask, run_round
from stn_infer.benchmarking.harness.variant import RealClock
from stn_infer.benchmarking.prepare.case import Prepared, Setup
from stn_infer.benchmarking.request import Progress

#: The exit code of a worker whose answer cannot be written: sysexits.h's EX_IOERR.
CANNOT_WRITE = 74


@dataclass(frozen=True)
class Task:
    """A round of one case, as it is handed to a process."""

    prepared: Prepared
    round: RoundTask


def work(task: Task, say: Progress) -> RoundReport:
    """Run a round with the real runtimes, clock and machine, in this process."""
    from stn_infer.benchmarking.machine.monitor import MachineMonitor
    from stn_infer.benchmarking.variants.registry import open_variant

    request = task.round.request
    setup = Setup(task.prepared, request.device, request.threads, request.method)
    open_runtimes(task.round.variants, request.device)
    expected = {batch: task.prepared.expected(batch) for batch in task.prepared.batch_sizes}
    monitor = MachineMonitor(request.device, partial(open_gpu, request.device))
    return run_round(task.round, expected, partial(open_variant, setup=setup), RealClock(), monitor, say)


def open_runtimes(variants: Sequence[str], device: str = "cpu") -> None:
    """Import what variants need, or the one that comes first would have its runtime's import among its own seconds."""
    needed = {"torch" for name in variants if not name.startswith(("ort", "openvino"))}
    needed |= {"torch._inductor.compile_fx" for name in variants if name.startswith("compile")}
    needed |= {"onnxruntime" for name in variants if name.startswith("ort")}
    needed |= {"openvino" for name in variants if name.startswith("openvino")}
    # after PyTorch, whose CUDA libraries they then find
    engines = {"tensorrt_rtx" if name == "trt-rtx" else "tensorrt" for name in variants if name.startswith("trt")}
    for name in (*sorted(needed), *sorted(engines if device != "cpu" else ())):
        with suppress(ImportError, OSError), warnings.catch_warnings():
            # PyTorch's compiler warns of its own deprecations; the variant reports what is missing
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(name)
            if name == "onnxruntime" and device != "cpu":
                from stn_infer.backends.ort import preload_cuda

                preload_cuda(module)


def open_gpu(device: str) -> None:
    """Make the GPU's context in this process, and the GPU the current one; nothing where PyTorch cannot."""
    with suppress(ImportError, RuntimeError):
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(device)
            torch.empty(1, device=device)
            torch.cuda.synchronize(device)


def main() -> None:
    """Read the task, run it, write the answer."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = decode(Task, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    report = work(task, partial(print, file=out, flush=True))
    try:
        Path(sys.argv[2]).write_text(json.dumps(asdict(report)), encoding="utf-8")
    except OSError as error:  # no fault of a variant's
        print(error.strerror or error, file=sys.stderr)
        sys.exit(CANNOT_WRITE)


if __name__ == "__main__":
    main()
