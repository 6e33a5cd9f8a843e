"""The operators in numpy against onnxruntime's, over the attributes that files have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stn_infer.fusion.operators import OPERATORS
from stn_infer.proto.traversal import attributes_of

RUNS = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}


def onnxruntimes(node: onnx.NodeProto, feeds: list[np.ndarray | None], opset: int) -> np.ndarray | None:
    """The first output of one node; None if onnxruntime refuses the node."""
    inputs = [
        helper.make_tensor_value_info(name, TYPES[value.dtype.kind], value.shape)
        for name, value in zip(node.input, feeds, strict=True)
        if name and value is not None
    ]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=node.output[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    named = {name: value for name, value in zip(node.input, feeds, strict=True) if name and value is not None}
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, named)[0])
    except Exception:  # onnxruntime's errors have no common class
        return None


def check(op: str, feeds: list[np.ndarray | None], opset: int = 20, tolerance: float = 2e-5, **attributes: Any) -> bool:
    """Compares one node; false if onnxruntime refuses it, or if it has an output without elements."""
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(feeds)]
    node = helper.make_node(op, names, ["o"], **attributes)
    expected = onnxruntimes(node, feeds, opset)
    if expected is None or not expected.size:
        return False
    wide = [value if value is None or value.dtype.kind != "f" else value.astype(np.float64) for value in feeds]
    # Scales and regions are constants of the file, whatever type they are widened to.
    found = OPERATORS[op]({"num_outputs": 1, **attributes_of(node)}, wide)[0]
    case = f"{op} {attributes} {[None if value is None else value.shape for value in feeds]}"
    assert found.shape == expected.shape, case
    limit = tolerance * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=case)
    return True


def numbers(draw: st.DrawFn, *shape: int) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 2**16))).standard_normal(shape).astype(np.float32)


MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


@st.composite
def resizes(draw: st.DrawFn) -> tuple[list[np.ndarray | None], dict[str, Any]]:
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
    how = draw(st.sampled_from((*MODES, "tf_crop_and_resize")))
    spatial = draw(st.integers(1, 3)) if mode == "nearest" else 2
    lengths = [draw(st.integers(1, 9)) for _ in range(spatial)]
    data = numbers(draw, 2, 3, *lengths)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": how}
    if mode == "nearest":
        attributes["nearest_mode"] = draw(st.sampled_from(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")))
    if mode == "cubic":
        attributes["cubic_coeff_a"] = draw(st.sampled_from((-0.75, -0.5)))
        attributes["exclude_outside"] = draw(st.integers(0, 1))
    if mode != "nearest" and draw(st.booleans()):
        attributes["antialias"] = 1
    if how == "tf_crop_and_resize":
        attributes["extrapolation_value"] = draw(st.sampled_from((0.0, 1.5)))
    partly = draw(st.booleans())
    if partly:
        attributes["axes"] = list(range(2, 2 + spatial))
    front = 0 if partly else 2
    region = None
    if how == "tf_crop_and_resize":
        starts = [draw(st.sampled_from((0.0, 0.25, -0.2))) for _ in lengths]
        ends = [draw(st.sampled_from((1.0, 0.75, 1.2))) for _ in lengths]
        region = np.array([0.0] * front + starts + [1.0] * front + ends, np.float32)
    if draw(st.booleans()):
        sizes = [draw(st.integers(1, 13)) for _ in lengths]
        if draw(st.booleans()) and how != "tf_crop_and_resize":
            attributes["keep_aspect_ratio_policy"] = draw(st.sampled_from(("not_larger", "not_smaller")))
            attributes["axes"], front = list(range(2, 2 + spatial)), 0
        return [data, region, None, np.array([*data.shape[:front], *sizes])], attributes
    scales = [draw(st.sampled_from((1.0, 2.0, 3.0, 0.5, 1.5, 0.7, 2.6))) for _ in lengths]
    return [data, region, np.array([1.0] * front + scales, np.float32)], attributes


@given(resizes())
@settings(RUNS, max_examples=60)
def test_resize(case: tuple[list[np.ndarray | None], dict[str, Any]]) -> None:
    feeds, attributes = case
    assume(check("Resize", feeds, **attributes))


def test_nearest_neighbors_of_every_size() -> None:
    """Positions on the border between two elements are rounded as onnxruntime does, in float32."""
    for before in (1, 2, 6, 9, 14, 18, 22):
        data = np.arange(before, dtype=np.float32).reshape(1, 1, before, 1)
        for after in (1, 7, 15, 18, 31):
            for nearest in ("floor", "round_prefer_floor"):
                how = "asymmetric" if nearest == "floor" else "half_pixel"
                sizes = np.array([1, 1, after, 1])
                assert check(
                    "Resize",
                    [data, None, None, sizes],
                    mode="nearest",
                    coordinate_transformation_mode=how,
                    nearest_mode=nearest,
                )


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[str, list[np.ndarray | None], dict[str, Any]]:
    op = draw(st.sampled_from(("Conv", "ConvTranspose")))
    spatial, groups = draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2, 3)))
    lengths = [draw(st.integers(1, 7)) for _ in range(spatial)]
    kernel = [draw(st.integers(1, 4)) for _ in range(spatial)]
    taken, made = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    data = numbers(draw, 2, groups * taken, *lengths)
    shape = (groups * made, taken) if op == "Conv" else (groups * taken, made)
    attributes: dict[str, Any] = {"group": groups}
    strides = [draw(st.integers(1, 3)) for _ in range(spatial)]
    if draw(st.booleans()):
        attributes["strides"] = strides
    if draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 3)) for _ in range(spatial)]
    padding = draw(st.sampled_from(("none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * spatial)]
    elif padding != "none":
        attributes["auto_pad"] = padding
    if op == "ConvTranspose" and draw(st.booleans()):
        attributes["strides"] = strides
        attributes["output_padding"] = [draw(st.integers(0, max(0, stride - 1))) for stride in strides]
    bias = numbers(draw, groups * made) if draw(st.booleans()) else None
    return op, [data, numbers(draw, *shape, *kernel), bias][: 3 if bias is not None else 2], attributes


@given(convolutions())
@settings(RUNS, max_examples=40)
def test_convolutions(case: tuple[str, list[np.ndarray | None], dict[str, Any]]) -> None:
    op, feeds, attributes = case
    assume(check(op, feeds, **attributes))


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    spatial = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4)) for _ in range(spatial)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "count_include_pad": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        attributes["strides"] = [draw(st.integers(1, 3)) for _ in range(spatial)]
    padding = draw(st.sampled_from(("none", "pads", "SAME_UPPER", "SAME_LOWER")))
    if padding in ("none", "pads") and draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(spatial)]
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, size // 2)) for size in kernel] * 2
    elif padding != "none":
        attributes["auto_pad"] = padding
    if padding in ("none", "pads"):
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    if padding.startswith("SAME"):  # runtimes disagree where windows do not touch
        attributes["strides"] = [min(pair) for pair in zip(attributes.get("strides", kernel), kernel, strict=True)]
    gaps = attributes.get("dilations", [1] * spatial)
    least = [(size - 1) * gap + 1 for size, gap in zip(kernel, gaps, strict=True)]
    return numbers(draw, 2, 3, *(draw(st.integers(size, 8)) for size in least)), attributes


@given(pools())
@settings(RUNS, max_examples=40)
def test_average_pool(case: tuple[np.ndarray, dict[str, Any]]) -> None:
    data, attributes = case
    assume(check("AveragePool", [data], **attributes))


@st.composite
def samplings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    spatial = draw(st.integers(2, 3))
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")[: 3 if spatial == 2 else 2]))
    padding = draw(st.sampled_from(("zeros", "border", "reflection")))
    image = numbers(draw, 2, 3, *(draw(st.integers(1, 6)) for _ in range(spatial)))
    grid = 1.3 * numbers(draw, 2, *(draw(st.integers(1, 5)) for _ in range(spatial)), spatial)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": draw(st.integers(0, 1))}
    return image, grid, attributes


@given(samplings())
@settings(RUNS, max_examples=30)
def test_grid_sample(case: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    image, grid, attributes = case
    assume(check("GridSample", [image, grid], **attributes))


@given(st.data())
@RUNS
def test_selections(data: st.DataObject) -> None:
    draw = data.draw
    shape = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 4)))]
    values = numbers(draw, *shape)
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    batch = draw(st.integers(0, len(shape) - 1))
    indexed = draw(st.integers(1, len(shape) - batch))
    ends = shape[batch : batch + indexed]
    place = [*shape[:batch], 3]
    indices = np.stack([generator.integers(-end, end, place) for end in ends], -1)
    assert check("GatherND", [values, indices], batch_dims=batch)
    picks = generator.integers(-shape[axis], shape[axis], [*shape[:axis], 5, *shape[axis:][1:]])
    assert check("GatherElements", [values, picks], axis=axis)
    unique = np.argsort(generator.random(shape), axis=axis)
    assert check("ScatterElements", [values, unique, numbers(draw, *shape)], axis=axis)
    assert check("ScatterElements", [values, unique // 2, numbers(draw, *shape)], axis=axis, reduction="add")
    rows = generator.integers(0, shape[0], (3, 1))
    assert check("ScatterND", [values, rows, numbers(draw, 3, *shape[1:])], reduction="add")
    check("Compress", [values, generator.random(shape[axis]) > 0.4], axis=axis)
    assert check("Trilu", [values, np.array(draw(st.integers(-2, 2)))], upper=draw(st.integers(0, 1)))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str) -> None:
    values = np.random.default_rng(0).standard_normal((2, 18, 2, 4)).astype(np.float32)
    assert check("DepthToSpace", [values], mode=mode, blocksize=3)
    assert check("SpaceToDepth", [values], blocksize=2)


def test_means_and_normalization() -> None:
    generator = np.random.default_rng(1)
    values = generator.standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert check("GlobalAveragePool", [values])
    rows = [generator.random(3).astype(np.float32) + 0.5 for _ in range(4)]
    assert check("BatchNormalization", [values, *rows], epsilon=1e-3)
