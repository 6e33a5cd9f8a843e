"""A half-precision file in float32 arithmetic: rounded only where the file has half-precision tensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.precision.half import Half, to_half
from stn_infer.precision.rounding import rounded_in_float32
from tests.support.precision_models import images, model_of, small_stn, types_of


@pytest.mark.parametrize(("half", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_every_half_value_is_rounded(half: Half, dtype: Any) -> None:
    """Scaling by constants, where the exact result of each step is known."""
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Mul", ["a", "c"], ["b"]),
            helper.make_node("Conv", ["b", "w"], ["y"]),
        ],
        {"w": np.full((1, 1, 1, 1), 1.1, np.float32), "c": np.array(0.7, np.float32)},
        opset=22,
    )
    x = images()

    def rounded(values: Any) -> Any:
        return np.asarray(values, np.float32).astype(dtype).astype(np.float32)

    w, c = rounded(np.float32(1.1)), rounded(np.float32(0.7))
    expected = rounded(rounded(rounded(rounded(x) * w) * c) * w)
    made = rounded_in_float32(to_half(model, half).model)
    actual = OrtBackend(made.SerializeToString(), threads=1).run({"x": x})["y"]
    np.testing.assert_array_equal(actual, expected)
    assert np.abs(actual - x * 1.1 * 0.7 * 1.1).max() > 1e-5


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_no_half_tensors_remain_and_functions_are_inlined(half: Half) -> None:
    made = rounded_in_float32(to_half(small_stn(22, 2), half).model)
    assert not made.functions
    halves = {name for name, kind in types_of(made).items() if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)}
    readers = {node.op_type for node in made.graph.node if halves.intersection(node.input)}
    assert halves and readers == {"Cast"}
    assert sum(node.op_type == "GridSample" for node in made.graph.node) == 2
