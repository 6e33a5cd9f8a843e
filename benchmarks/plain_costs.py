"""Measures the constants of ``stn_infer/fusion/lattices/cost.py``: what plain operators cost in onnxruntime.

    python -m benchmarks.plain_costs

One thread, CPU time, the fastest of five runs. Prints nanoseconds per multiplication or per element.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 712, 488
POINTS = HEIGHT * WIDTH
_RUNS = 5
Array = NDArray[Any]


def nanoseconds(op: str, inputs: list[Array | None], constants: int, **attributes: Any) -> float:
    """The CPU time of one node.

    Args:
        op: the operator.
        inputs: its inputs; None: omitted. The last ``constants`` ones are initializers.
        attributes: its attributes.
    """
    import onnxruntime

    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    pairs = [(name, value) for name, value in zip(names, inputs, strict=True) if value is not None]
    given, fixed = pairs[: len(pairs) - constants], pairs[len(pairs) - constants :]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in given]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in fixed]
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "one", infos, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = dict(given)
    best = float("inf")
    for _ in range(_RUNS + 1):
        start = time.process_time()
        session.run(None, feeds)
        best = min(best, time.process_time() - start)
    return best * 1e9


def costs() -> Iterator[tuple[str, float]]:
    """Yields the name of each constant and its value."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    def integers(*values: int) -> Array:
        return np.array(values, np.int64)

    taken = nanoseconds("MatMul", [floats(1, 2, HEIGHT, 31), floats(31, WIDTH)], 1)
    yield "MatMul, per multiplication", taken / (2 * POINTS * 31)
    taken = nanoseconds("MatMul", [floats(1, 2, 20), floats(20, 4096)], 1)
    yield "MatMul of two rows, in a cache", taken / (2 * 20 * 4096)
    taken = nanoseconds("MatMul", [floats(1, 2, 81), floats(81, 16384)], 1)
    yield "MatMul of two rows, 5 MiB", taken / (2 * 81 * 16384)
    taken = nanoseconds("MatMul", [floats(1, 2, 45), floats(45, POINTS)], 1)
    yield "MatMul of two rows, beyond", taken / (2 * 45 * POINTS)
    taken = nanoseconds("Conv", [floats(1, 2, 256, 256), floats(2, 1, 9, 9)], 1, group=2)
    yield "Conv, per multiplication", taken / (2 * 248 * 248 * 81)
    taken = nanoseconds("ConvTranspose", [floats(1, 2, 64, 64), floats(2, 1, 32, 32)], 1, group=2, strides=[8, 8])
    yield "ConvTranspose, per multiplication", taken / (2 * 64 * 64 * 1024)
    for mode in ("nearest", "linear", "cubic"):
        sizes = integers(1, 2, HEIGHT, WIDTH)
        how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
        taken = nanoseconds("Resize", [floats(1, 2, 45, 31), None, None, sizes], 1, **how)
        yield f"Resize {mode}, per element", taken / (2 * POINTS)
    index = rng.integers(0, 1395, (4, POINTS)).astype(np.int32)
    yield "Gather, per element", nanoseconds("Gather", [floats(1, 2, 1395), index], 1, axis=2) / (8 * POINTS)
    yield "Mul by weights", nanoseconds("Mul", [floats(1, 2, 4, POINTS), floats(4, POINTS)], 1) / (8 * POINTS)
    taken = nanoseconds("ReduceSum", [floats(1, 2, 4, POINTS), integers(2)], 1, keepdims=0)
    yield "ReduceSum, per element of the input", taken / (8 * POINTS)
    taken = nanoseconds("Transpose", [floats(1, 2, HEIGHT, WIDTH)], 0, perm=[0, 2, 3, 1])
    yield "Transpose, per element", taken / (2 * POINTS)
    grid = (floats(1, HEIGHT, WIDTH, 2) / 2).astype(np.float32)
    taken = nanoseconds("GridSample", [floats(1, 2, 45, 31), grid], 0)
    yield "GridSample, per coordinate", taken / (2 * POINTS)


def main() -> None:
    """Prints the table."""
    for name, value in costs():
        print(f"{name:40s}{value:8.3f} ns")


if __name__ == "__main__":
    main()
