"""Build a TensorRT engine with two optimization profiles, and check and time a batch in each and one between them.

    PYTHONPATH=. python benchmarks/gpu_profiles.py -o result.jsonl
    PYTHONPATH=. python benchmarks/gpu_profiles.py --device cpu --tiny     # without a GPU

The model is one affine spatial transformer, in the plugin where TensorRT takes it. The batches run in turn, each
several times: enqueued, recorded as a CUDA graph, and from the graph, with other pixels each time. Outputs are compared
with those of onnxruntime on the CPU. Times are of arrays of this machine, with both copies. Without a GPU, TensorRT-RTX
builds the engine for another machine, and onnxruntime runs the batches in its place. Lines are written as by gpu.py; a
missing package is a note.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_check.arguments import parse
from stn_infer.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from stn_infer.backends.base import Backend

_CASE = "two optimization profiles"
_PROFILES = ("1:1:1", "8:64:64")
_TURNS = 4
_LIMIT = 2e-4  # of an output's error; pixels are at most 1


@dataclass(frozen=True)
class Batch:
    """A batch that is run.

    Attributes:
        size: its samples.
        profile: the index of the profile that runs it.
        padded: the samples that the engine computes.
    """

    size: int
    profile: int
    padded: int


BATCHES = (Batch(1, 0, 1), Batch(64, 1, 64), Batch(3, 1, 8))


def measure(device: str, size: int, calls: int, folder: Path) -> tuple[float, dict[Batch, float]]:
    """Build the engine and run all batches.

    Args:
        device: ``cuda:N``, or ``cpu`` to try it.
        size: height and width of the images.
        calls: of each batch that are timed.
        folder: an empty folder.

    Returns:
        (the largest error of an output, the median milliseconds of each batch).

    Raises:
        ImportError, MissingDependencyError: a package is missing.
        UsageError: TensorRT-RTX does not build for this GPU.
        StnInferError: the engine cannot be built or run.
        SystemExit: a batch would run in another profile, or its outputs are wrong.
    """
    from stn_infer.api.engines.build import build
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.backends.tensorrt.backend import open_engine
    from stn_infer.backends.tensorrt.options import BuildOptions
    from stn_infer.backends.tensorrt.selection import nearest

    model, engine = folder / "model.onnx", folder / "model.engine"
    model.write_bytes(_model(size))
    runtime = "tensorrt" if device != "cpu" and find_spec("tensorrt") else "tensorrt-rtx"
    target, gpu = ("sm89", "cuda") if device == "cpu" else (None, device)
    options = BuildOptions.parse(runtime, target, _PROFILES, device=gpu)
    report = build(model, engine, options, cache=folder / "cache")
    print(report, flush=True)
    profiles = report.sidecar.key.profiles
    for batch in BATCHES:
        chosen = nearest(profiles, {each.name: (batch.padded, *each.opt[1:]) for each in profiles[0]})
        if chosen != batch.profile:
            raise SystemExit(f"a batch of {batch.padded} runs in profile {chosen}, not {batch.profile}")
    opened: Backend = OrtBackend(model) if device == "cpu" else open_engine(engine, runtime, device)
    random = np.random.default_rng(0)
    worst, times = 0.0, dict[Batch, float]()
    with closing(OrtBackend(model)) as reference, closing(opened) as backend:
        for turn in range(_TURNS):
            for batch in BATCHES:
                noise = 0.1 * random.random((batch.size, 2, 3), np.float32)
                theta = np.array([[1, 0.1, 0], [-0.1, 1, 0]], np.float32) + noise
                inputs = {"input": random.random((batch.size, 3, size, size), np.float32), "theta": theta}
                wanted, found = reference.run(inputs)["output"], backend.run(inputs)["output"]
                error = float(np.abs(wanted - found).max()) if wanted.shape == found.shape else np.inf
                if not error <= _LIMIT:
                    raise SystemExit(f"a batch of {batch.size} is wrong by {error:.3g} in turn {turn}")
                worst = max(worst, error)
                if turn == _TURNS - 1:
                    times[batch] = median(_milliseconds(backend, inputs) for _ in range(calls))
        print(backend.describe(), flush=True)
    return worst, times


def _model(size: int) -> bytes:
    """An affine spatial transformer of images [N, 3, size, size]."""
    from benchmarks.op_files import op_file
    from stn_infer.samplers import SamplerSpec

    centers = (2 * np.arange(size) + 1) / size - 1
    y, x = np.meshgrid(centers, centers, indexing="ij")
    basis = np.stack([x.ravel(), y.ravel(), np.ones(size * size)]).astype(np.float32)
    made: bytes = op_file("affine", (3, size, size), basis, (size, size), SamplerSpec()).SerializeToString()
    return made


def _milliseconds(backend: Backend, inputs: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> float:
    start = time.perf_counter()
    backend.run(inputs)
    return 1e3 * (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    """Build, check and time; see the module's docstring."""
    arguments, records = parse(__doc__, "gpu_profiles.py", "use small images and few calls", argv)
    if records:
        if _CASE in records.begun():
            return 0
        records.append("begin", _CASE)
    size, calls = (16, 3) if arguments.tiny else (224, 200)
    try:
        with tempfile.TemporaryDirectory() as folder:
            error, times = measure(arguments.device, size, calls, Path(folder))
    except (ImportError, MissingDependencyError, UsageError) as problem:  # a GPU machine may have only PyTorch
        print(f"{_CASE} are omitted: {problem}", flush=True)
        if records:
            records.append("note", _CASE, reason=str(problem))
        return 0
    for batch, milliseconds in times.items():
        variant = f"batch {batch.size}, profile {batch.profile}"
        print(f"{variant:24} {milliseconds:9.3f} ms", flush=True)
        if records:
            records.append("row", _CASE, variant=variant, device_ms=milliseconds)
    print(f"largest error {error:.2g}, at most {_LIMIT:g}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
