"""Finding the nodes that compute sampling grids."""

from __future__ import annotations

import numpy as np
from onnx import helper

from stn_infer.precision.coordinates import coordinate_nodes
from tests.support.precision_models import model_of, small_stn


def names(model: object, *, whole_head: bool = False) -> set[str]:
    found = coordinate_nodes(model, whole_head=whole_head)  # type: ignore[arg-type]
    return {model.graph.node[index].name or model.graph.node[index].op_type for index in found}  # type: ignore[attr-defined]


def test_from_theta_back_to_the_layer_that_outputs_it() -> None:
    assert names(small_stn()) == {"Reshape", "t0_head"}
    assert names(small_stn(transformers=2)) == {"Reshape", "t0_head", "t1_head"}


def test_the_whole_head_ends_at_the_last_convolution() -> None:
    assert names(small_stn(), whole_head=True) == {"Reshape", "t0_head", "t0_tanh", "t0_fc", "t0_flatten", "t0_relu"}


def test_a_product_of_points_and_a_basis_is_not_a_layer() -> None:
    """[N, 2, 3] times [3, P] is coordinate arithmetic; the traversal ends at the layer before it."""
    rng = np.random.default_rng(0)
    model = model_of(
        [
            helper.make_node("Reshape", ["x", "flat"], ["f"], name="flatten"),
            helper.make_node("MatMul", ["f", "w0"], ["h"], name="hidden"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w"], ["p"], name="layer"),
            helper.make_node("Reshape", ["p", "shape"], ["theta"], name="theta"),
            helper.make_node("MatMul", ["theta", "basis"], ["points"], name="points"),
            helper.make_node("Transpose", ["points"], ["turned"], name="turned", perm=[0, 2, 1]),
            helper.make_node("Reshape", ["turned", "grid_shape"], ["grid"], name="grid"),
            helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample"),
        ],
        {
            "flat": np.array([0, -1], np.int64),
            "w0": rng.standard_normal((64, 4)).astype(np.float32),
            "w": rng.standard_normal((4, 6)).astype(np.float32),
            "shape": np.array([0, 2, 3], np.int64),
            "basis": rng.standard_normal((3, 64)).astype(np.float32),
            "grid_shape": np.array([0, 8, 8, 2], np.int64),
        },
    )
    assert names(model) == {"layer", "theta", "points", "turned", "grid"}
    assert names(model, whole_head=True) == {
        "flatten",
        "hidden",
        "relu",
        "layer",
        "theta",
        "points",
        "turned",
        "grid",
    }


def test_a_sampled_field_of_coordinates_is_traced() -> None:
    """Composed flows: the inner sampler samples coordinates, and the traversal ends at the layer that outputs them."""
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["flow"], name="flow"),
            helper.make_node("Transpose", ["flow"], ["inner_grid"], name="inner_grid", perm=[0, 2, 3, 1]),
            helper.make_node("GridSample", ["flow", "inner_grid"], ["composed"], name="compose"),
            helper.make_node("Transpose", ["composed"], ["grid"], name="grid", perm=[0, 2, 3, 1]),
            helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample"),
        ],
        {"w": np.ones((2, 1, 1, 1), np.float32)},
    )
    assert names(model) == {"flow", "inner_grid", "compose", "grid"}
