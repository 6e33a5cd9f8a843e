"""onnxruntime on our file against the file that torch.onnx.export writes: whole models, and theta to grid alone.

    python benchmarks/portable_vs_plain.py -o benchmarks/results/portable_vs_plain.json

Every file is verified against float64 eager PyTorch before it is timed; the files of a model take turns in one process.
The shipped networks' own layer already writes its grid as one matrix product. So an affine one is also measured as
most people write it, with ``affine_grid``: same weights, same results.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch.nn.functional as F
from onnx import TensorProto, helper, inliner
from torch import Tensor, nn
from turns import Plan, interleave

from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.benchmarking.machine.monitor import cpu_share_in_use, this_machine, versions
from stn_infer.benchmarking.stats import median
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.op import spatial_nodes
from stn_infer.layers import SpatialTransformer
from stn_infer.models import SHIPPED
from stn_infer.reference.comparison import Expected
from stn_infer.reference.model import Reference
from stn_infer.reference.samples import bench_inputs
from stn_infer.sources.load import LoadedModel, load_source
from stn_infer.torch_export.plain import export_plain

_TOLERANCE = 1e-5
_GRID_TOLERANCE = 1e-5


class AffineGrid(SpatialTransformer):
    """The layer as most people write it; for a module that was a SpatialTransformer of kind affine."""

    def grid(self, theta: Tensor) -> Tensor:
        size = [theta.shape[0], 1, *self.output_size]
        return F.affine_grid(theta, size, align_corners=self.grid_align_corners)


@dataclass(frozen=True)
class File:
    """An exported model, and its part from theta (or what stands for it) to the first grid.

    Attributes:
        name: ``plain``, ``plain, affine_grid`` or ``portable``.
        model: whole, functions inlined.
        start, grid: the part's input and output tensors.
    """

    name: str
    model: onnx.ModelProto
    start: str
    grid: str


@dataclass(frozen=True)
class Row:
    """Times in milliseconds: medians. ``samples_ms`` and ``grid_samples_ms`` are the raw ones."""

    model: str
    batch_size: int
    file: str
    whole_ms: float
    grid_ms: float
    error: float
    samples_ms: tuple[float, ...]
    grid_samples_ms: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tutorial-stn", *SHIPPED])
    parser.add_argument("--batch-sizes", default="64,256")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    plan = Plan(rounds=arguments.rounds, seconds=arguments.seconds)
    rows: list[Row] = []
    shares = []
    for name in arguments.models:
        loaded = load_source(name)
        files = make_files(loaded)
        for batch_size in (int(text) for text in arguments.batch_sizes.split(",")):
            shares.append(cpu_share_in_use())
            made = measure(loaded, files, batch_size, plan, arguments.threads)
            print("\n".join(report(made)), flush=True)
            rows += made
    print(f"cores used by others before measuring: up to {max(shares):.0%}")
    if arguments.output is not None:
        result = {
            "schema_version": 1,
            "command": " ".join(["python", *sys.argv]),
            "machine": asdict(this_machine()),
            "versions": versions(),
            "cpu_share_in_use": max(shares),
            "plan": asdict(plan),
            "threads": arguments.threads,
            "rows": [asdict(row) for row in rows],
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make_files(loaded: LoadedModel) -> list[File]:
    plain = export_plain(loaded.module, loaded.input_shapes, loaded.name)
    portable, findings = fuse(plain)
    if not findings or not findings[0].fused:
        raise SystemExit(f"{loaded.name}: nothing was fused, nothing to compare")
    files = [File("plain", plain, findings[0].cut[0], findings[0].grid)]
    written = as_affine_grid(loaded.module)
    if written is not None:
        model = export_plain(written, loaded.input_shapes, loaded.name)
        finding = fuse(model)[1][0]
        files.append(File("plain, affine_grid", model, finding.cut[0], finding.grid))
    flat = inliner.inline_local_functions(portable)
    grid = next(node.input[1] for node in flat.graph.node if node.op_type == "GridSample")
    return [*files, File("portable", flat, spatial_nodes(portable)[0].theta, grid)]


def as_affine_grid(module: nn.Module) -> nn.Module | None:
    """``module`` with ``affine_grid`` in its spatial transformers; None where not all are affine, or there are none."""
    module = copy.deepcopy(module)
    layers = [layer for layer in module.modules() if isinstance(layer, SpatialTransformer)]
    if not layers or any(layer.transformation.kind != "affine" for layer in layers):
        return None
    for layer in layers:
        layer.__class__ = AffineGrid
    return module


def measure(loaded: LoadedModel, files: Sequence[File], batch_size: int, plan: Plan, threads: int | None) -> list[Row]:
    inputs, _ = bench_inputs(loaded, batch_size, plan.seed)
    outputs, samplings = Reference(loaded.module, loaded.input_shapes).run(inputs)
    expected = Expected(inputs, tuple(outputs), any(call.mode == "nearest" for call in samplings))
    whole: dict[str, Callable[[], object]] = {}
    parts: dict[str, Callable[[], object]] = {}
    errors = {}
    for file in files:
        backend = _open(file.model, threads)
        feeds = dict(zip((spec.name for spec in backend.inputs), inputs, strict=True))
        errors[file.name] = expected.error(list(backend.run(feeds).values()))
        start = _values(file, feeds)
        part = _open(part_of(file, start.shape), threads)
        off = np.abs(part.run({file.start: start})[file.grid] - samplings[0].grid).max()
        if not (errors[file.name] <= _TOLERANCE and off <= _GRID_TOLERANCE):
            raise SystemExit(f"{loaded.name}, {file.name}: off by {errors[file.name]:.1e}, its grid by {off:.1e}")
        whole[file.name] = partial(backend.run, feeds)
        parts[file.name] = partial(part.run, {file.start: start})
    times, grids = interleave(whole, plan), interleave(parts, plan)
    return [
        Row(
            loaded.name,
            batch_size,
            file.name,
            median(times[file.name].samples_ms),
            median(grids[file.name].samples_ms),
            errors[file.name],
            times[file.name].samples_ms,
            grids[file.name].samples_ms,
        )
        for file in files
    ]


def part_of(file: File, start_shape: tuple[int, ...]) -> onnx.ModelProto:
    """The nodes between ``file.start`` and ``file.grid`` as a model of their own, with a dynamic batch."""
    producers = {name: node for node in file.model.graph.node for name in node.output}
    initializers = {tensor.name: tensor for tensor in file.model.graph.initializer}
    wanted, nodes, constants = [file.grid], [], {}
    while wanted:
        name = wanted.pop()
        if name in initializers:
            constants[name] = initializers[name]
        elif name != file.start and name in producers and producers[name] not in nodes:
            nodes.append(producers[name])
            wanted.extend(filter(None, producers[name].input))
    order = [node for node in file.model.graph.node if node in nodes]
    graph = helper.make_graph(
        order,
        "theta_to_grid",
        [helper.make_tensor_value_info(file.start, TensorProto.FLOAT, ["batch", *start_shape[1:]])],
        [helper.make_tensor_value_info(file.grid, TensorProto.FLOAT, None)],
        list(constants.values()),
    )
    return helper.make_model(graph, opset_imports=file.model.opset_import, ir_version=file.model.ir_version)


def _values(file: File, feeds: dict[str, Array]) -> Array:
    """What the whole model has at the part's input."""
    probe = onnx.ModelProto()
    probe.CopyFrom(file.model)
    probe.graph.output.append(onnx.ValueInfoProto(name=file.start))
    return OrtBackend(probe.SerializeToString()).run(feeds)[file.start]


def _open(model: onnx.ModelProto, threads: int | None) -> OrtBackend:
    return OrtBackend(model.SerializeToString(), threads=threads, spin="while-running")


def report(rows: Sequence[Row]) -> list[str]:
    """A line for each plain file: how much less time ours takes, and how much of what the grid saves arrives."""
    ours = rows[-1]
    lines = []
    for row in rows[:-1]:
        allowed = row.whole_ms - (row.grid_ms - ours.grid_ms)
        lines.append(
            f"{row.model}, batch {row.batch_size}: {row.file} {row.whole_ms:.2f} ms, ours {ours.whole_ms:.2f} ms, "
            f"{row.whole_ms / ours.whole_ms:.2f}x; grid {row.grid_ms:.3f} -> {ours.grid_ms:.3f} ms, "
            f"{row.grid_ms / ours.grid_ms:.1f}x; {allowed / ours.whole_ms:.0%} of the speed that saving allows"
        )
    return lines


if __name__ == "__main__":
    main()
