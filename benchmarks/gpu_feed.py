"""Measure how fast `run` feeds a GPU: rows per second of arrays of pixels, beside those of the bus and the model alone.

    PYTHONPATH=. python benchmarks/gpu_feed.py -o result.jsonl
    PYTHONPATH=. python benchmarks/gpu_feed.py --device cpu --tiny     # the same steps without a GPU

For each case: ``bus`` copies batches of uint8 pixels from pinned memory to the device, ``model`` runs a small spatial
transformer network on a batch that is there, and ``run`` is `stn-infer run` in PyTorch on a .npy file that was just
written, with predictions in npz. Each is the best of a few repetitions. The target is a share of the slower one of the
first two. Lines are written as by gpu.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_check.arguments import parse
from stn_infer.layers import SpatialTransformer
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import LoadedModel
from stn_infer.transforms import Affine

_TARGET = 0.6
_REPEATS = 3


@dataclass(frozen=True)
class Case:
    """A job.

    Attributes:
        name: of the case.
        shape: of an image, [C, H, W].
        count: the number of images.
        batch: per call of the model.
    """

    name: str
    shape: tuple[int, int, int]
    count: int
    batch: int

    def tiny(self) -> Case:
        """The same with few images."""
        return Case(self.name, self.shape, 40, 16)


CASES = (Case("color 224x224", (3, 224, 224), 8192, 256), Case("gray 28x28", (1, 28, 28), 262_144, 1024))


class Network(nn.Module):
    """A spatial transformer, fused where there is a kernel, and a linear classifier of a few pixels."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        pooled = 7 * 7 * channels
        localization = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(pooled, 6))
        self.transformer = SpatialTransformer(localization, Affine(), (height, width), fused=True)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(pooled, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores [N, 10]."""
        scores: torch.Tensor = self.classifier(self.transformer(images))
        return scores


def rate(call: Callable[[], int], device: torch.device) -> float:
    """Rows per second of a call that returns the number of rows, the best of a few; the first one warms up."""
    cuda: Any = torch.cuda if device.type == "cuda" else None
    best = 0.0
    for turn in range(_REPEATS + 1):
        start = time.perf_counter()
        rows = call()
        if cuda:
            cuda.synchronize(device)
        if turn:
            best = max(best, rows / (time.perf_counter() - start))
    return best


def measure(case: Case, device: torch.device, folder: Path) -> dict[str, float]:
    """Rows per second of the bus, the model and `run`."""
    from stn_infer.backends.eager import EagerBackend
    from stn_infer.pipeline.inference import run_job
    from stn_infer.pipeline.plan import RunOptions

    channels, height, width = case.shape
    torch.manual_seed(0)
    rule = Preprocess("gray" if channels == 1 else "rgb")
    network = Network(case.shape).eval()
    loaded = LoadedModel("network", network, (case.shape,), ModelMetadata(preprocess=rule), "factory")
    backend = EagerBackend(loaded, str(device))
    few = np.random.default_rng(0).integers(0, 256, (case.batch, height, width, channels), dtype=np.uint8)
    host = torch.from_numpy(few)
    host, there = (host.pin_memory() if device.type == "cuda" else host), torch.empty_like(host, device=device)
    batches = -(-case.count // case.batch)

    def bus() -> int:
        for _ in range(batches):
            there.copy_(host, non_blocking=True)
        return batches * case.batch

    values, moved = torch.rand(case.batch, *case.shape, device=device), network.to(device)

    def model() -> int:
        with torch.inference_mode():
            for _ in range(batches):
                moved(values)
        return batches * case.batch

    path = folder / "images.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(case.count, *few.shape[1:]))
    for start in range(0, case.count, case.batch):
        array[start : start + case.batch] = few[: case.count - start]
    array.flush()
    del array

    def run() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            options = RunOptions(batch_size=case.batch, format="npz")
            done = run_job(backend, [path], Path(output) / "out", options, model="network")
        if done.ok != case.count:
            raise SystemExit(f"{done.ok} of {case.count} rows were predicted: {done.failures}")
        return done.ok

    try:
        return {"bus": rate(bus, device), "model": rate(model, device), "run": rate(run, device)}
    finally:
        backend.close()
        path.unlink()


def main(argv: list[str] | None = None) -> int:
    """Measure all cases; see the module's docstring."""
    arguments, records = parse(__doc__, "gpu_feed.py", "use few images", argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{device} was asked for, PyTorch {torch.__version__} finds no usable GPU")
    begun = records.begun() if records else set()
    for case in (case.tiny() if arguments.tiny else case for case in CASES):
        if case.name in begun:
            continue
        if records:
            records.append("begin", case.name)
        try:
            with tempfile.TemporaryDirectory() as folder:
                rates = measure(case, device, Path(folder))
        except ImportError as error:  # a GPU machine may have only PyTorch
            print(f"{case.name} is omitted: {error}", flush=True)
            if records:
                records.append("note", case.name, reason=str(error))
            continue
        for variant, found in rates.items():
            print(f"{case.name:16} {variant:8} {found:12,.0f} rows/s", flush=True)
            if records:
                records.append("row", case.name, variant=variant, rows_per_s=found, device_ms=1e3 / found)
        share = rates["run"] / min(rates["bus"], rates["model"])
        print(f"{case.name}: share of the slower of bus and model {share:.2f}, target {_TARGET}", flush=True)
        if records:
            name = f"{case.name}: share of the slower of bus and model"
            records.append("figure", case.name, name=name, value=share, target=_TARGET, reached=share >= _TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
