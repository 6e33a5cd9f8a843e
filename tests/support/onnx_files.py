"""Small ONNX files for the tests of optimize, lint and the gate, built node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.op import DOMAIN, SAMPLER, attach_functions, sampler_attributes
from stn_infer.fusion.samplers import spec_of
from stn_infer.proto.traversal import nested_nodes, producers, walk_back
from stn_infer.samplers import DEFAULT_SPEC, SamplerSpec

Array = NDArray[Any]
F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16


def constant(values: Any, name: str, dtype: Any = None) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def behind(model: onnx.ModelProto, name: str) -> set[str]:
    """A tensor and all that it is computed from."""
    makers = producers(model.graph.node)
    return set(walk_back([name], lambda tensor: model.graph.node[makers[tensor]].input if tensor in makers else ()))


def make(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any] | None]],
    outputs: dict[str, tuple[int, list[Any] | None]],
    weights: list[TensorProto],
    *,
    opset: int = 18,
    ir_version: int = 9,
    domains: tuple[str, ...] = (),
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        weights,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions or [])


def localization(
    generator: np.random.Generator, *, channels: int = 1
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """x [n, C, 8, 8] -> t [n, 6] near the identity, behind a convolution and a ReLU."""
    nodes = [
        helper.make_node(
            "Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]
        ),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc_w", "fc_b"], ["t"], name="fc", transB=1),
    ]
    weights = [
        constant(generator.standard_normal((2, 1, 3, 3)), "w", np.float32),
        constant(generator.standard_normal((6, 32)) * 0.05, "fc_w", np.float32),
        constant([1, 0.1, 0.05, -0.1, 0.9, 0], "fc_b", np.float32),
    ]
    return nodes, weights


def mesh(height: int, width: int, *, corners: bool = False) -> Array:
    """[height * width, 3]: x, y, 1."""
    axes = [np.linspace(-1, 1, size) if corners else (2 * np.arange(size) + 1) / size - 1 for size in (height, width)]
    y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1).astype(np.float32)


def affine_model(
    *,
    opset: int = 18,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: int = 0,
    corners: bool = False,
    batch: Any = "n",
    sampler: str = "GridSample",
    domain: str = "",
    attributes: dict[str, Any] | None = None,
    ir_version: int = 9,
    seed: int = 0,
) -> onnx.ModelProto:
    """A spatial transformer [n, 1, 8, 8] -> [n, 1, 8, 8] with a constant mesh, in plain ONNX."""
    nodes, weights = localization(np.random.default_rng(seed))
    if attributes is None:
        attributes = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    nodes += [
        helper.make_node("Reshape", ["t", "theta_shape"], ["theta"], name="theta"),
        helper.make_node("Transpose", ["theta"], ["theta_t"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["mesh", "theta_t"], ["points"], name="points"),
        helper.make_node("Reshape", ["points", "grid_shape"], ["grid"], name="grid"),
        helper.make_node(sampler, ["x", "grid"], ["y"], name="sample", domain=domain, **attributes),
    ]
    weights += [
        constant([-1, 2, 3], "theta_shape"),
        constant(mesh(8, 8, corners=corners), "mesh"),
        constant([-1, 8, 8, 2], "grid_shape"),
    ]
    return make(
        nodes,
        {"x": (F32, [batch, 1, 8, 8])},
        {"y": (F32, [batch, 1, 8, 8])},
        weights,
        opset=opset,
        ir_version=ir_version,
        domains=(domain,) if domain else (),
    )


def affine_grid_model(opset: int = 20, volume: bool = False) -> onnx.ModelProto:
    """AffineGrid at opset 20 or later; theta is an input."""
    spatial, rows = ([4, 6, 8], 3) if volume else ([6, 8], 2)
    weights = [constant([1, *spatial], "rest"), constant([0], "zero"), constant([1], "one")]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"], name="batch"),
        helper.make_node("Concat", ["batch", "rest"], ["size"], name="size", axis=0),
        helper.make_node("AffineGrid", ["theta", "size"], ["grid"], name="affine", align_corners=1),
        helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample", mode="linear", align_corners=1),
    ]
    return make(
        nodes,
        {"x": (F32, ["n", 1, *spatial]), "theta": (F32, ["n", rows, rows + 1])},
        {"y": (F32, ["n", 1, *spatial])},
        weights,
        opset=opset,
    )


def flow_model(*, opset: int = 18, image: int = F32, grid: int = F32, mode: str = "bilinear") -> onnx.ModelProto:
    """A dense flow field from a convolution, added to the identity grid, in the types given."""
    dtype = {F32: np.float32, F16: np.float16}[grid]
    generator = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["flow"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["flow"], ["moved"], name="transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["moved"], ["moved_grid"], name="cast", to=grid),
        helper.make_node("Add", ["moved_grid", "mesh"], ["grid"], name="add"),
        helper.make_node("Cast", ["x"], ["image"], name="image", to=image),
        helper.make_node("GridSample", ["image", "grid"], ["y"], name="sample", mode=mode),
    ]
    weights = [
        constant(generator.standard_normal((2, 1, 3, 3)) * 0.02, "w", np.float32),
        constant(mesh(8, 8)[:, :2].reshape(1, 8, 8, 2), "mesh", dtype),
    ]
    return make(nodes, {"x": (F32, ["n", 1, 8, 8])}, {"y": (image, ["n", 1, 8, 8])}, weights, opset=opset)


def half_model(width: int = 64) -> onnx.ModelProto:
    """An affine transformer wholly in float16, at opset 18; theta is an input."""
    nodes = [
        helper.make_node("Transpose", ["theta"], ["theta_t"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["mesh", "theta_t"], ["points"], name="points"),
        helper.make_node("Reshape", ["points", "grid_shape"], ["grid"], name="grid"),
        helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample", mode="bilinear"),
    ]
    weights = [constant(mesh(8, width), "mesh", np.float16), constant([-1, 8, width, 2], "grid_shape")]
    return make(
        nodes,
        {"x": (F16, ["n", 1, 8, width]), "theta": (F16, ["n", 2, 3])},
        {"y": (F16, ["n", 1, 8, width])},
        weights,
    )


def then(model: onnx.ModelProto, operator: str, number: float) -> onnx.ModelProto:
    """A copy that applies ``operator`` to its only output and ``number``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (output,) = (value.name for value in copy.graph.output)
    before, operand = f"{output}_before_{operator}", f"{output}_{operator}_by"
    while any(before in node.output for node in copy.graph.node):
        before, operand = f"{before}_again", f"{operand}_again"
    for node in copy.graph.node:
        node.output[:] = [before if name == output else name for name in node.output]
        node.input[:] = [before if name == output else name for name in node.input]
    copy.graph.node.append(helper.make_node(operator, [before, operand], [output]))
    copy.graph.initializer.append(constant(number, operand, np.float32))
    return copy


