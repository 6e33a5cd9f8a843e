"""Measure JPEG files decoded by nvImageCodec on the GPU beside Pillow: how far pixels are apart, and images per second.

    PYTHONPATH=. python benchmarks/gpu_decode.py -o result.jsonl
    PYTHONPATH=. python benchmarks/gpu_decode.py --device cpu --tiny     # the same steps by its decoder for CPUs

Pictures are synthetic: ripples, edges and noise. ``pixels`` compares each kind of file; of those that are left to
Pillow, it checks that they are. The speeds are those of reading, decoding and resizing files in batches as `run` does,
up to the pixels that a backend takes: Pillow on all cores, nvImageCodec with two threads. Each is the best of a few
repetitions. Lines are written as by gpu.py.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_check.arguments import parse
from stn_infer.errors import MissingDependencyError

_MEAN, _MOST = 1.0, 4.0  # levels: of the mean, and of 99 % of the values
_REPEATS = 3
_FILES = 64  # different ones
_COMPARED = (480, 640)
PIXELS = "pixels"


@dataclass(frozen=True)
class Case:
    """Files to read.

    Attributes:
        name: of the case.
        size: (height, width) of the pictures.
        count: the number of files.
        batch: files per batch.
    """

    name: str
    size: tuple[int, int]
    count: int
    batch: int

    def tiny(self) -> Case:
        """The same with few small files."""
        return replace(self, size=(self.size[0] // 8, self.size[1] // 8), count=8, batch=4)


CASES = (
    Case("JPEG 224x224", (224, 224), 4096, 256),
    Case("JPEG 1080x1920 to 224x224", (1080, 1920), 512, 64),
)


def picture(size: tuple[int, int], seed: int = 0) -> Any:
    """A Pillow image."""
    from PIL import Image

    height, width = size
    y, x = np.mgrid[0:height, 0:width] / (0.1 * height)
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    red = 120 + 80 * np.sin(x * 1.3 + y + seed) + 40 * (x > y)
    waves = np.stack([red, 255 * x / x.max(), 60 + 90 * np.cos(y * 1.7) ** 2], -1)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def kinds(size: tuple[int, int]) -> Iterator[tuple[str, bytes, bool]]:
    """The kinds of files: name, content, and whether nvImageCodec decodes it."""
    from PIL import Image

    image, turned = picture(size), Image.Exif()
    turned[0x0112] = 6
    for name, mode, how in (
        ("4:4:4", "RGB", {"subsampling": 0}),
        ("4:2:2", "RGB", {"subsampling": 1}),
        ("4:2:0", "RGB", {"subsampling": 2}),
        ("quality 30", "RGB", {"quality": 30}),
        ("progressive", "RGB", {"progressive": True}),
        ("gray", "L", {}),
        ("turned", "RGB", {"exif": turned}),
        ("CMYK", "CMYK", {}),
    ):
        file = io.BytesIO()
        image.convert(mode).save(file, "JPEG", **{"quality": 90, **how})
        yield name, file.getvalue(), mode != "CMYK"
        if name == "4:2:0":
            yield "truncated", file.getvalue()[:-200], False


def compare(device: str, size: tuple[int, int]) -> dict[str, tuple[float, float, float]]:
    """By kind of file the mean, the 99th percentile and the largest difference from Pillow's pixels, in levels.

    Raises:
        SystemExit: a file was decoded that is Pillow's, or the other way round.
    """
    from stn_infer.data.codecs.nvimgcodec import JpegDecoder
    from stn_infer.data.images import decode
    from stn_infer.preprocess.rule import Preprocess

    rule, files, found = Preprocess("rgb"), list(kinds(size)), {}
    decoded = JpegDecoder(device).decode([data for _, data, _ in files], rule, (None, None))
    for (name, data, wanted), pixels in zip(files, decoded, strict=True):
        if (pixels is not None) is not wanted:
            raise SystemExit(f"{name}: nvImageCodec {'did not decode' if wanted else 'decoded'} the file")
        if pixels is not None:
            error = np.abs(pixels.transpose(2, 0, 1).astype(np.int16) - decode(data, rule))
            found[name] = float(error.mean()), float(np.percentile(error, 99)), float(error.max())
    return found


def measure(case: Case, device: str, folder: Path) -> dict[str, float]:
    """Images per second of Pillow and nvImageCodec."""
    from stn_infer.backends.base import TensorSpec
    from stn_infer.data.inputs import Sample
    from stn_infer.data.loader import Loader
    from stn_infer.preprocess.rule import Preprocess

    paths = [folder / f"{index}.jpg" for index in range(min(_FILES, case.count))]
    for seed, path in enumerate(paths):
        picture(case.size, seed).save(path, quality=90)
    samples = [Sample(str(it), str(it)) for it in (paths[index % len(paths)] for index in range(case.count))]
    batches = [samples[start : start + case.batch] for start in range(0, case.count, case.batch)]
    spec, rule = TensorSpec("input", (None, 3, 224, 224), np.dtype(np.float32)), Preprocess("rgb", (224, 224))

    def rate(loader: Loader, threads: int) -> float:
        best = 0.0
        with ThreadPoolExecutor(threads) as pool:
            for turn in range(_REPEATS + 1):
                start = time.perf_counter()
                for loaded in pool.map(loader.read, batches):
                    if loaded.errors:
                        raise SystemExit(f"{case.name}: {next(iter(loaded.errors.values()))}")
                    for group in loaded.groups:
                        loader.release(group)
                if turn:  # the first one warms up
                    best = max(best, case.count / (time.perf_counter() - start))
        return best

    return {
        "pillow": rate(Loader([spec], rule), len(os.sched_getaffinity(0))),
        "nvimgcodec": rate(Loader([spec], replace(rule, jpeg="nvimgcodec"), device=device), 2),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure all cases; see the module's docstring."""
    arguments, records = parse(__doc__, "gpu_decode.py", "use few small files", argv)

    def write(kind: str, case: str, line: str = "", **values: object) -> None:
        if line:
            print(f"{case}: {line}", flush=True)
        if records:
            records.append(kind, case, **values)

    def figure(case: str, name: str, value: float, target: float, reached: bool, **more: float) -> None:
        line = f"{name} {value:.2f}, target {target}"
        write("figure", case, line, name=f"{case}: {name}", value=value, target=target, reached=reached, **more)

    cases = {case.name: case for case in (case.tiny() if arguments.tiny else case for case in CASES)}
    for name in (PIXELS, *cases):
        if records and name in records.begun():
            continue
        write("begin", name)
        try:
            if name == PIXELS:
                start = time.perf_counter()
                compared = compare(arguments.device, _COMPARED)
                write("row", name, variant="compared", device_ms=1e3 * (time.perf_counter() - start))
                for kind, (mean, most, largest) in compared.items():
                    figure(name, f"{kind}, mean difference from Pillow in levels", mean, _MEAN, mean <= _MEAN)
                    figure(name, f"{kind}, of 99 % of the values", most, _MOST, most <= _MOST, largest=largest)
                continue
            with tempfile.TemporaryDirectory() as folder:
                rates = measure(cases[name], arguments.device, Path(folder))
        except (ImportError, MissingDependencyError) as error:
            write("note", name, f"omitted: {error}", reason=str(error))
            continue
        for variant, found in rates.items():
            write(
                "row",
                name,
                f"{variant} {found:,.0f} images/s",
                variant=variant,
                images_per_s=found,
                device_ms=1e3 / found,
            )
        speedup = rates["nvimgcodec"] / rates["pillow"]
        figure(name, "nvImageCodec over Pillow on all cores", speedup, 1.0, speedup >= 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
