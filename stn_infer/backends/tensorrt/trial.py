"""Parses a model with TensorRT in a separate process first, under limits on CPU time and memory.

The parser constant-folds and unrolls; it does not bound what that takes, and it may crash on a file that onnxruntime
runs. Building the engine is not limited.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.budget import Budget
from stn_infer.repairs.trial import limit_memory, limit_time, report, run_trial

if TYPE_CHECKING:
    import onnx

_WEIGHTS = 4  # copies of the model: as bytes, in the parser, in the network, and what is folded


def try_parser(
    model: onnx.ModelProto, runtime: str, plugin: Path | None, name: str, device: int | None, budget: Budget | None
) -> None:
    """Parse a model in a child process.

    Ordinary errors in the child are ignored: the same step fails again in this process, with its own message.

    Args:
        model: as the builder passes it to the parser.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        plugin: the library whose plugins run nodes; None: no plugins.
        name: the model's name in messages.
        device: the index of the GPU to build on; None: none is used.
        budget: of the child; 0 seconds: nothing is tried. None: the environment's.

    Raises:
        ModelError: the parser crashed or exceeded a limit.
    """
    budget = budget or Budget.from_environment()
    if not budget.seconds:
        return
    job = {
        "runtime": runtime,
        "plugin": None if plugin is None else str(plugin),
        "device": device,
    }
    run_trial(__name__, job, model.SerializeToString(), name, budget)


def _child(runtime: str, plugin: str | None, device: int | None, seconds: float, bytes: int) -> int:
    from stn_infer.backends.tensorrt.builder import Parsing
    from stn_infer.backends.tensorrt.runtime import RUNTIMES, load_runtime
    from stn_infer.errors import StnInferError

    limit_time(seconds)
    content = sys.stdin.buffer.read()
    if device is not None:
        import torch

        torch.cuda.set_device(device)
    try:
        loaded = load_runtime(next(known for known in RUNTIMES if known == runtime))
        parsing = Parsing(loaded, None if plugin is None else Path(plugin))
        limit_memory(bytes + _WEIGHTS * len(content))
        parsing.parse(content)
    except StnInferError:
        pass
    report("")
    return 0


if __name__ == "__main__":
    os._exit(_child(**json.loads(sys.argv[1])))
