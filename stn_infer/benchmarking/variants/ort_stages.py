"""Where the samplers ran, and where the time goes, by onnxruntime's profiler in a session of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from stn_infer.arrays import Array
from stn_infer.benchmarking.harness.variant import Inspection
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.benchmarking.variants.stages import LONGEST_S, NO_SAMPLER, RECORDED, UNRECORDED, add_up, not_known
from stn_infer.files import temporary_folder
from stn_infer.fusion.op import OP_TYPES, reads_grid

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.ort import OrtBackend

SAMPLERS = ("GridSample", *OP_TYPES)

_LAUNCHES = "onnxruntime's profiler times launches on a GPU, not the kernels"


def inspect_session(
    open_backend: Callable[..., OrtBackend],
    model: Path | bytes,
    feeds: Mapping[str, Array],
    cuts: Sequence[str],
    device: str,
) -> Inspection:
    """Run a profiled copy of a session for a moment.

    Args:
        open_backend: makes it; takes a model and ``profile``, as :class:`~stn_infer.backends.ort.OrtBackend` does.
        model: what :func:`named_nodes` made.
        feeds: inputs by name.
        cuts: tensors that grids are computed from; what lies between them and a sampler is the stage ``grid``.
        device: ``cpu``, or a GPU, for which onnxruntime reports where the samplers ran and not for how long.
    """
    with temporary_folder() as folder:
        backend = open_backend(model, profile=folder)
        try:
            began = time.monotonic()
            for run in range(UNRECORDED + RECORDED):
                if run and time.monotonic() - began > LONGEST_S:
                    break
                backend.run(feeds)
            profile = Path(backend.session.raw.end_profiling())
        finally:
            backend.close()
        nodes = read_profile(json.loads(profile.read_text(encoding="utf-8")))
        grid: set[str] | None = None
        with suppress(Exception):  # a graph that onnx cannot read back still has its samplers in the profile
            import onnx

            grid = grid_nodes(onnx.load(folder / "optimized.onnx", load_external_data=False), cuts)
    samplers = tuple(
        SamplerPlacement(name, node.op, node.provider) for name, node in nodes.items() if node.op in SAMPLERS
    )
    if not samplers:
        return NO_SAMPLER
    if device != "cpu":
        return not_known(_LAUNCHES, samplers)
    unknown = "" if grid is not None else "what the sampling grid is computed from is not clear in the optimized graph"
    return add_up(_times(nodes, grid or set()), samplers, unknown)


def named_nodes(file: Path, fused: bool) -> Path | bytes:
    """The model with a name for every node, which identifies it in a profile; or the file, where that fails.

    Args:
        file: the model.
        fused: whether the runtime runs spatial-transformer nodes by its own op; else their functions are inlined.
    """
    import onnx

    from stn_infer.proto.edit import inline_functions

    try:
        model = onnx.load(file)
        if model.functions and not fused:
            model = inline_functions(model)
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type} #{index}"
        content: bytes = model.SerializeToString()
        return content
    except Exception:  # more than 2 GiB, for one: the profile then names what it can
        return file


class ProfiledNode:
    """A node in a profile: its operator, its provider, and its time in each run, milliseconds."""

    def __init__(self, op: str, provider: str) -> None:
        self.op, self.provider = op, provider
        self.times_ms: list[float] = []


def read_profile(events: Sequence[Mapping[str, Any]]) -> dict[str, ProfiledNode]:
    """Node name to what the profile says of it, in the order they ran."""
    nodes: dict[str, ProfiledNode] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        arguments = event["args"]
        node = nodes.setdefault(
            name.removesuffix("_kernel_time"), ProfiledNode(arguments["op_name"], str(arguments.get("provider", "")))
        )
        node.times_ms.append(event["dur"] / 1e3)
    return nodes


def _times(nodes: Mapping[str, ProfiledNode], grid: set[str]) -> Iterator[tuple[str, float]]:
    """The stage of each node, and its median, milliseconds."""
    for name, node in nodes.items():
        stage = "sampling" if node.op in SAMPLERS else "grid" if name in grid else "rest"
        yield stage, median(node.times_ms[UNRECORDED:] or node.times_ms)


def grid_nodes(model: onnx.ModelProto, cuts: Sequence[str]) -> set[str] | None:
    """The nodes between ``cuts`` and the samplers' grids; None where a grid does not come from the cuts alone."""
    from stn_infer.proto.traversal import producers, walk_back

    nodes, made = model.graph.node, producers(model.graph.node)
    grids = [node.input[1] for node in nodes if reads_grid(node)]
    if not grids and not any(node.op_type in SAMPLERS for node in nodes):
        return None

    def is_between(name: str) -> bool:
        # a shape read off the input is not a part of the data's way to the grid
        return name in made and name not in cuts and nodes[made[name]].op_type not in ("Shape", "Size")

    reached = set(walk_back(grids, lambda name: nodes[made[name]].input if is_between(name) else ()))
    if not (reached - set(cuts)).isdisjoint(value.name for value in model.graph.input):
        return None
    return {nodes[made[name]].name for name in reached if is_between(name)}
