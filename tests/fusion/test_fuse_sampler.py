"""Samplers whose grid is not linear become ``stn::Sampler``: in every type and opset, or they stay with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.op import DOMAIN, attach_functions, sampler_attributes
from stn_infer.samplers import DEFAULT_SPEC, SamplerSpec
from stn_infer.sampling import sample
from tests.support.onnx_files import F16, F32, affine_model, check_only_samplers_changed, constant, make, sampler_model

BF16, DOUBLE = onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE
TYPES = {"float32": F32, "float16": F16, "bfloat16": BF16}
TOLERANCES = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}


def bent(opset: int = 18, size: tuple[int, ...] = (7, 9), mode: str = "bilinear") -> onnx.ModelProto:
    """GridSample at the sine of an input."""
    points = ["batch", *(5 for _ in size), len(size)]
    attributes = SamplerSpec(mode).attributes(opset)
    nodes = [
        helper.make_node("Sin", ["points"], ["grid"]),
        helper.make_node("GridSample", ["image", "grid"], ["warped"], name="warp", **attributes),
    ]
    inputs = {"image": (F32, ["batch", 3, *size]), "points": (F32, points)}
    return make(nodes, inputs, {"warped": (F32, ["batch", 3, *points[1:-1]])}, [], opset=opset)


def feeds(model: onnx.ModelProto, spread: float = 1.2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    shapes = {
        value.name: [dim.dim_value or 2 + (axis > 0) for axis, dim in enumerate(value.type.tensor_type.shape.dim)]
        for value in model.graph.input
    }
    return {name: generator.uniform(-spread, spread, shape).astype(np.float32) for name, shape in shapes.items()}


def run(model: onnx.ModelProto, values: dict[str, np.ndarray], *, plugin: bool = False) -> np.ndarray:
    return OrtBackend(model.SerializeToString(), threads=1, plugin=plugin).run(values)["warped"]


@pytest.mark.parametrize("opset", [16, 18, 19, 20, 22])
@pytest.mark.parametrize("size", [(7, 9), (4, 5, 6)], ids=["image", "volume"])
def test_the_written_file_runs_at_its_own_opset(size: tuple[int, ...], opset: int) -> None:
    model = bent(opset, size)
    rewritten, (finding,) = fuse(model)
    onnx.checker.check_model(rewritten, full_check=True)
    assert (finding.op, finding.written, finding.fused) == ("Sampler", True, False)
    assert finding.message.startswith(
        "GridSample became stn::Sampler: grid 'grid' is not provably linear: 'grid' (Sin)"
    )
    check_only_samplers_changed(model, rewritten)
    np.testing.assert_array_equal(run(rewritten, feeds(model)), run(model, feeds(model)))


def test_a_constant_grid_becomes_a_sampler() -> None:
    grid = np.random.default_rng(0).uniform(-1, 1, (1, 4, 5, 2)).astype(np.float32)
    node = helper.make_node("GridSample", ["image", "grid"], ["warped"])
    model = make(
        [node], {"image": (F32, [1, 3, 7, 9])}, {"warped": (F32, [1, 3, 4, 5])}, [constant(grid, "grid")], opset=18
    )
    rewritten, (finding,) = fuse(model)
    assert finding.op == "Sampler" and "depends on no input" in finding.message
    check_only_samplers_changed(model, rewritten)
    np.testing.assert_array_equal(run(rewritten, feeds(model)), run(model, feeds(model)))


def test_samplers_in_the_bodies_of_an_if() -> None:
    bodies = {
        branch: helper.make_graph(
            [
                helper.make_node("Sin", ["points"], [f"{branch}_grid"]),
                helper.make_node("GridSample", ["image", f"{branch}_grid"], [f"{branch}_out"], mode=mode),
            ],
            branch,
            [],
            [helper.make_tensor_value_info(f"{branch}_out", F32, None)],
        )
        for branch, mode in (("then_branch", "bilinear"), ("else_branch", "nearest"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["points"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["warped"], **bodies),
    ]
    inputs = {"image": (F32, ["batch", 3, 7, 9]), "points": (F32, ["batch", 5, 5, 2])}
    model = make(nodes, inputs, {"warped": (F32, None)}, [constant(0.0, "zero", np.float32)])
    rewritten, findings = fuse(model)
    assert [finding.op for finding in findings] == ["Sampler", "Sampler"]
    assert {finding.scope.split(" of ")[0] for finding in findings} == {"then_branch", "else_branch"}
    check_only_samplers_changed(model, rewritten)
    values = feeds(model)
    for sign in (1, -1):
        given = {**values, "points": sign * np.abs(values["points"])}
        np.testing.assert_array_equal(run(rewritten, given), run(model, given))


@pytest.mark.parametrize("grid", TYPES)
@pytest.mark.parametrize("image", TYPES)
@pytest.mark.parametrize("plugin", [False, True])
def test_every_pair_of_types_runs(image: str, grid: str, plugin: bool) -> None:
    """With the kernel, and with the body; coordinates are read in the grid's own precision."""
    spec = SamplerSpec("bilinear", "border", True)
    model = sampler_model(TYPES[image], TYPES[grid], spec=spec)
    onnx.checker.check_model(model, full_check=True)
    values = feeds(sampler_model(size=(7, 9)))
    stored = stored_as(values["points"], TYPES[grid])
    expected = sample(spec, stored_as(values["image"], TYPES[image]), stored)
    np.testing.assert_allclose(run(model, values, plugin=plugin), expected, atol=TOLERANCES[TYPES[image]])


