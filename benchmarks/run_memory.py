"""Memory of `stn-infer run` does not grow with the number of inputs: 100,000 small images in less than 1 GB.

Writes 100,000 small PNG files (28 x 28 gray noise, or as the model wants them), runs the command on the folder in a
process of its own and reads its peak resident set, then does the same with a tenth of them to show the growth:

    python benchmarks/run_memory.py st-cnn-affine-rts --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MB = 1000


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """``count`` gray PNG files of ``size`` in subfolders of a thousand; a few hundred pictures, over and over."""
    import io

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(256):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(buffer, "PNG", compress_level=1)
        pictures.append(buffer.getvalue())
    for i in range(count):
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.png"
        if i % 1000 == 0:
            path.parent.mkdir()
        path.write_bytes(pictures[i % len(pictures)])


def peak_of_run(model: str, folder: Path) -> tuple[float, float]:
    """(peak resident set in MB, seconds) of one `stn-infer run` on ``folder``."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "stn_infer.cli.main", "run", model, str(folder), "-o", f"{output}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, not the largest of all children
        seconds = time.perf_counter() - start
        if status != 0:
            raise SystemExit(f"the run failed: {' '.join(command)}")
    return usage.ru_maxrss / 1000, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file or any source that `stn-infer export` takes")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()

    from stn_infer.api.open import open_backend

    backend = open_backend(arguments.model, threads=1)
    height, width = backend.inputs[0].shape[2:]
    backend.close()
    figures = []
    for count in (arguments.images // 10, arguments.images):
        with tempfile.TemporaryDirectory() as name:
            write_images(Path(name), count, (height or 28, width or 28))
            peak, seconds = peak_of_run(arguments.model, Path(name))
        print(f"{count:8d} images: peak {peak:6.0f} MB, {seconds:6.1f} s ({count / seconds:.0f}/s, start included)")
        figures.append({"images": count, "peak_mb": peak, "seconds": seconds})
    print(f"wanted: less than {LIMIT_MB} MB at {arguments.images} images")
    if arguments.json:
        result = {
            "schema_version": 1,
            "command": ["python", *sys.argv],
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
            },
            "runs": figures,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
