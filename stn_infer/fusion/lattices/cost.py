"""What a rewrite costs a file in bytes, and its plain operators in time: the original stays where that is too much.

Times are estimates for onnxruntime's CPU provider on one thread, per sample, from the operators' work. The constants
were measured on a 2.5 GHz Xeon with onnxruntime 1.31; ``benchmarks/plain_costs.py`` measures them again. Only their
ratios matter, and a factor of two would not change which form is written for the grids that models have.
"""

from __future__ import annotations

from math import prod

import numpy as np

from stn_infer.fusion.basis import MOST_TAPS, LatticeBasis
from stn_infer.fusion.dataflow import GraphView
from stn_infer.fusion.lattices.find import LatticeMap
from stn_infer.fusion.measure import Cut, ThetaMap
from stn_infer.fusion.shapes import Observation
from stn_infer.proto.traversal import attributes_of

#: A rewrite may add this much to a file.
MOST_BYTES = 4 * 2**20
#: How much slower than the original the plain operators may be.
MOST_SLOWDOWN = 1.1

# Nanoseconds per multiplication.
_MULTIPLICATION = {"MatMul": 0.02, "Gemm": 0.02, "Einsum": 0.05, "Conv": 0.15, "ConvTranspose": 1.0}
# The same where one factor has so few rows that each element of the other is read once, within a cache and beyond.
# Up to 8 MiB, as of a mesh of 9x9 points for 128x128 pixels, the last level of a cache is as fast as the one before.
_THIN, _THIN_AND_LARGE = 0.05, 0.2
_FEW_ROWS, _CACHE = 8, 2**21
# Nanoseconds per element of the output.
_RESIZE = {"nearest": 0.6, "linear": 1.4, "cubic": 70.0}
_PICKED = 8.0  # Gather, GatherElements, GatherND, per piece that is copied
_SAMPLED = 12.0  # GridSample, per coordinate of the grid
_ARRANGED = 0.5  # Transpose and everything else
_SUMMED = 0.12  # reductions, per element of the input
_WEIGHTED = 0.4  # Mul by weights that are broadcast


def original_cost(view: GraphView, observed: Observation, cut: Cut) -> float:
    """The time of the nodes between a cut and the grid."""
    return sum(_node_cost(view, observed, index) for index in cut.nodes)


def _node_cost(view: GraphView, observed: Observation, index: int) -> float:
    node = view.nodes[index]

    def elements(name: str) -> int:
        return prod(axis.factor for axis in observed.shapes.get(name, ()))

    out, kind = elements(node.output[0]), node.op_type
    if kind in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return 0.0
    if kind == "Resize":
        return out * _RESIZE.get(str(attributes_of(node).get("mode", "nearest")), 70.0)
    if kind in ("MatMul", "Gemm", "Einsum"):
        left = observed.shapes.get(node.input[0], ())
        inner = left[-1].factor if left else 1
        thin = len(left) > 1 and left[-2].factor < _FEW_ROWS
        return out * inner * (_thin(elements(node.input[1])) if thin else _MULTIPLICATION[kind])
    if kind in ("Conv", "ConvTranspose"):
        weight = observed.shapes.get(node.input[1], ())
        taps = prod(axis.factor for axis in weight[1:])
        return (out if kind == "Conv" else elements(node.input[0])) * taps * _MULTIPLICATION[kind]
    if kind.startswith("Gather"):
        return out / _piece(view, observed, index) * _PICKED + out * _ARRANGED
    if kind == "GridSample":
        return elements(node.input[1]) * _SAMPLED
    if kind.startswith("Reduce"):
        return elements(node.input[0]) * _SUMMED
    return out * _ARRANGED


def _piece(view: GraphView, observed: Observation, index: int) -> int:
    """How many elements a selection copies at once: those of the axes after the ones that its indices select."""
    node = view.nodes[index]
    data, chosen = (observed.shapes.get(name, ()) for name in node.input[:2])
    attributes = attributes_of(node)
    if node.op_type == "GatherElements" or not data:
        return 1
    first = int(attributes.get("axis", 0)) % len(data) + 1
    if node.op_type == "GatherND":
        first = int(attributes.get("batch_dims", 0)) + (chosen[-1].factor if chosen else 0)
    return max(1, prod(axis.factor for axis in data[first:]))


def _thin(elements: int) -> float:
    return _THIN if elements <= _CACHE else _THIN_AND_LARGE


def removed_bytes(view: GraphView, cut: Cut) -> int:
    """What the file's constants take that only the nodes between a cut and the grid read."""
    inside = {name for index in cut.nodes for name in view.nodes[index].input if name in view.initializers}
    replaced = set(cut.nodes)
    outside = {name for index, node in enumerate(view.nodes) if index not in replaced for name in node.input}
    return sum(view.initializers[name].ByteSize() for name in inside - outside)


def is_cheap(
    view: GraphView, observed: Observation, cut: Cut, output_size: tuple[int, ...], cost: float, size: int
) -> bool:
    """Whether a rewrite whose plain operators take ``cost`` and whose constants take ``size`` bytes may replace a cut.

    The sampler itself runs before and after; a tenth of its time counts as well.
    """
    if size - removed_bytes(view, cut) > MOST_BYTES:
        return False
    sampler = prod(output_size) * len(output_size) * cut.rows * _SAMPLED
    return cost + sampler <= MOST_SLOWDOWN * (original_cost(view, observed, cut) + sampler)


def tensor_product_cost(found: LatticeMap, rows: int) -> float:
    """The time of the plain body of a ``TensorProductTransformer`` on ``rows`` grids."""
    points = prod(found.output_size) * found.dimensions * rows
    return found.work * found.dimensions * rows * 2 * _MULTIPLICATION["MatMul"] + points * _ARRANGED


def basis_cost(found: ThetaMap, rows: int) -> float:
    """The time of the plain body of a ``SpatialTransformer``."""
    points = prod(found.output_size) * found.dimensions * rows
    return points * (len(found.basis) * _thin(found.basis.size) + _ARRANGED)


def basis_bytes(found: ThetaMap) -> int:
    """What a basis takes in the file."""
    return 4 * found.basis.size


def lattice_cost(found: LatticeBasis, dimensions: int, rows: int) -> float:
    """The time of the plain body of a ``LatticeTransformer``."""
    taps = found.index.size * dimensions * rows
    return taps * (_PICKED + _WEIGHTED + _SUMMED) + prod(found.output_size) * dimensions * rows * _ARRANGED


def lattice_bytes(found: LatticeBasis) -> int:
    """What index and weight take in the file."""
    return 8 * found.index.size


def sparse_basis(found: ThetaMap) -> LatticeBasis | None:
    """The basis as the few points that each pixel reads; None if they are more than 64, or not few."""
    basis = np.asarray(found.basis)
    taps = int(np.count_nonzero(basis, axis=0).max(initial=0))
    if found.kind != "basis" or not 0 < taps <= MOST_TAPS or 4 * taps > len(basis):
        return None
    order = np.argsort(basis == 0, axis=0, kind="stable")[:taps]  # the points that are read come first
    weight = np.take_along_axis(basis, order, axis=0)
    return LatticeBasis(np.where(weight == 0, 0, order).astype(np.int32), weight, found.output_size)
