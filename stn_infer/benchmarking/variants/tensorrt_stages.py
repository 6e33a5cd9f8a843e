"""Where an engine's time goes, by TensorRT's own profiler: which of its layers sample, and which compute the grid.

An engine's layers are named after the ONNX nodes that are in them. Where TensorRT has fused a sampler with something
else, or gives a layer a name of its own, the share of sampling is not known, and none is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from stn_infer.benchmarking.harness.variant import Inspection
from stn_infer.benchmarking.variants.stages import NO_SAMPLER, UNRECORDED, add_up, not_known

if TYPE_CHECKING:
    import onnx

Layers = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class LayerNames:
    """The names that TensorRT's parser gives the layers of a file's spatial transformers.

    Attributes:
        samplers: those that sample.
        beside: casts of image and output around them.
        grid: those that compute sampling grids; None where they are not known.
        others: every other node, whose name may be one of these with a number behind it.
    """

    samplers: frozenset[str]
    beside: frozenset[str]
    grid: frozenset[str] | None
    others: frozenset[str] = frozenset()

    def node(self, part: str) -> str:
        """The node that a part of a layer's name means; the parser numbers the layers that it makes of one."""
        known = self.samplers | self.beside | (self.grid or frozenset())
        bare = re.sub(r"_+\d+$", "", part)
        return bare if part not in known | self.others and bare in known else part


def layer_times(trt: Any) -> Any:
    """An ``IProfiler`` that stores what TensorRT reports in ``layers``: names and milliseconds, in order."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append((layer_name, float(ms)))

    return LayerTimes()


def names_of(model: onnx.ModelProto, fused: bool, cuts: Sequence[str]) -> LayerNames:
    """The names of a file's spatial transformers in an engine.

    Args:
        model: the file.
        fused: whether the plugin takes the nodes, instead of the functions that the file carries.
        cuts: tensors that grids of its plain samplers are computed from.
    """
    from stn_infer.benchmarking.variants.ort_stages import grid_nodes
    from stn_infer.fusion.op import DOMAIN, reads_grid

    samplers = {_name(node) for node in model.graph.node if reads_grid(node)}
    beside: set[str] = set()
    plain = grid_nodes(model, cuts) if samplers else set()
    grid = None if plain is None else {name for name in plain if name}
    everything = {_name(node) for graph in (model.graph, *model.functions) for node in graph.node}
    ours = {(node.domain, node.op_type) for node in model.graph.node if node.domain == DOMAIN}
    if fused:
        samplers |= {_name(node) for node in model.graph.node if node.domain == DOMAIN}
        return _names(samplers, set(), grid, everything)
    for function in model.functions:
        if (function.domain, function.name) in ours:
            sampling = [node for node in function.node if node.op_type == "GridSample"]
            samplers |= {_name(node) for node in sampling}
            inside = {_name(node) for node in _behind(function, [node.input[1] for node in sampling])}
            grid = None if grid is None else grid | inside
            beside |= {_name(node) for node in function.node} - inside - samplers
    return _names(samplers, beside, grid, everything)


def _behind(function: onnx.FunctionProto, tensors: Sequence[str]) -> Iterator[onnx.NodeProto]:
    from stn_infer.proto.traversal import producers, walk_back

    made = {name: function.node[index] for name, index in producers(function.node).items()}
    reached = walk_back(tensors, lambda name: made[name].input if name in made else ())
    return (made[name] for name in reached if name in made)


def _names(samplers: set[str], beside: set[str], grid: set[str] | None, everything: set[str]) -> LayerNames:
    others = everything - samplers - beside - (grid or set())
    return LayerNames(
        frozenset(samplers), frozenset(beside), None if grid is None else frozenset(grid), frozenset(others)
    )


def engine_stages(layers: Layers, runs: int, names: LayerNames) -> Inspection:
    """The stages from a profiler's reports of ``runs`` runs; the caller handles samplers."""
    count = len(layers) // runs if runs else 0
    calls = [layers[run * count : (run + 1) * count] for run in range(runs)]
    same = {tuple(name for name, _ in call) for call in calls}
    if not count or len(layers) != runs * count or len(same) > 1:
        return not_known("TensorRT's profiler did not report the same layers in every run")
    if not names.samplers:
        return NO_SAMPLER
    recorded = calls[min(UNRECORDED, runs - 1) :]
    times: list[tuple[str, float]] = []
    unnamed, mixed = False, ""
    computed: set[str] = set()
    for position in range(count):
        layer = layers[position][0]
        parts = [names.node(part) for part in _parts(layer)]
        taken = median(call[position][1] for call in recorded)
        in_grid = [part for part in parts if part in (names.grid or ())]
        if any(part in names.samplers for part in parts):
            others = [part for part in parts if part not in names.samplers | names.beside]
            if others:
                return not_known(f"TensorRT runs the sampler in one layer with {', '.join(others[:3])}")
            times.append(("sampling", taken))
        elif parts and len(in_grid) == len(parts):
            computed.update(in_grid)
            times.append(("grid", taken))
        else:
            if in_grid and not mixed:
                mixed = next(part for part in parts if part not in in_grid)
            unnamed |= "ForeignNode" in layer or layer.startswith("__myl")
            times.append(("rest", taken))
    if not any(stage == "sampling" for stage, _ in times):
        return not_known("none of the engine's layers has a sampler's name")
    no_grid = ""
    if names.grid is None:
        no_grid = "what the sampling grid is computed from is not clear from the file"
    elif mixed:
        no_grid = f"TensorRT runs a part of the grid in one layer with {mixed}"
    elif unnamed and names.grid - computed:
        no_grid = "a layer with a name of TensorRT's own may compute a part of the grid"
    elif names.grid and not computed:
        no_grid = "no layer of the engine computes the grid alone"
    return add_up(times, no_grid=no_grid)


def _name(node: onnx.NodeProto) -> str:
    """The name that the parser gives a node's layer."""
    return node.name or f"node_of_{node.output[0]}"


def _parts(layer: str) -> list[str]:
    """The nodes in a layer by its name, such as ``a + b`` or ``PWN(a, b)``; of a range of nodes, none."""
    if "ForeignNode" in layer or layer.startswith(("Reformatting", "__myl")):
        return []
    return [part for part in re.split(r"\s*\+\s*|[(),|]\s*|\s+", layer) if part and part != "PWN"]
