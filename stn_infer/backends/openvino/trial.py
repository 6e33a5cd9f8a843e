"""Opens and runs a third-party model in OpenVINO in a separate process first, under limits on CPU time and memory.

Its importer and its compiler fold constants, and may crash on a file that onnxruntime runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from stn_infer.budget import Budget
from stn_infer.repairs.trial import limit_memory, limit_time, report, run_trial

_WEIGHTS = 4  # copies of the model: the file, its bytes, OpenVINO's constants, and what is folded or reordered
_SIZE = 32  # of dynamic axes other than the batch


def try_openvino(model: Path | bytes, name: str, budget: Budget | None = None) -> None:
    """Open a model in a child process, and run it on one sample of zeros.

    Ordinary errors in the child are ignored: the same step fails again in this process, with its own message.

    Args:
        model: an ONNX file, or its bytes.
        name: the model's name in messages.
        budget: of the child; 0 seconds: nothing is tried. None: the environment's.

    Raises:
        ModelError: OpenVINO crashed or exceeded a limit.
    """
    budget = budget or Budget.from_environment()
    if not budget.seconds:
        return
    path = str(model.resolve()) if isinstance(model, Path) else None
    run_trial(__name__, {"path": path}, b"" if isinstance(model, Path) else model, name, budget)


def _child(path: str | None, seconds: float, bytes: int) -> int:
    from stn_infer.backends.openvino.backend import OpenVinoBackend
    from stn_infer.backends.openvino.runtime import load_openvino
    from stn_infer.errors import StnInferError
    from stn_infer.proto.load import read_graph
    from stn_infer.repairs.large_weights import bytes_of_weights

    limit_time(seconds)
    try:
        load_openvino()
        if path is None:
            content = sys.stdin.buffer.read()
            weights = len(content)
        else:
            weights = bytes_of_weights(read_graph(Path(path)))
        limit_memory(bytes + _WEIGHTS * weights)
        backend = OpenVinoBackend(content if path is None else Path(path), threads=1, callers=1)
        zeros = {}
        for spec in backend.inputs:
            sizes = [_SIZE if axis is None else axis for axis in spec.shape]
            zeros[spec.name] = np.zeros(sizes and [1, *sizes[1:]], spec.dtype)
        backend.run(zeros)
    except (StnInferError, MemoryError):
        pass
    report("")
    return 0


if __name__ == "__main__":
    os._exit(_child(**json.loads(sys.argv[1])))
