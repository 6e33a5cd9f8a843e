"""The comparison of a rewritten file with the original, its random inputs, and widening of half precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.errors import ModelError, UsageError, VerificationError
from stn_infer.proto.inputs import parse_named_shapes, plan_inputs, random_feeds
from stn_infer.proto.retype import has_halves, widen
from stn_infer.proto.session import Stored, open_session
from stn_infer.repairs.equivalence import Equivalence, compare
from tests.support.onnx_files import F16, F32, affine_model, constant, half_model, make, then


def compared(original: onnx.ModelProto, rewritten: onnx.ModelProto, **options: Any) -> Equivalence:
    return compare(Stored(original), Stored(rewritten), plan_inputs(original), **options)


def shifted(model: onnx.ModelProto, pixels: float) -> onnx.ModelProto:
    """The same transformer with its mesh shifted to the right by ``pixels`` of 8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (mesh,) = (tensor for tensor in copy.graph.initializer if tensor.name == "mesh")
    values = np.array(numpy_helper.to_array(mesh))
    values[:, 0] += pixels * 2 / 8
    mesh.CopyFrom(numpy_helper.from_array(values, "mesh"))
    return copy


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_a_model_equals_itself(mode: str) -> None:
    found = compared(affine_model(mode=mode), affine_model(mode=mode))
    assert found.worst == 0 and found.runs == "batch 1 and 3" and not found.widened


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_thousandth_of_a_pixel_is_detected(mode: str) -> None:
    with pytest.raises(VerificationError, match="output 'y' is off by"):
        compared(affine_model(mode=mode), shifted(affine_model(mode=mode), 1e-3))


def test_nearest_sampling_may_flip_single_values_only() -> None:
    model = affine_model(mode="nearest")
    with pytest.raises(VerificationError, match=r"of its values differ, but rounding flips only 0\.00%"):
        compared(model, shifted(model, 0.2))
    assert compared(model, shifted(model, 1e-7)).outputs[0].flips <= 0.01


def test_rounding_is_allowed_and_reported() -> None:
    found = compared(affine_model(), shifted(affine_model(), 1e-6), tolerance=1e-9)
    assert 0 < found.worst <= found.outputs[0].limit < 1e-4


def test_integer_and_boolean_outputs_must_agree() -> None:
    def classes(threshold: float) -> onnx.ModelProto:
        model = affine_model()
        model.graph.node[-1].output[0] = "sampled"
        model.graph.node.append(helper.make_node("Greater", ["sampled", "threshold"], ["y"]))
        model.graph.initializer.append(constant(threshold, "threshold", np.float32))
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
        return model

    assert compared(classes(0.1), classes(0.1)).outputs[0].flips == 0
    with pytest.raises(VerificationError, match="of its bool values differ"):
        compared(classes(0.1), classes(0.3))


def test_another_shape_and_nan_are_detected() -> None:
    flat = affine_model()
    flat.graph.node[-1].output[0] = "sampled"
    flat.graph.node.append(helper.make_node("Flatten", ["sampled"], ["y"]))
    del flat.graph.output[0].type.tensor_type.shape.dim[2:]
    with pytest.raises(VerificationError, match=r"float32 \[1, 1, 8, 8\] in the original, but float32 \[1, 64\]"):
        compared(affine_model(), flat)
    nan = affine_model()
    nan.graph.node[-1].output[0] = "sampled"
    nan.graph.node.append(helper.make_node("Mul", ["sampled", "nan"], ["y"]))
    nan.graph.initializer.append(constant(np.nan, "nan", np.float32))
    with pytest.raises(VerificationError, match="off by inf"):
        compared(affine_model(), nan)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-6, 1e-12])
def test_an_output_is_compared_on_its_own_scale(size: float, mode: str) -> None:
    small = then(affine_model(mode=mode), "Mul", size)
    assert compared(small, small).worst == 0
    with pytest.raises(VerificationError, match=r"off by 1\.00e-04|of its values differ"):
        compared(small, then(small, "Mul", 1 + 1e-4))


def test_infinities_must_agree_in_sign_and_position() -> None:
    infinite = then(affine_model(), "Div", 0.0)  # NaN where the image is 0
    assert compared(infinite, infinite).worst == 0
    with pytest.raises(VerificationError, match="off by inf"):
        compared(infinite, then(infinite, "Mul", -1.0))


