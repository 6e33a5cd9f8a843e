"""Files that are wrong in one known way, made from right ones, and a backend that runs such a file unasked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.basis import Kind, canonical_basis
from stn_infer.fusion.op import (
    DOMAIN,
    OP_TYPES,
    PROJECTIVE,
    SPATIAL,
    attach_functions,
    node_attributes,
    quotient_attributes,
)
from stn_infer.proto.traversal import opset_of
from stn_infer.samplers import SamplerSpec, spell_mode

Mutation = Callable[[onnx.ModelProto], onnx.ModelProto]


def one_transformer(
    kind: Kind = "affine",
    size: tuple[int, ...] = (12, 16),
    output_size: tuple[int, ...] = (10, 12),
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    opset: int = 18,
    division: tuple[float, tuple[float, ...]] | None = None,
) -> onnx.ModelProto:
    """A portable file that is one spatial transformer with theta as a second input; two channels.

    ``division``: of a projective one: w_min and offset, over a basis of more rows.
    """
    rank = len(size)
    basis = canonical_basis(output_size)
    if kind == "basis" or division is not None:
        basis = np.concatenate([basis, np.random.default_rng(0).normal(size=(4, basis.shape[1]))])
    attributes = node_attributes(kind, output_size, SamplerSpec(mode, padding_mode, align_corners), opset)
    op_type = PROJECTIVE if kind == "projective" else SPATIAL
    rows = rank + (kind == "projective")
    if division is not None:
        attributes |= quotient_attributes(rank, *division)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["image", "theta", "basis"], ["warped"], domain=DOMAIN, **attributes)],
        "one",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, *size]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["batch", rows, len(basis)]),
        ],
        [helper.make_tensor_value_info("warped", TensorProto.FLOAT, ["batch", 2, *output_size])],
        [numpy_helper.from_array(basis.astype(np.float32), "basis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach_functions(model)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _samplers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in (*OP_TYPES, "GridSample")]


def with_attribute(**values: object) -> Mutation:
    """Another ``mode``, ``padding_mode`` or ``align_corners`` at every sampler."""

    def mutate(model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = _copy(model)
        for node in _samplers(wrong):
            kept = [attribute for attribute in node.attribute if attribute.name not in values]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(
                helper.make_attribute(
                    name, spell_mode(value, opset_of(model)) if name == "mode" and isinstance(value, str) else value
                )
                for name, value in values.items()
            )
        return wrong

    return mutate


def swapped_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """theta with its first two rows exchanged, so that x is taken for y; the grid's, for GridSample."""
    wrong = _copy(model)
    for number, node in enumerate(_samplers(wrong)):
        plain = node.op_type == "GridSample"
        rows = len(next(attribute for attribute in node.attribute if attribute.name == "grid_shape").ints) - 2 if not plain else 2  # fmt: skip  # noqa: E501
        order = [1, 0, *range(2, rows + (node.op_type == PROJECTIVE))]
        wrong.graph.initializer.append(numpy_helper.from_array(np.array(order, np.int64), f"order_{number}"))
        gather = helper.make_node(
            "Gather", [node.input[1], f"order_{number}"], [f"swapped_{number}"], axis=-1 if plain else 1
        )
        node.input[1] = gather.output[0]
        wrong.graph.node.insert(list(wrong.graph.node).index(node), gather)
    return wrong


def rounded_grid(to: int = TensorProto.FLOAT16) -> Mutation:
    """The grid cast to half precision and back: in our ops' functions, or before each GridSample."""

    def mutate(model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = _copy(model)
        for nodes in (wrong.graph.node, *(function.node for function in wrong.functions)):
            for number, node in enumerate([node for node in nodes if node.op_type == "GridSample"]):
                half, back = f"half_{number}", f"rounded_{number}"
                casts = [
                    helper.make_node("Cast", [node.input[1]], [half], to=to),
                    helper.make_node("Cast", [half], [back], to=TensorProto.FLOAT),
                ]
                node.input[1] = back
                at = list(nodes).index(node)
                for cast in reversed(casts):
                    nodes.insert(at, cast)
        return wrong

    return mutate


def rounding_up(model: onnx.ModelProto) -> onnx.ModelProto:
    """nearest that rounds half up: the grid is moved by a thousandth of a pixel of a 12 x 16 image."""
    wrong = _copy(model)
    for function in wrong.functions:
        node = next(node for node in function.node if node.op_type == "GridSample")
        at = list(function.node).index(node)
        nodes = [
            helper.make_node("Constant", [], ["little"], value=numpy_helper.from_array(np.float32(2e-6))),
            helper.make_node("Add", [node.input[1], "little"], ["moved"]),
        ]
        node.input[1] = "moved"
        for extra in reversed(nodes):
            function.node.insert(at, extra)
    return wrong