def stored_as(values: np.ndarray, kind: int) -> np.ndarray:
    """The values in float64 after a conversion to a type."""
    return values.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float64)


@pytest.mark.parametrize(("image", "grid", "casts"), [(F16, F32, 0), (F16, F16, 0), (F32, F16, 1), (BF16, F16, 1)])
def test_a_grid_of_a_third_type_is_cast_to_float32(image: int, grid: int, casts: int) -> None:
    """TensorRT's plugin takes float32 and the image's type."""
    model = sampler_model(image, grid, plain=True)
    rewritten, (finding,) = fuse(model)
    assert finding.op == "Sampler"
    before, after = ([node.op_type for node in one.graph.node].count("Cast") for one in (model, rewritten))
    assert after - before == casts
    values = feeds(sampler_model())
    expected = sample(DEFAULT_SPEC, stored_as(values["image"], image), stored_as(values["points"], grid))
    np.testing.assert_allclose(run(rewritten, values), expected, atol=TOLERANCES[image])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (sampler_model(DOUBLE, DOUBLE, plain=True), "its image is double, which the op does not support"),
        (sampler_model(F32, DOUBLE, plain=True), "its grid is double, which the op does not support"),
        (bent(20, (4, 5, 6), "bicubic"), "no runtime has bicubic sampling of volumes"),
    ],
    ids=["double", "double grid", "bicubic volume"],
)
def test_a_sampler_that_the_op_does_not_support_stays_with_a_reason(model: onnx.ModelProto, reason: str) -> None:
    rewritten, (finding,) = fuse(model)
    assert (finding.op, finding.written) == ("", False)
    assert finding.message.startswith("not fused: grid ")
    assert finding.message.endswith(f"; it stays a GridSample, because {reason}")
    assert rewritten == model


def test_a_sampler_of_an_older_file_is_fused_where_its_grid_is_linear_now() -> None:
    """The proof learns new operators; the function that is no longer used leaves the file."""
    model = affine_model(sampler="Sampler", domain=DOMAIN, attributes=sampler_attributes(DEFAULT_SPEC, 18))
    attach_functions(model)
    rewritten, (finding,) = fuse(model)
    assert (finding.op, finding.written) == ("SpatialTransformer", True)
    assert [function.name for function in rewritten.functions] == ["SpatialTransformer"]
    values = {"x": np.random.default_rng(0).random((2, 1, 8, 8), np.float32)}
    before, after = (OrtBackend(one.SerializeToString(), plugin=False).run(values)["y"] for one in (model, rewritten))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_sampler_stays_if_its_grid_is_not_linear() -> None:
    rewritten, _ = fuse(bent())
    again, (finding,) = fuse(rewritten)
    assert again == rewritten
    assert (finding.op, finding.written) == ("Sampler", False)
    assert finding.message.startswith("stays stn::Sampler: grid 'grid' is not provably linear")
