"""Version 2 of stn::ProjectiveTransformer as an onnxruntime custom op: any basis, volumes and a bounded denominator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stn_infer import plugin
from tests.support import reference

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

OFFSET = (-0.3, 0.2, 0.45)
NO_BOUND = -float(np.finfo(np.float32).max)


def session(size: tuple[int, ...], w_min: float | None, offset: tuple[float, ...] = ()) -> ort.InferenceSession:
    """One node whose inputs are those of the graph; without w_min it is of version 1."""
    rank = len(size)
    attributes = {} if w_min is None else {"w_min": w_min, "offset": list(offset or OFFSET[:rank])}
    node = helper.make_node(
        "ProjectiveTransformer", ["input", "theta", "basis"], ["output"], domain="stn",
        grid_shape=[0, *size, rank], mode="linear", padding_mode="border", align_corners=1, **attributes,
    )  # fmt: skip
    axes = {"input": ["n", "c", *map(str, range(rank))], "theta": ["n", "r", "k"], "basis": ["k", "p"]}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in axes.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("stn", 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(plugin.library_path()))
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(size: tuple[int, ...], columns: int) -> dict[str, Array]:
    """w lies in 0.4 .. 1.6."""
    rng = np.random.default_rng(columns)
    rank = len(size)
    theta = rng.uniform(-0.8, 0.8, (2, rank + 1, columns))
    theta[:, rank] *= 0.6 / 0.8 / columns
    theta[:, rank, -1] = 1
    basis = rng.uniform(-1, 1, (columns, int(np.prod(size))))
    basis[-1] = 1
    arrays = {"input": rng.standard_normal((2, 3, *(6, 5, 7)[:rank])), "theta": theta, "basis": basis}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize("w_min", [None, NO_BOUND, 1.1])
@pytest.mark.parametrize(("size", "columns"), [((4, 9), 3), ((4, 9), 5), ((3, 4, 5), 4), ((3, 4, 5), 6)])
def test_any_basis(size: tuple[int, ...], columns: int, w_min: float | None) -> None:
    inputs = feeds(size, columns)
    answer = session(size, w_min).run(None, inputs)[0]
    offset = () if w_min is None else OFFSET[: len(size)]
    grid = reference.spatial_grid(inputs["theta"], inputs["basis"], size, projective=True, w_min=w_min, offset=offset)
    expected = reference.grid_sample(inputs["input"], grid, "bilinear", "border", True)
    np.testing.assert_allclose(answer, expected, atol=5e-5, rtol=5e-5)


def test_what_does_not_fit_is_one_line() -> None:
    inputs = feeds((3, 4, 5), 6)
    model = session((3, 4, 5), 0.5)
    with pytest.raises(Exception, match=r"expected theta \[2, 4, K\], got \[2, 3, 6\]"):
        model.run(None, inputs | {"theta": inputs["theta"][:, :3]})
    with pytest.raises(Exception, match=r"expected basis \[6, 60\]"):
        model.run(None, inputs | {"basis": inputs["basis"][:, :50].copy()})
    with pytest.raises(Exception, match="expected a w_min that is a number, got NaN"):
        session((3, 4, 5), float("nan"))
    with pytest.raises(Exception, match="expected an offset of 3 numbers, got 2"):
        session((3, 4, 5), 0.5, (0.1, 0.2))
    with pytest.raises(Exception, match="expected an offset of finite numbers"):
        session((3, 4, 5), 0.5, (0.1, 0.2, float("inf")))
