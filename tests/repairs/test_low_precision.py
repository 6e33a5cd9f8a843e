"""Quantization and half precision between theta and a sampler: found with their step in pixels, and taken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stn_infer.api.lint import lint
from stn_infer.api.optimize import optimize
from stn_infer.fusion.fuse import fuse
from stn_infer.proto.edit import copy_of
from stn_infer.proto.session import Stored, open_session
from stn_infer.repairs.low_precision import quantized_tensors, without_half_grids, without_quantized_grids
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import sample
from tests.support.onnx_files import F16, F32, affine_model, constant, flow_model, make

SCALE = 2 / 127


def quantized(model: onnx.ModelProto, tensors: tuple[str, ...], scale: float = SCALE, zero: int = 0) -> onnx.ModelProto:
    """A copy in which every reader of ``tensors`` gets them quantized to int8 and back."""
    copy = copy_of(model)
    nodes = []
    for node in copy.graph.node:
        node.input[:] = [f"{name}_dq" if name in tensors else name for name in node.input]
        nodes.append(node)
        for name in node.output:
            if name in tensors:
                parameters = [f"{name}_scale", f"{name}_zero"]
                nodes.append(helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"]))
                copy.graph.initializer.append(constant(scale, parameters[0], np.float32))
                copy.graph.initializer.append(constant(zero, parameters[1], np.int8))
    for value in copy.graph.output:
        assert value.name not in tensors
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def run(model: onnx.ModelProto, **feeds: Any) -> Any:
    return open_session(Stored(model), optimized=False).run(feeds)[0]


def images(dtype: Any = np.float32) -> Any:
    return np.random.default_rng(3).standard_normal((3, 1, 8, 8)).astype(dtype)


@pytest.mark.parametrize("tensors", [("grid",), ("t",), ("t", "theta", "points", "grid")])
def test_the_path_reads_what_was_before_quantization(tensors: tuple[str, ...]) -> None:
    plain = affine_model()
    model = quantized(plain, tensors)
    assert {entry.tensor for entry in quantized_tensors(model)} == {f"{name}_dq" for name in tensors}
    result = without_quantized_grids(model)
    assert result.changed and all(note.done for note in result.notes)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in result.model.graph.node}
    np.testing.assert_array_equal(run(result.model, x=images()), run(plain, x=images()))
    assert not np.allclose(run(model, x=images()), run(plain, x=images()), atol=1e-4)


def test_what_is_before_theta_stays_quantized() -> None:
    model = quantized(affine_model(), ("r", "t"))
    result = without_quantized_grids(model)
    names = [node.output[0] for node in result.model.graph.node if node.op_type == "DequantizeLinear"]
    assert names == ["r_dq"]
    np.testing.assert_array_equal(run(result.model, x=images()), run(quantized(affine_model(), ("r",)), x=images()))


def test_other_readers_keep_the_quantized_tensor() -> None:
    model = quantized(affine_model(), ("t",))
    model.graph.node.append(helper.make_node("Identity", ["t_dq"], ["parameters"]))
    model.graph.output.append(helper.make_tensor_value_info("parameters", F32, ["n", 6]))
    result = without_quantized_grids(model)
    before, after = (open_session(Stored(it), optimized=False).run({"x": images()}) for it in (model, result.model))
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[0], run(affine_model(), x=images()))


@pytest.mark.parametrize("what", ["constant", "other parameters"])
def test_what_the_file_no_longer_has_stays_and_is_named(what: str) -> None:
    if what == "constant":
        model = affine_model()
        mesh = next(tensor for tensor in model.graph.initializer if tensor.name == "mesh")
        integers = np.round(onnx.numpy_helper.to_array(mesh) / SCALE).astype(np.int8)
        mesh.CopyFrom(constant(integers, "mesh_q"))
        model.graph.initializer.extend([constant(SCALE, "scale", np.float32), constant(0, "zero", np.int8)])
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["mesh_q", "scale", "zero"], ["mesh"]))
    else:
        model = quantized(affine_model(), ("grid",))
        dequantize = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
        dequantize.input[1] = "other"
        model.graph.initializer.append(constant(2 * SCALE, "other", np.float32))
    result = without_quantized_grids(model)
    assert result.model is model
    (note,) = result.notes
    assert not note.done and "is stored or computed in integers only" in note.message
    (found,) = quantized_tensors(model)
    assert found.source == "" and found.scale == pytest.approx(SCALE * (1 if what == "constant" else 2))


def test_steps_in_pixels_and_the_repair_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(quantized(affine_model(), ("t", "grid")).SerializeToString())
    found = [finding for finding in lint(path).findings if finding.code == "quantized-grid"]
    assert {finding.tensor for finding in found} == {"t_dq", "grid_dq"}
    for finding in found:
        assert finding.fixable and finding.node == "sample" and "steps of 0.063 px at width 8" in finding.message
    report = optimize(path, tmp_path / "out.onnx")
    assert report.fused == 1 and "no longer quantized" in " ".join(report.notes)
    assert "quantized-grid" not in {finding.code for finding in lint(tmp_path / "out.onnx").findings}
    np.testing.assert_allclose(
        run(onnx.load(tmp_path / "out.onnx"), x=images()), run(affine_model(), x=images()), atol=1e-5
    )


def test_a_file_without_quantization_is_the_same() -> None:
    model = affine_model()
    assert without_quantized_grids(model).model is model and list(quantized_tensors(model)) == []


# ---- half precision ----------------------------------------------------------------------------------------------


def bent(kind: int = F16) -> onnx.ModelProto:
    """A half-precision grid that is not linear in theta: theta times a mesh, plus its square."""
    nodes = [
        helper.make_node("MatMul", ["mesh", "theta"], ["points"]),
        helper.make_node("Mul", ["points", "points"], ["squared"]),
        helper.make_node("Mul", ["squared", "tenth"], ["small"]),
        helper.make_node("Add", ["points", "small"], ["bent"]),
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "rest"], ["size"], axis=0),
        helper.make_node("Reshape", ["bent", "size"], ["grid"]),
        helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample", align_corners=1),
    ]
    axis = np.linspace(-1, 1, 256)  # not exact in half precision
    mesh = np.stack([*np.meshgrid(axis, axis[::32]), np.ones((8, 256))], -1).reshape(1, -1, 3)
    weights = [constant(mesh, "mesh", np.float16), constant(0.1, "tenth", np.float16), constant([8, 256, 2], "rest")]
    graph_inputs = {"x": (kind, ["n", 1, 8, 1024]), "theta": (kind, ["n", 3, 2])}
    return make(nodes, graph_inputs, {"y": (kind, ["n", 1, 8, 256])}, weights)


def test_a_half_grid_that_cannot_be_fused_is_computed_in_float32() -> None:
    model = bent()
    result = without_half_grids(model)
    assert result.changed and result.notes[0].code == "half-grid" and result.notes[0].done
    onnx.checker.check_model(result.model, full_check=True)
    generator = np.random.default_rng(4)
    x = generator.standard_normal((2, 1, 8, 1024)).astype(np.float16)
    theta = np.stack([np.eye(3, 2) + 0.05 * generator.standard_normal((3, 2)) for _ in range(2)]).astype(np.float16)
    mesh = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    points = mesh @ theta.astype(np.float64)
    exact = (points + float(np.float16(0.1)) * points**2).reshape(2, 8, 256, 2)
    sampler = next(node for node in result.model.graph.node if node.op_type == "GridSample")
    result.model.graph.output.append(helper.make_tensor_value_info(sampler.input[1], F32, None))
    warped, grid = open_session(Stored(result.model), optimized=False).run({"x": x, "theta": theta})
    assert np.abs(grid - exact).max() < 1e-6 < 1e-4 < np.abs(exact.astype(np.float16) - exact).max()
    expected = sample(SamplerSpec(align_corners=True), x.astype(np.float64), exact)
    assert warped.dtype == np.float16 and np.abs(warped - expected).max() < 4e-3


def test_a_flow_field_in_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    model = flow_model(image=F16, grid=F16)
    result = without_half_grids(model)
    sampler = next(node for node in result.model.graph.node if node.op_type == "GridSample")
    kinds = {value.name: value.type.tensor_type.elem_type for value in _inferred(result.model)}
    assert {kinds[name] for name in (*sampler.input, *sampler.output)} == {TensorProto.FLOAT}
    assert kinds["y"] == F16


@pytest.mark.parametrize("image", [F32, F16])
def test_our_sampler_gets_a_float32_grid_and_keeps_its_image(image: int) -> None:
    model, findings = fuse(flow_model(image=image, grid=F16))
    assert [finding.op for finding in findings] == ["Sampler"]
    result = without_half_grids(model)
    (sampler,) = (node for node in result.model.graph.node if node.op_type == "Sampler")
    (before,) = (node for node in model.graph.node if node.op_type == "Sampler")
    assert sampler.input[0] == before.input[0] and sampler.output[0] == before.output[0]
    made = {name: node for node in result.model.graph.node for name in node.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in _inferred(result.model)}
    seen, stack = set(), [sampler.input[1]]
    while stack:
        name = stack.pop()
        seen.add(name)
        if name in made and made[name].op_type not in ("Conv", "Cast"):
            stack.extend(made[name].input)
    assert {kinds[name] for name in seen if kinds.get(name) in (F32, F16)} <= {F32}
    found, expected = (run(it, x=images()).astype(np.float32) for it in (result.model, model))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_float32_grids_stay() -> None:
    model = flow_model()
    assert without_half_grids(model).model is model


def _inferred(model: onnx.ModelProto) -> list[Any]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return [*graph.value_info, *graph.input, *graph.output]
