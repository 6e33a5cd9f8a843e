"""A demo of the main commands on real images: export, run, bench, show. `make demo` runs it.

Each step is a command line, printed before it runs. The results are in demo-out/. With --prepare it stops after the
export; with --prepared it goes on from there, with what needs no PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

MODEL = "st-cnn-affine-rts"
OUT = Path("demo-out")
DIGITS = OUT / "digits"
PREDICTIONS = OUT / "predictions"


def main() -> None:
    parser = argparse.ArgumentParser(description="A demo of the main commands on real images.")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--prepare", action="store_true", help="only write the digits and export the network")
    parts.add_argument("--prepared", action="store_true", help="only what needs no PyTorch, after --prepare")
    given = parser.parse_args()
    started = time.perf_counter()
    if not given.prepared:
        prepare()
    if given.prepare:
        return
    shutil.rmtree(PREDICTIONS, ignore_errors=True)
    command("run", OUT / "model.onnx", DIGITS, "-o", PREDICTIONS)
    say(score())
    if not given.prepared:
        command("bench", MODEL, "--batch-sizes", "1,64", "--quick", "-o", OUT / "bench.json")
    if importlib.util.find_spec("matplotlib") is not None:
        command("show", OUT / "model.onnx", DIGITS, "-o", OUT / "picture.png", "--sample", 8)
        say(f"look at {OUT}/picture.png")
    say(f"done in {time.perf_counter() - started:.0f} s")


def prepare() -> None:
    """Write the images and export the network."""
    shutil.rmtree(OUT, ignore_errors=True)
    DIGITS.mkdir(parents=True)
    count = write_digits()
    say(f"{count} held-out MNIST digits, rotated, scaled and moved, are in {DIGITS}/")
    command("export", MODEL, "-o", OUT / "model.onnx")


def write_digits() -> int:
    """Write the 1,000 held-out digits, distorted, as PNG files in folders of their classes."""
    import torch
    from PIL import Image

    from stn_infer.data.digits import split_digits
    from stn_infer.data.distort import distort

    _, held_out = split_digits()
    generator = torch.Generator().manual_seed(2015)
    order = torch.randperm(len(held_out.labels), generator=generator)
    images = distort(torch.tensor(held_out.images)[order], "RTS", generator, (42, 42))
    for index, (image, label) in enumerate(zip(images.numpy(), held_out.labels[order], strict=True)):
        folder = DIGITS / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return len(images)


def score() -> str:
    """The accuracy of the predictions, with the classes from the folders' names."""
    rows = [row for shard in sorted(PREDICTIONS.glob("predictions-*.csv")) for row in csv.DictReader(shard.open())]
    right = sum(row["prediction"] == Path(row["input"]).parent.name for row in rows)
    return f"{right} of {len(rows)} predictions are correct: {100 * right / len(rows):.1f} %"


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def command(*words: object) -> None:
    """Run one stn-infer command, after printing it."""
    arguments = [str(word) for word in words]
    say(f"$ stn-infer {shlex.join(arguments)}")
    finished = subprocess.run([Path(sys.executable).parent / "stn-infer", *arguments], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
