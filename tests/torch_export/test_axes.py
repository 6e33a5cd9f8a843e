"""Reductions over negative axes: the same result, also of an empty tensor in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.torch_export.axes import count_from_the_front


def reduction(operator: str, axis: int, keepdims: int) -> onnx.ModelProto:
    shape = ["n", 3, 1] if keepdims else ["n", 3]
    arg = operator.startswith("Arg")
    kind = TensorProto.INT64 if arg else TensorProto.FLOAT
    given = {"axis": axis} if arg else {}
    node = helper.make_node(operator, ["x"] if arg else ["x", "axes"], ["y"], keepdims=keepdims, **given)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])],
        [helper.make_tensor_value_info("y", kind, shape)],
        [] if arg else [numpy_helper.from_array(np.array([axis]), "axes")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMean", "ReduceL2", "ArgMax", "ArgMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(operator: str, keepdims: int) -> None:
    model, other = reduction(operator, -1, keepdims), reduction(operator, 2, keepdims)
    count_from_the_front(model)
    count_from_the_front(other)
    backends = [OrtBackend(each.SerializeToString(), threads=1) for each in (model, other)]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    found, wanted = (backend.run({"x": x})["y"] for backend in backends)
    np.testing.assert_array_equal(found, wanted)
    (empty,) = backends[0].run({"x": x[:0]}).values()
    assert empty.shape == ((0, 3, 1) if keepdims else (0, 3))
