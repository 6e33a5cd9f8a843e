"""Train the shipped models: each recipe (model config in TOML) and its baseline (no STN), for all seeds.

    python export/train.py                       all recipes in stn_infer/models/shipped
    python export/train.py st-cnn-affine-rts     one of them
    python export/train.py mine.toml -o results  your own

Completed runs (recipe, model or baseline, seed) are stored in the work folder, so that an interrupted training can be
resumed. The weights of the first seed are shipped: selecting the best by test error would bias the reported error.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stn_infer.data.digits import HELD_OUT_PER_CLASS, Digits, split_digits
from stn_infer.data.distort import distort, held_out_distorted
from stn_infer.errors import SourceError, StnInferError
from stn_infer.metadata import Preprocess
from stn_infer.models import create
from stn_infer.models.catalog import FOLDER
from stn_infer.models.recipes import Recipe, load_recipe

COPIES = 10  # distortions per held-out digit in the test set


@dataclass(frozen=True)
class Run:
    """One training run: the recipe's network, or its baseline without a spatial transformer (``twin``)."""

    recipe: Path
    twin: bool
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe.stem}-{'twin' if self.twin else 'model'}-{self.seed}"

    def network(self, recipe: Recipe) -> nn.Module:
        torch.manual_seed(self.seed)
        if self.twin:
            return create(str(recipe.twin), **recipe.twin_options)
        return create(recipe.network, **recipe.options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of shipped models, or TOML files (default: all shipped)")
    parser.add_argument("-o", "--output", type=Path, help="folder for weights and errors (default: the recipe's)")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="folder for completed runs")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs, one thread each (default: 2)")
    arguments = parser.parse_args()
    names = arguments.recipes or sorted(path.stem for path in FOLDER.glob("*.toml"))
    paths = [Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml" for name in names]
    arguments.work.mkdir(parents=True, exist_ok=True)
    tasks = [(run, arguments.work) for run in _runs(paths) if not (arguments.work / f"{run.name}.json").is_file()]
    if tasks:
        with multiprocessing.get_context("spawn").Pool(min(arguments.jobs, len(tasks))) as pool:
            for line in pool.imap_unordered(_train_and_keep, tasks, chunksize=1):
                print(line, flush=True)
    for path in paths:
        print(_collect(path, arguments.work, arguments.output or path.parent), flush=True)


def _runs(paths: list[Path]) -> Iterator[Run]:
    recipes = [(path, load_recipe(path)) for path in paths]
    for turn in range(max(len(_seeds(recipe)) for _, recipe in recipes)):
        for path, recipe in recipes:
            if turn < len(_seeds(recipe)):
                yield Run(path, False, _seeds(recipe)[turn])
                if recipe.twin:
                    yield Run(path, True, _seeds(recipe)[turn])


def _seeds(recipe: Recipe) -> tuple[int, ...]:
    if recipe.data is None or recipe.training is None:
        raise SourceError(f"recipe {recipe.name} cannot be trained: it needs [data] and [training]")
    return recipe.training.seeds


def _train_and_keep(task: tuple[Run, Path]) -> str:
    run, work = task
    torch.set_num_threads(1)
    started = time.perf_counter()
    recipe = load_recipe(run.recipe)
    network = run.network(recipe)
    train(network, recipe, run.seed, run.name)
    error = test_error(network, recipe)
    seconds = round(time.perf_counter() - started)
    save_file(network.state_dict(), work / f"{run.name}.safetensors")
    (work / f"{run.name}.json").write_text(json.dumps({"error": error, "seconds": seconds}))
    return f"{run.name}: test error {error:.2f} % after {seconds} s"


def train(network: nn.Module, recipe: Recipe, seed: int, name: str) -> None:
    """Train with Adam, warm-up, cosine decay and cross-entropy, with new random distortions in every epoch."""
    assert recipe.data is not None and recipe.training is not None
    plan = recipe.training
    digits = split_digits()[0]
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(_groups(network, plan.learning_rate, plan.localization_factor))
    steps = plan.epochs * math.ceil(len(labels) / plan.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, plan.warmup))
    network.train()
    for epoch in range(plan.epochs):
        inputs = as_input(distort(images, recipe.data.distortion, generator, recipe.data.canvas), recipe)
        losses = []
        for batch in torch.randperm(len(labels), generator=generator).split(plan.batch_size):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(network(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 9:
            print(f"{name}: epoch {epoch + 1} of {plan.epochs}, loss {fmean(losses):.4f}", flush=True)
    network.eval()


def test_error(network: nn.Module, recipe: Recipe, copies: int = COPIES) -> float:
    """The error in percent over ``copies`` distortions of each held-out digit, as 8-bit images."""
    assert recipe.data is not None
    test: Digits = held_out_distorted(recipe.data.distortion, recipe.data.canvas, copies)
    with torch.inference_mode():
        chunks = torch.from_numpy(test.images).split(500)  # type: ignore[no-untyped-call]
        predicted = torch.cat([network(as_input(chunk, recipe)).argmax(1) for chunk in chunks])
    return 100 * float(np.mean(predicted.numpy() != test.labels))


def as_input(images: Tensor, recipe: Recipe) -> Tensor:
    """Converts images [N, H, W] uint8 to the network's input [N, 1, H, W] with the recipe's pre-processing."""
    preprocess = recipe.preprocess or Preprocess()
    return (images[:, None].float() * preprocess.scale - preprocess.mean[0]) / preprocess.std[0]


def _groups(network: nn.Module, rate: float, factor: float) -> list[dict[str, object]]:
    steering: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (steering if "localization" in name or name.startswith("head") else rest).append(parameter)
    return [
        group for group in ({"params": rest, "lr": rate}, {"params": steering, "lr": rate * factor}) if group["params"]
    ]


def _rate(done: float, warmup: float) -> float:
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _collect(path: Path, work: Path, output: Path) -> str:
    recipe = load_recipe(path)
    seeds = _seeds(recipe)

    def errors(twin: bool) -> list[float]:
        files = [work / f"{Run(path, twin, seed).name}.json" for seed in seeds]
        return [round(json.loads(file.read_text())["error"], 4) for file in files]

    own, baseline = errors(False), errors(True) if recipe.twin else []
    figures = {
        "seeds": list(seeds),
        "errors": own,
        "twin": recipe.twin,
        "twin_errors": baseline,
        "shipped_seed": seeds[0],
        "images": COPIES * 10 * HELD_OUT_PER_CLASS,
    }
    output.mkdir(parents=True, exist_ok=True)
    weights = (work / f"{Run(path, False, seeds[0]).name}.safetensors").read_bytes()
    (output / f"{path.stem}.safetensors").write_bytes(weights)
    (output / f"{path.stem}.json").write_text(json.dumps(figures, indent=2) + "\n")
    beside = f", baseline {recipe.twin} {fmean(baseline):.2f} %" if recipe.twin else ""
    return f"{path.stem}: test error {fmean(own):.2f} % (mean of {len(seeds)} seeds){beside}"


if __name__ == "__main__":
    try:
        main()
    except StnInferError as error:
        raise SystemExit(f"error: {error}") from None
