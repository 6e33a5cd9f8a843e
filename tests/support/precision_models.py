"""A small localization network, transformer and classifier as an ONNX graph, for the tests of reduced precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.op import DOMAIN, PROJECTIVE, SPATIAL, attach_functions, node_attributes, quotient_attributes

Array = NDArray[Any]


def pixel_basis(height: int, width: int) -> Array:
    """The rows x, y, 1 at pixel centers [3, H * W]."""
    y, x = ((2 * np.arange(size) + 1) / size - 1 for size in (height, width))
    return np.stack([np.tile(x, height), np.repeat(y, width), np.ones(height * width)]).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], opset: int = 18, shape: tuple[int, ...] = (1, 8, 8)
) -> onnx.ModelProto:
    """A checked model from ``x`` [batch, *shape] to ``y``, float32, with the functions that its nodes use."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach_functions(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    if inferred.type.tensor_type.HasField("shape"):
        model.graph.output[0].CopyFrom(inferred)
    else:  # shape inference does not support a sampler of dynamic size
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (len(shape) + 1)))
    onnx.checker.check_model(model, full_check=True)
    return model


def small_stn(
    opset: int = 18,
    transformers: int = 1,
    seed: int = 0,
    *,
    division: tuple[float, tuple[float, ...]] | None = None,
) -> onnx.ModelProto:
    """Images [N, 1, 8, 8] to scores [N, 4]; with several transformers, each warps the previous one's output.

    ``division``: w_min and offset of quotients with a theta [N, 3, 4], instead of affine transformers.
    """
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "flat": np.array([0, -1], np.int64),
        "basis": pixel_basis(8, 8),
        "theta_shape": np.array([0, 2, 3], np.int64),
        "w2": weights(6, 1, 3, 3),
        "b2": weights(6),
        "w3": weights(4, 6),
        "b3": weights(4),
    }
    nodes, image = [], "x"
    op_type, identity = SPATIAL, np.eye(2, 3, dtype=np.float32).ravel()
    attributes = node_attributes("affine", (8, 8), opset=opset)
    if division is not None:
        bump = rng.uniform(-1, 1, (1, 64)).astype(np.float32)
        constants |= {"basis": np.concatenate([pixel_basis(8, 8), bump]), "theta_shape": np.array([0, 3, 4], np.int64)}
        op_type, identity = PROJECTIVE, np.eye(3, 4, dtype=np.float32).ravel()
        attributes = node_attributes("projective", (8, 8), opset=opset) | quotient_attributes(2, *division)
    for index in range(transformers):
        p = f"t{index}_"
        constants |= {
            f"{p}w0": weights(4, 1, 3, 3),
            f"{p}b0": weights(4),
            f"{p}w1": weights(5, 144),
            f"{p}b1": weights(5),
            f"{p}w_theta": 0.3 * weights(len(identity), 5),
            f"{p}b_theta": identity,
        }
        nodes += [
            helper.make_node("Conv", [image, f"{p}w0", f"{p}b0"], [f"{p}conv"], name=f"{p}conv"),
            helper.make_node("Relu", [f"{p}conv"], [f"{p}relu"], name=f"{p}relu"),
            helper.make_node("Reshape", [f"{p}relu", "flat"], [f"{p}features"], name=f"{p}flatten"),
            helper.make_node("Gemm", [f"{p}features", f"{p}w1", f"{p}b1"], [f"{p}hidden"], name=f"{p}fc", transB=1),
            helper.make_node("Tanh", [f"{p}hidden"], [f"{p}tanh"], name=f"{p}tanh"),
            helper.make_node(
                "Gemm", [f"{p}tanh", f"{p}w_theta", f"{p}b_theta"], [f"{p}values"], name=f"{p}head", transB=1
            ),
            helper.make_node("Reshape", [f"{p}values", "theta_shape"], [f"{p}theta"]),
            helper.make_node(
                op_type,
                [image, f"{p}theta", "basis"],
                [f"{p}warped"],
                name=f"{p}stn",
                domain=DOMAIN,
                **attributes,
            ),
        ]
        image = f"{p}warped"
    nodes += [
        helper.make_node("Conv", [image, "w2", "b2"], ["conv2"], name="conv2"),
        helper.make_node("Relu", ["conv2"], ["relu2"], name="relu2"),
        helper.make_node("GlobalMaxPool", ["relu2"], ["pooled"], name="pool"),
        helper.make_node("Reshape", ["pooled", "flat"], ["vector"], name="flatten2"),
        helper.make_node("Gemm", ["vector", "w3", "b3"], ["y"], name="scores", transB=1),
    ]
    return model_of(nodes, constants, opset)


def images(count: int = 16, seed: int = 1, shape: tuple[int, ...] = (1, 8, 8)) -> Array:
    """Values in [0, 1], [count, *shape]."""
    return np.random.default_rng(seed).random((count, *shape)).astype(np.float32)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the main graph, as onnx infers it strictly."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}
