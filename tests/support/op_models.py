"""A model of one node for each of this package's ops; all that the op reads is an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stn_infer.fusion.op import (
    DOMAIN,
    LATTICE,
    OP_TYPES,
    PROJECTIVE,
    SAMPLER,
    SPATIAL,
    TENSOR_PRODUCT,
    attach_functions,
    node_attributes,
    sampler_attributes,
    tensor_product_shapes,
)
from stn_infer.samplers import SamplerSpec

Array = NDArray[Any]

#: The output's size, the lattice of a tensor product, the number of points of another lattice.
SIZE, PRODUCT, POINTS = (4, 5), (1, 3, 2), 7

#: Axis 0 of these inputs is the batch.
BATCHED = ("input", "theta", "grid")


def feeds(op: str, batch: int = 2) -> dict[str, Array]:
    """Inputs that fit: ``input`` [batch, 3, 6, 7], and small random values."""
    rng = np.random.default_rng(0)
    pixels = int(np.prod(SIZE))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(0.3)

    image = {"input": normal(batch, 3, 6, 7)}
    if op == SAMPLER:
        return image | {"grid": normal(batch, *SIZE, 2)}
    if op == SPATIAL:
        return image | {"theta": normal(batch, 2, 6), "basis": normal(6, pixels)}
    if op == PROJECTIVE:
        return image | {"theta": normal(batch, 3, 3), "basis": normal(3, pixels)}
    if op == TENSOR_PRODUCT:
        axes = {"planes": np.ones((1, 1), np.float32), "rows": normal(SIZE[0], PRODUCT[1])}
        return (
            image | {"theta": normal(batch, 2, int(np.prod(PRODUCT)))} | axes | {"columns": normal(PRODUCT[2], SIZE[1])}
        )
    index = rng.integers(0, POINTS, (4, pixels)).astype(np.int32)
    return image | {"theta": normal(batch, 2, POINTS), "index": index, "weight": normal(4, pixels)}


def one_node(op: str, given: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    """The model of one node.

    Args:
        op: one of ``OP_TYPES``.
        given: the inputs; None: :func:`feeds`. Those of a batch are of unknown shape, the others of these shapes.
    """
    given = given or feeds(op)
    attributes: dict[str, Any] = sampler_attributes(SamplerSpec(), 18)
    if op != SAMPLER:
        attributes = node_attributes("projective" if op == PROJECTIVE else "basis", SIZE, SamplerSpec(), 18)
    if op in (TENSOR_PRODUCT, LATTICE):
        attributes.pop("kind", None)
    if op == TENSOR_PRODUCT:
        attributes |= tensor_product_shapes(PRODUCT, SIZE)
    node = helper.make_node(op, list(given), ["output"], name="warp", domain=DOMAIN, **attributes)
    inputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(value.dtype),
            ["batch", *(f"{name}_{axis}" for axis in range(1, value.ndim))],
        )
        if name in BATCHED
        else helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}_{axis}" for axis in range(value.ndim)]
        )
        for name, value in given.items()
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "c", "h", "w"])
    graph = helper.make_graph([node], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    attach_functions(model)
    return model


__all__ = ["BATCHED", "OP_TYPES", "feeds", "one_node"]