def check_only_samplers_changed(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Nothing but the op of each GridSample differs: all became ``stn::Sampler``, at the same grids."""
    assert list(after.graph.initializer) == list(before.graph.initializer)
    nodes = list(nested_nodes(before.graph.node)), list(nested_nodes(after.graph.node))
    for one, other in zip(*nodes, strict=True):
        assert (one.input, one.output) == (other.input, other.output)
        if one.op_type == "GridSample":
            assert (other.domain, other.op_type) == ("stn", "Sampler")
            assert spec_of(one) == spec_of(other)
        else:
            assert (other.domain, other.op_type) == (one.domain, one.op_type)


def sampler_model(
    image: int = F32,
    grid: int = F32,
    opset: int = 18,
    size: tuple[int, ...] = (7, 9),
    *,
    spec: SamplerSpec = DEFAULT_SPEC,
    plain: bool = False,
) -> onnx.ModelProto:
    """``stn::Sampler``, or GridSample if ``plain``, with casts inside so that image, grid and result are float32."""
    rank = len(size)
    attributes = spec.attributes(opset) if plain else sampler_attributes(spec, opset)
    op, domain = ("GridSample", "") if plain else (SAMPLER, DOMAIN)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=image),
        helper.make_node("Cast", ["points"], ["grid"], to=grid),
        helper.make_node(op, ["x", "grid"], ["y"], name="sampler", domain=domain, **attributes),
        helper.make_node("Cast", ["y"], ["warped"], to=F32),
    ]
    points = ["batch", *(f"out{axis}" for axis in range(rank)), rank]
    inputs = {"image": (F32, ["batch", 3, *size]), "points": (F32, points)}
    model = make(nodes, inputs, {"warped": (F32, ["batch", 3, *points[1:-1]])}, [], opset=opset)
    attach_functions(model)
    return model
