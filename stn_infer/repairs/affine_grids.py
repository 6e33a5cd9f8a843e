"""Replaces AffineGrid, which TensorRT cannot import, and ATen's affine_grid_generator by a matrix product."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from stn_infer.fusion.basis import canonical_basis
from stn_infer.fusion.samplers import UNKNOWN, infer_facts, small_constants
from stn_infer.proto.edit import NewNodes, copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, is_standard
from stn_infer.repairs.result import NotRepairable, PassResult, Repair


def plain_affine_grids(model: onnx.ModelProto) -> PassResult:
    """Replaces the AffineGrid nodes that remain after the fusion by theta · mesh, which all runtimes support.

    Raises:
        NotRepairable: a grid's size is not fixed in the file, is one pixel along an axis, or theta is not float32.
    """
    count = sum(is_standard(node, "AffineGrid") for node in model.graph.node)
    if not count:
        return PassResult(model)
    facts = infer_facts(_without_defaults(model))
    changed = copy_of(model)
    names = Names(changed.graph)
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if not is_standard(node, "AffineGrid"):
            nodes.append(node)
            continue
        grid, theta = facts.get(node.output[0], UNKNOWN), facts.get(node.input[0], UNKNOWN)
        dims = (grid.dims or ())[1:-1]
        sizes = [size for size in dims if size is not None and size > 1]
        if not sizes or len(sizes) < len(dims) or theta.elem_type != TensorProto.FLOAT:
            raise NotRepairable(f"the size of AffineGrid {node.name or node.output[0]!r} is not fixed in the file")
        new = _product(node, sizes, names, align_corners=bool(attributes_of(node).get("align_corners", 0)))
        nodes += new.nodes
        changed.graph.initializer.extend(new.constants)
    replace_all(changed.graph.node, nodes)
    message = f"replaced {count} AffineGrid by a matrix product with a constant mesh"
    return PassResult(changed, True, (Repair("affine-grid", message),))


def replace_aten_grids(model: onnx.ModelProto) -> int:
    """Replaces the main graph's ATen nodes ``affine_grid_generator(theta, size, align_corners)``, in place.

    A node stays if its size, other than batch and channels, or align_corners is not constant.

    Returns:
        The number of nodes replaced.
    """
    if not any(is_aten_grid(node) for node in model.graph.node):
        return 0
    # shape inference knows the values of sizes, but not this operator: another one has that shape
    shaped = copy_of(model)
    for node in shaped.graph.node:
        if is_aten_grid(node):
            node.op_type, node.domain = "ConstantOfShape", ""
            del node.attribute[:]
            node.input[:] = [node.input[1]]
    facts, constants = infer_facts(shaped), small_constants(model)
    names = Names(model.graph)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        dims = (facts.get(node.output[0], UNKNOWN).dims or ())[2:] if is_aten_grid(node) else ()
        sizes = [size for size in dims if size is not None and size > 1]
        if len(sizes) not in (2, 3) or len(sizes) != len(dims) or node.input[2] not in constants:
            nodes.append(node)
            continue
        new = _product(node, sizes, names, align_corners=bool(constants[node.input[2]]))
        nodes += new.nodes
        model.graph.initializer.extend(new.constants)
        count += 1
    replace_all(model.graph.node, nodes)
    return count


def is_aten_grid(node: onnx.NodeProto) -> bool:
    """Whether a node is PyTorch's operator for affine grids, which its exporter writes as a fallback."""
    name = attributes_of(node).get("operator", "") if node.op_type == "ATen" else node.op_type
    complete = len(node.input) > 2 and bool(node.output)
    return bool(name == "affine_grid_generator" and node.domain not in STANDARD_DOMAINS and complete)


def _product(node: onnx.NodeProto, sizes: list[int], names: Names, *, align_corners: bool) -> NewNodes:
    """The nodes that replace one AffineGrid."""
    mesh = canonical_basis(sizes, align_corners).astype(np.float32)
    new = NewNodes(names, node.output[0])
    points = new.node("MatMul", [node.input[0], new.constant("mesh", mesh)], "points")
    moved = new.node("Transpose", [points], "moved", perm=[0, 2, 1])
    shape = new.constant("shape", np.array([0, *sizes, len(sizes)]))
    new.nodes.append(helper.make_node("Reshape", [moved, shape], list(node.output), name=node.name))
    return new


def _without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy without the initializers that a caller may override."""
    copy = copy_of(model)
    inputs = {value.name for value in model.graph.input}
    replace_all(copy.graph.initializer, (tensor for tensor in model.graph.initializer if tensor.name not in inputs))
    return copy
