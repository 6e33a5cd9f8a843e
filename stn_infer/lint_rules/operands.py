"""Operands of this package's ops that do not fit their grid: kernels refuse them, other runtimes may not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import onnx
from onnx import TensorProto, numpy_helper

from stn_infer.arrays import shape_text
from stn_infer.fusion.op import LATTICE, PROJECTIVE, SAMPLER, TENSOR_PRODUCT, is_op
from stn_infer.lint_rules.context import LintContext, LintFinding, LintRule
from stn_infer.proto.traversal import attributes_of, nested_nodes

Dims = tuple[int | None, ...]

_MOST_TAPS = 64
_MAX_VALUES = 1 << 24
# Of each op, its inputs after the image.
_OPERANDS = {
    TENSOR_PRODUCT: ("theta", "planes", "rows", "columns"),
    LATTICE: ("theta", "index", "weight"),
    SAMPLER: ("grid",),
}
_OTHERS = ("theta", "basis")


def shapes(context: LintContext) -> Iterator[LintFinding]:
    """Shapes of images, theta, constants and grids that do not fit an op's attributes, and indices beyond theta."""
    for node in nested_nodes(context.model.graph.node):
        names = _OPERANDS.get(node.op_type, _OTHERS)
        if not is_op(node) or len(node.input) <= len(names):
            continue
        tensors = dict(zip(("image", *names), node.input, strict=False))
        known = {what: context.fact(tensor).dims for what, tensor in tensors.items()}
        size = attributes_of(node).get("grid_shape", ())[1:-1]
        problems: list[tuple[str, str]] = []
        if node.op_type == SAMPLER:
            problems += _of_sampler(known)
        elif size:
            problems += _of_transformer(node, known, size)
        if node.op_type == LATTICE:
            problems += _of_index(context, tensors["index"], known["theta"])
        for what, message in problems:
            yield LintFinding("wrong-shape", "error", node.name or node.output[0], tensors[what], message)


def _of_sampler(known: dict[str, Dims | None]) -> Iterator[tuple[str, str]]:
    image, grid = known["image"], known["grid"]
    rank = len(image or grid or ()) - 2
    if rank not in (2, 3):
        return
    expected = (None,) * (rank + 1) + (rank,)
    if grid is not None and not _fits(grid, expected):
        images = "volumes" if rank == 3 else "images"
        yield "grid", f"grid has the shape {shape_text(grid)}, expected {shape_text(expected)} for {images}"


def _of_transformer(
    node: onnx.NodeProto, known: dict[str, Dims | None], size: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yields (operand, message) for an op that computes a grid of ``size`` from theta."""
    rank, grids = len(size), f"for grids {shape_text(size)}"
    if node.op_type == TENSOR_PRODUCT:
        found = _lattice_of(node, size)
        if isinstance(found, str):
            yield "theta", f"{found} {grids}"
            return
        planes, rows, columns = found
        depth = size[0] if rank == 3 else 1
        grids = f"{grids} and a lattice {shape_text(found)}"
        expected: dict[str, Dims] = {
            "planes": (depth, planes),
            "rows": (size[-2], rows),
            "columns": (columns, size[-1]),
            "theta": (None, rank, planes * rows * columns),
        }
    elif node.op_type == LATTICE:
        index, weight = known["index"], known["weight"]
        taps = next((dims[0] for dims in (index, weight) if dims and len(dims) == 2 and dims[0]), None)
        if taps is not None and taps > _MOST_TAPS:
            yield "index", f"index has {taps} rows, expected at most {_MOST_TAPS} points per pixel"
        pixels = (taps, prod(size))
        expected = {"theta": (None, rank, None), "index": pixels, "weight": pixels}
    else:
        basis = known["basis"]
        count = basis[0] if basis and len(basis) == 2 else None
        theta = (None, rank + (node.op_type == PROJECTIVE), count)
        expected = {"theta": theta, "basis": (None, prod(size))}
    expected["image"] = (None,) * (rank + 2)
    for what, wanted in expected.items():
        dims = known[what]
        if dims is not None and not _fits(dims, wanted):
            yield what, f"{what} has the shape {shape_text(dims)}, expected {shape_text(wanted)} {grids}"


def _lattice_of(node: onnx.NodeProto, size: Sequence[int]) -> tuple[int, int, int] | str:
    """(planes, rows, columns) of the lattice that the plain body reshapes theta to, or why its attributes are wrong."""
    values = attributes_of(node)
    theta, lattice = (list(values.get(name, ())) for name in ("theta_shape", "lattice_shape"))
    rank, depth = len(size), size[0] if len(size) == 3 else 1
    if len(theta) != 4 or len(lattice) != 5 or min(*theta[1:], *lattice[1:]) < 1:
        return f"theta_shape is {theta} and lattice_shape {lattice}, expected [0, D, d, h w] and [0, D, depth, h, w]"
    planes, rows, columns = theta[2], lattice[3], lattice[4]
    if theta[1:] != [rank, planes, rows * columns] or lattice[1:3] != [rank, depth]:
        wanted = [0, rank, planes, rows * columns], [0, rank, depth, rows, columns]
        return f"theta_shape is {theta} and lattice_shape {lattice}, expected {wanted[0]} and {wanted[1]}"
    return planes, rows, columns


def _of_index(context: LintContext, name: str, theta: Dims | None) -> Iterator[tuple[str, str]]:
    """Indices of a lattice that are not points of theta."""
    count = theta[2] if theta is not None and len(theta) == 3 else None
    tensor = next((tensor for tensor in context.model.graph.initializer if tensor.name == name), None)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL or not 0 < prod(tensor.dims) <= _MAX_VALUES:
        return
    values = numpy_helper.to_array(tensor)
    if values.dtype.kind != "i":
        yield "index", f"index is of type {values.dtype}, expected int32"
        return
    least, most = int(values.min()), int(values.max())
    if least < 0 or (count is not None and most >= count):
        upper = f"to {count - 1}, the points of theta" if count is not None else "or more"
        yield "index", f"index contains {least if least < 0 else most}, expected 0 {upper}"


def _fits(dims: Sequence[int | None], expected: Sequence[int | None]) -> bool:
    known = zip(dims, expected, strict=False)
    return len(dims) == len(expected) and all(one is None or other in (None, one) for one, other in known)


RULES: tuple[LintRule, ...] = (shapes,)
