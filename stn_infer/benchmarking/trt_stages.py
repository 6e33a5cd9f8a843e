"""Where an engine's time goes, by TensorRT's own profiler: which of its layers sample, and which compute the grid.

An engine's layers are called after the ONNX nodes that are in them. Where TensorRT has made one layer of a sampler and
something else, or calls a layer by a name of its own, nobody knows how much of it is sampling, and nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from stn_infer.benchmarking.result import Sampler
from stn_infer.benchmarking.runner import Inspection

if TYPE_CHECKING:
    import onnx

#: Runs of an engine that are profiled, the first of which are passed over.
UNRECORDED, RECORDED = 3, 15

Layers = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Names:
    """What TensorRT's parser calls the layers of a file's spatial transformers.

    Attributes:
        samplers: those that sample.
        beside: casts of image and output around them.
        grid: those that compute sampling grids.
    """

    samplers: frozenset[str]
    beside: frozenset[str]
    grid: frozenset[str]


def layer_times(trt: Any) -> Any:
    """An ``IProfiler`` that keeps what it is told, in ``layers``: names and milliseconds, in order."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append((layer_name, float(ms)))

    return LayerTimes()


def names_of(model: onnx.ModelProto, fused: bool, cuts: Sequence[str]) -> Names:
    """The names of a file's spatial transformers in an engine.

    Args:
        model: the file.
        fused: whether the plugin takes the nodes, instead of the functions that the file carries.
        cuts: tensors that grids of its plain samplers are computed from.
    """
    from stn_infer.benchmarking.stages import grid_nodes
    from stn_infer.graph.op import DOMAIN

    samplers = {_name(node) for node in model.graph.node if node.op_type == "GridSample"}
    beside: set[str] = set()
    grid = {name for name in grid_nodes(model, cuts) or () if name} if samplers else set()
    ours = {(node.domain, node.op_type) for node in model.graph.node if node.domain == DOMAIN}
    if fused:
        samplers |= {_name(node) for node in model.graph.node if node.domain == DOMAIN}
        return Names(frozenset(samplers), frozenset(), frozenset(grid))
    for function in model.functions:
        if (function.domain, function.name) in ours:
            makers = {name: node for node in function.node for name in node.output}
            inside: set[str] = set()
            for node in function.node:
                if node.op_type == "GridSample":
                    samplers.add(_name(node))
                    inside |= _before(makers, node.input[1])
            grid |= inside
            beside |= {_name(node) for node in function.node} - inside - samplers
    return Names(frozenset(samplers), frozenset(beside), frozenset(grid))


def engine_stages(layers: Layers, runs: int, names: Names) -> Inspection:
    """The stages out of what a profiler was told in ``runs`` runs; samplers are left to the caller."""
    count = len(layers) // runs if runs else 0
    if (
        not count
        or len(layers) != runs * count
        or any(layers[index][0] != layers[index % count][0] for index in range(len(layers)))
    ):
        return Inspection(left_out={"stages": "TensorRT's profiler did not report the same layers in every run"})
    if not names.samplers:
        return Inspection(left_out={"stages": "it has no sampler"})
    first = min(UNRECORDED, runs - 1)
    sums = {"grid": 0.0, "sampling": 0.0, "rest": 0.0}
    seen = False
    grid_is_known = not names.grid
    for position in range(count):
        parts = _parts(layers[position][0])
        taken = median(layers[run * count + position][1] for run in range(first, runs))
        if any(_is(part, names.samplers) for part in parts):
            others = [part for part in parts if not _is(part, names.samplers | names.beside)]
            if others:
                reason = f"TensorRT runs the sampler in one layer with {', '.join(others[:3])}"
                return Inspection(left_out={"stages": reason})
            seen = True
            sums["sampling"] += taken
        elif parts and all(_is(part, names.grid) for part in parts):
            grid_is_known = True
            sums["grid"] += taken
        else:
            sums["rest"] += taken
    if not seen:
        return Inspection(left_out={"stages": "none of the engine's layers goes by a sampler's name"})
    if not grid_is_known:
        sums["rest"] += sums.pop("grid")
    left_out = {} if grid_is_known else {"the grid's share": "no layer of the engine computes the grid alone"}
    return Inspection((), {stage: round(value, 6) for stage, value in sums.items()}, left_out)


def with_sampler(found: Inspection, sampler: Sampler) -> Inspection:
    """``found`` with the one line that is known of who ran the samplers."""
    return Inspection((sampler,), found.stages, found.left_out)


def _name(node: onnx.NodeProto) -> str:
    """What the parser calls a node's layer."""
    return node.name or f"node_of_{node.output[0]}"


def _before(makers: dict[str, onnx.NodeProto], tensor: str) -> set[str]:
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and _name(node) not in found:
            found.add(_name(node))
            waiting += node.input
    return found


def _parts(layer: str) -> list[str]:
    """The nodes in a layer by its name, such as ``a + b`` or ``PWN(a, b)``; of a range of nodes, none."""
    if "ForeignNode" in layer or layer.startswith(("Reformatting", "__myl")):
        return []
    return [part for part in re.split(r"\s*\+\s*|[(),|]\s*|\s+", layer) if part and part != "PWN"]


def _is(part: str, names: frozenset[str]) -> bool:
    """Whether it is one of the names, or one to which the parser has added a number to tell layers apart."""
    return part in names or re.sub(r"_+\d+$", "", part) in names
