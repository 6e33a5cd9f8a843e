"""The warp alone, and the whole tutorial STN: fused by the plugin library, against onnxruntime and PyTorch without it.

    python benchmarks/warp.py --threads 2 -o benchmarks/results/warp.json

Affine, bilinear, zeros, float32. What is compared takes turns in one process, and every answer is checked against
PyTorch in float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from turns import Plan, interleave

from stn_infer import plugin
from stn_infer.arrays import Array
from stn_infer.benchmarking.machine.monitor import cpu_share_in_use, this_machine, versions
from stn_infer.benchmarking.stats import median
from stn_infer.fused import spatial_transformer
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.op import DOMAIN, SPATIAL, attach_functions, node_attributes
from stn_infer.sources.load import LoadedModel, load_source
from stn_infer.torch_export.plain import export_plain

SHAPES = ((256, 1, 28, 28), (64, 3, 224, 224), (64, 32, 28, 28))
# fp32 coordinates are off by 1e-7 of the image's width, which random neighbors turn into that of their difference.
_TOLERANCE = 1e-4

Calls = dict[str, Callable[[], Array]]


@dataclass(frozen=True)
class Row:
    """One variant: its median time in milliseconds, its error, and the raw samples."""

    case: str
    variant: str
    ms: float
    error: float
    samples_ms: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plan = Plan(rounds=arguments.rounds, seconds=arguments.seconds)
    share = cpu_share_in_use()
    rows: list[Row] = []
    for shape in SHAPES:
        rows += measure("x".join(map(str, shape)), *warps(shape, arguments.threads), plan)
    rows += measure("tutorial-stn, batch 256", *tutorial(arguments.threads), plan)
    print(f"cores used by others before measuring: {share:.0%}")
    if arguments.output is not None:
        result = {
            "schema_version": 1,
            "command": " ".join(["python", *sys.argv]),
            "machine": asdict(this_machine()),
            "versions": versions(),
            "cpu_isa": plugin.info().cpu_isa,
            "cpu_share_in_use": share,
            "threads": arguments.threads,
            "plan": asdict(plan),
            "rows": [asdict(row) for row in rows],
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(case: str, calls: Calls, expected: Array, ours: str, plan: Plan) -> list[Row]:
    """Check, time and print the variants of one case; ``ours`` is the one that the others are set against."""
    errors = verify(case, calls, expected)
    times = interleave(calls, plan)
    medians = {name: median(timing.samples_ms) for name, timing in times.items()}
    for name, ms in medians.items():
        print(
            f"{case:24} {name:28} {ms:9.3f} ms  {ms / medians[ours]:6.2f}x ours  error {errors[name]:.1e}", flush=True
        )
    return [Row(case, name, medians[name], errors[name], times[name].samples_ms) for name in calls]


def verify(case: str, calls: Calls, expected: Array) -> dict[str, float]:
    """Each variant's largest error; ends the script where it is too large."""
    errors = {name: float(np.abs(call() - expected).max()) for name, call in calls.items()}
    for name, error in errors.items():
        if not error <= _TOLERANCE:
            raise SystemExit(f"{case}, {name}: off by {error:.1e}, no time is taken")
    return errors


def warps(shape: tuple[int, int, int, int], threads: int) -> tuple[Calls, Array, str]:
    """One affine warp of random images by maps near the identity."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator)
    theta = torch.eye(2, 3) + 0.15 * torch.randn(shape[0], 2, 3, generator=generator)
    size = list(shape)
    feeds = {"input": image.numpy(), "theta": theta.numpy()}
    model = affine_node(shape)
    basis = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[0]).copy())
    function, op = (session(model, library, threads) for library in (False, True))

    def torch_operators() -> Array:
        return F.grid_sample(image, F.affine_grid(theta, size, align_corners=False), align_corners=False).numpy()

    calls: Calls = {
        "onnxruntime, fused": lambda: first_output(op, feeds),
        "onnxruntime, function": lambda: first_output(function, feeds),
        "PyTorch, fused": lambda: spatial_transformer(image, theta, basis, "affine", shape[2:]).numpy(),
        "PyTorch, grid_sample": torch_operators,
    }
    grid = F.affine_grid(theta.double(), size, align_corners=False)
    return calls, F.grid_sample(image.double(), grid, align_corners=False).numpy(), "onnxruntime, fused"


def tutorial(threads: int, batch: int = 256) -> tuple[Calls, Array, str]:
    """The tutorial STN as a whole: torch.onnx.export's file, ours without and with the library, and eager PyTorch."""
    loaded = load_source("tutorial-stn")
    image = torch.rand(batch, *loaded.input_shapes[0], generator=torch.Generator().manual_seed(0))
    calls = whole_files(*plain_and_portable(loaded), image.numpy(), threads)

    def eager() -> Array:
        with torch.inference_mode():
            return loaded.module(image).numpy()  # type: ignore[no-any-return]

    calls["PyTorch, eager"] = eager
    with torch.no_grad():
        expected = loaded.module.double()(image.double()).numpy()
        loaded.module.float()
    return calls, expected, "onnxruntime, fused"


def plain_and_portable(loaded: LoadedModel) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The file that torch.onnx.export writes, and ours."""
    plain = export_plain(loaded.module, loaded.input_shapes, loaded.name)
    return plain, fuse(plain)[0]


def whole_files(plain: onnx.ModelProto, portable: onnx.ModelProto, image: Array, threads: int) -> Calls:
    """onnxruntime on both files, and on ours with the library."""
    feeds = {plain.graph.input[0].name: image}
    sessions = {
        "onnxruntime, plain export": session(plain, False, threads),
        "onnxruntime, function": session(portable, False, threads),
        "onnxruntime, fused": session(portable, True, threads),
    }
    return {name: partial(first_output, one, feeds) for name, one in sessions.items()}


def affine_node(shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """A portable file of one affine spatial transformer."""
    height, width = shape[2:]
    y, x = np.meshgrid(*[(2 * np.arange(size) + 1) / size - 1 for size in (height, width)], indexing="ij")
    basis = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)
    attributes = node_attributes("affine", (height, width), "bilinear", "zeros", False)
    image = ["batch", *shape[1:]]
    graph = helper.make_graph(
        [helper.make_node(SPATIAL, ["input", "theta", "basis"], ["output"], domain=DOMAIN, **attributes)],
        "warp",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, image),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["batch", 2, 3]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(basis, "basis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    attach_functions(model)
    return model


def session(model: onnx.ModelProto, library: bool, threads: int) -> ort.InferenceSession:
    """A session whose threads sleep between calls, so that it does not disturb whoever has the next turn."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library:
        options.register_custom_ops_library(str(plugin.library_path()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def first_output(one: ort.InferenceSession, feeds: dict[str, Array]) -> Array:
    """The session's first output."""
    return one.run(None, feeds)[0]  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
