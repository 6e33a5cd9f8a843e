"""Clamps of a sampling grid to [-1, 1], which are the same as the sampler's padding mode ``border``.

For linear and nearest interpolation with ``align_corners=1``, -1 and 1 are the centers of the outermost pixels, so a
clamped coordinate reads what the padding mode ``border`` reads without the clamp. Between the clamp and the sampler
there may be operators by which each coordinate is an affine function of one clamped value (a grid in [0, 1], clamped
and then mapped to [-1, 1]), and several clamps (one per axis, or a minimum after a maximum). Then each coordinate is

    grid = clip(L(u), low, high)

where L is the same computation without the clamps. The bounds are the coordinates at the smallest and at the largest
values of u, because every step is monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from stn_infer.arrays import Array
from stn_infer.fusion.dataflow import CLAMPS, GraphView, NotLinear
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.shapes import Observation
from stn_infer.proto.traversal import is_standard
from stn_infer.samplers import SamplerSpec

# Operators by which each element is an increasing or a decreasing function of one element, if one input varies.
_EACH_OF_ONE = frozenset(
    {"Identity", "Neg", "Cast", "CastLike", "Dropout", "Add", "Sub", "Mul", "Reshape", "Flatten", "Squeeze"}
    | {"Unsqueeze", "Transpose", "Expand", "Tile", "Split", "Slice", "Gather", "GatherND", "GatherElements", "Concat"}
)
_MANY_INPUTS = frozenset({"Concat"})
# Stands for infinity: products with the constants of a grid stay finite, and far from every bound.
_FAR = 1e30
_UNBOUNDED = 1e6
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Clamped:
    """The clamps of one grid.

    Attributes:
        nodes: the clamps' indices, ascending.
        between: indices of the nodes from the sources to the grid, ascending, the clamps among them.
        sources: the tensors before them.
        view: the graph without the clamps.
    """

    nodes: tuple[int, ...]
    between: tuple[int, ...]
    sources: tuple[str, ...]
    view: GraphView


def find_clamps(view: GraphView, grid: str) -> Clamped | None:
    """Returns the clamps that each coordinate passes before the sampler. None if there are none."""
    stack, seen = [grid], {grid}
    between: set[int] = set()
    sources: list[str] = []
    while stack:
        name = stack.pop()
        index = view.producer.get(name)
        if index is None or not _is_followed(view, view.nodes[index]):
            sources.append(name)
            continue
        between.add(index)
        following = [need for need in view.varying_inputs(view.nodes[index]) if need not in seen]
        seen.update(following)
        stack.extend(following)
    clamps = tuple(index for index in sorted(between) if view.nodes[index].op_type in CLAMPS)
    if not clamps:
        return None
    nodes = list(view.scope.nodes)
    for index in clamps:
        node = nodes[index]
        nodes[index] = helper.make_node("Identity", view.varying_inputs(node), list(node.output), name=node.name)
    free = GraphView(replace(view.scope, nodes=tuple(nodes)))
    return Clamped(clamps, tuple(sorted(between)), tuple(sources), free)


def _is_followed(view: GraphView, node: onnx.NodeProto) -> bool:
    varying = view.varying_inputs(node)
    if not is_standard(node) or (len(node.output) > 1 and node.op_type != "Split"):
        return False
    if node.op_type in _MANY_INPUTS:
        return True
    if node.op_type == "Div":
        return varying == [node.input[0]]
    # Only the data may vary; a value that is used twice (x + x, x * x) is not one element.
    single = len(varying) == 1 and list(node.input).count(varying[0]) == 1
    if node.op_type in ("Add", "Sub", "Mul", "Max", "Min"):
        return single
    return single and varying[0] == node.input[0] and node.op_type in _EACH_OF_ONE | CLAMPS


def check_border(
    clamped: Clamped, view: GraphView, observed: Observation, evaluator: Evaluator, grid: str, spec: SamplerSpec
) -> None:
    """Checks that the clamps of a grid equal the padding mode ``border`` of its sampler.

    Args:
        clamped: the clamps.
        view: the graph with the clamps.
        observed: its shapes.
        evaluator: evaluates its nodes.
        grid: the grid's tensor, of known shape.
        spec: the sampler's settings.

    Raises:
        NotLinear: they do not; names a clamp, its bounds and the condition that fails.
    """
    last = view.nodes[clamped.nodes[-1]]

    def fail(reason: str) -> NotLinear:
        return NotLinear(last.output[0], last.op_type, reason)

    if any(name not in observed.shapes for name in clamped.sources):
        raise fail("the shape of the clamped tensor does not follow a simple rule")
    for index in clamped.nodes:
        node = view.nodes[index]
        before = observed.shapes.get(view.varying_inputs(node)[0])
        if before is None or before != observed.shapes.get(node.output[0]):
            raise fail("a clamp by bounds of a larger shape is not supported")
    low, high = _bounds(clamped, observed, evaluator, grid)
    varies = high - low > _ROUNDING
    inside = (np.abs(low + 1) <= _ROUNDING) & (np.abs(high - 1) <= _ROUNDING)
    constant = ~varies & (low >= -1 - _ROUNDING) & (high <= 1 + _ROUNDING)
    if not np.all(inside | constant):
        bounds = _described(low[varies], high[varies])
        raise fail(f"{bounds}; only a clamp of every coordinate to [-1, 1] is padding mode border")
    if spec.mode == "bicubic":
        raise fail("a clamp to [-1, 1] is the padding mode border for linear and nearest interpolation, not for cubic")
    if not spec.align_corners and spec.padding_mode == "zeros":
        raise fail("a clamp to [-1, 1] is the padding mode border only with align_corners=1")


def _bounds(clamped: Clamped, observed: Observation, evaluator: Evaluator, grid: str) -> tuple[Array, Array]:
    """The least and the largest value of each coordinate, at all trial sizes."""
    lows, highs = [], []
    for sizes in evaluator.settings:
        found = []
        for value in (-_FAR, _FAR):
            sources = {
                name: np.full([axis.at(sizes) for axis in observed.shapes[name]], value) for name in clamped.sources
            }
            found.append(np.asarray(evaluator.forward(sources, clamped.between, frozenset(), grid, sizes)).ravel())
        lows.append(np.minimum(*found))
        highs.append(np.maximum(*found))
    return np.concatenate(lows), np.concatenate(highs)


def _described(low: Array, high: Array) -> str:
    """The bounds in words."""
    free = (low < -_UNBOUNDED) & (high > _UNBOUNDED)
    if free.any() and not free.all():
        return "it clamps only some of the coordinates"
    pairs = sorted({(_number(a), _number(b)) for a, b in zip(low[:4096], high[:4096], strict=True)})
    bounds = " and ".join(f"[{a}, {b}]" for a, b in pairs[:3]) or "a constant"
    return f"it clamps coordinates to {bounds}{', ...' if len(pairs) > 3 else ''}"


def _number(value: float) -> str:
    if abs(value) > _UNBOUNDED:
        return "-inf" if value < 0 else "inf"
    return f"{value:.6g}"