def test_rounding_by_onnxruntime_s_optimizations_is_not_an_error() -> None:
    """3 (w * x) - (3 w) * x is only rounding, which differs if onnxruntime multiplies the weights beforehand."""
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "three"], ["b"]),
        helper.make_node("Conv", ["x", "w3"], ["c"]),
        helper.make_node("Sub", ["b", "c"], ["y"]),
    ]
    constants = {"w": weights, "w3": 3 * weights, "three": np.full((1, 4, 1, 1), 3)}
    model = make(
        nodes,
        {"x": (F32, ["n", 3, 8, 8])},
        {"y": (F32, ["n", 4, 6, 6])},
        [constant(value, name, np.float32) for name, value in constants.items()],
    )
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    plain, optimized = (open_session(Stored(model), optimized=way).run({"x": x})[0] for way in (False, True))
    assert 0 < np.abs(plain).max() < 1e-5 and np.abs(plain - optimized).max() > 0.1 * np.abs(plain).max()
    assert compared(model, model).worst == 0
    with pytest.raises(VerificationError, match="off by"):
        compared(model, then(model, "Add", 1e-4))


def test_half_precision_is_compared_in_float32() -> None:
    assert has_halves(half_model()) and not has_halves(affine_model())
    found = compared(half_model(), half_model())
    assert found.widened and found.rounding == 0
    wide = widen(half_model())
    assert not has_halves(wide) and has_halves(half_model())
    onnx.checker.check_model(wide, full_check=True)
    mesh = next(numpy_helper.to_array(tensor) for tensor in wide.graph.initializer if tensor.name == "mesh")
    assert mesh.dtype == np.float32


def test_external_half_precision_weights_are_cast(tmp_path: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = [constant(np.random.default_rng(0).standard_normal((8, 600)), "w", np.float16)]
    model = make(nodes, {"x": (F16, ["n", 8])}, {"y": (F16, ["n", 600])}, weights)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    stored = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    session = open_session(Stored(widen(stored), tmp_path))
    x = np.eye(8, dtype=np.float32)
    np.testing.assert_array_equal(
        session.run({"x": x})[0], np.fromfile(tmp_path / "w.bin", np.float16).reshape(8, 600).astype(np.float32)
    )


def test_shapes_by_name() -> None:
    assert parse_named_shapes(["x=1,2,3", "a=b=4x5", "6"]) == {"x": (1, 2, 3), "a=b": (4, 5), "": (6,)}
    for text in ("x=", "=1,2", "x=0,2", "x=1.5", "x=-1"):
        with pytest.raises(UsageError, match="NAME=2,3,64,64"):
            parse_named_shapes([text])
    with pytest.raises(UsageError, match="twice"):
        parse_named_shapes(["x=1", "x=2"])


def test_inputs_have_the_file_s_types_and_shapes() -> None:
    inputs: dict[str, Any] = {
        "x": (F32, ["n", 1, "h", "w"]),
        "other": (F32, ["n", "w"]),
        "rows": (TensorProto.INT64, [3]),
        "pixels": (TensorProto.UINT8, ["n", 2]),
        "on": (TensorProto.BOOL, []),
    }
    model = make([helper.make_node("Identity", ["x"], ["y"])], inputs, {"y": (F32, None)}, [])
    feeds = random_feeds(plan_inputs(model), 5, 9, np.random.default_rng(0))
    assert {name: value.shape for name, value in feeds.items()} == {
        "x": (5, 1, 9, 9),
        "other": (5, 9),
        "rows": (3,),
        "pixels": (5, 2),
        "on": (),
    }
    assert feeds["rows"].dtype == np.int64 and set(feeds["rows"]) <= {0, 1}
    assert feeds["pixels"].dtype == np.uint8 and feeds["on"].dtype == np.bool_
    feeds = random_feeds(plan_inputs(model, {"x": (1, 6, 7)}), 2, 9, np.random.default_rng(0))
    assert feeds["x"].shape == (2, 1, 6, 7) and feeds["other"].shape == (2, 7), "a symbol denotes one size"
    with pytest.raises(UsageError, match="too large to run on random values"):
        random_feeds(plan_inputs(model, {"x": (1, 1 << 15, 1 << 15)}), 2, 9, np.random.default_rng(0))
    with pytest.raises(UsageError, match="needs an input name"):
        plan_inputs(model, {"": (1, 6, 7)})


def test_string_inputs_are_rejected() -> None:
    model = make([helper.make_node("Identity", ["x"], ["y"])], {"x": (TensorProto.STRING, [1])}, {"y": (F32, None)}, [])
    with pytest.raises(ModelError, match="is not a numeric tensor"):
        plan_inputs(model)
