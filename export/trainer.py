"""One training run: data, optimizer, and a state on disk after every epoch, from which an interrupted run goes on.

A run is determined by its recipe and its seed: the state holds the random generator too, so that a run that was
interrupted ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from export.bfloat16 import convolutions, quick
from export.datasets.colocalize import Colocalization
from export.datasets.composed import Addition, HouseNumbers, Volumes
from export.datasets.distorted import DistortedDigits
from export.datasets.folders import CubBirds, SvhnNumbers
from export.datasets.task import Task
from export.datasets.two_parts import TwoParts
from export.one_channel import quicken
from export.snapshots import Snapshots, serialized
from stn_infer.data.digits import Digits, split_digits
from stn_infer.data.distort import TEST_SEED
from stn_infer.data.mnist import load_mnist
from stn_infer.errors import InputError, SourceError
from stn_infer.files import appearing, write_atomically
from stn_infer.models import create
from stn_infer.models.recipes import DISTORTIONS, Recipe
from stn_infer.preprocess.rule import Preprocess

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One training run: the recipe's network, or its baseline without a spatial transformer (``twin``).

    Attributes:
        recipe: with [data] and [training].
        twin: train the baseline instead.
        seed: of the weights, the distortions and the order of the digits.
        validate: measure the error on validation digits instead of the test digits, to choose settings.
        folder: of a data set that is read from one.
        snapshots: of the weights along the training, the first and the last included; 0: none.
    """

    recipe: Recipe
    twin: bool
    seed: int
    validate: bool = False
    folder: Path | None = None
    snapshots: int = 0

    @property
    def name(self) -> str:
        kind = "twin" if self.twin else "model"
        return f"{self.recipe.name}-{kind}-{self.seed}{'-validation' if self.validate else ''}"

    @property
    def settings(self) -> str:
        """All that the weights depend on: a state or a result with other settings is of another run."""
        training = self.recipe.training
        alone = None if training is None else replace(training, seeds=(self.seed,))  # not the other runs' seeds
        settings = (self.recipe.network, dict(self.recipe.options), self.recipe.data, alone, self.twin, self.seed)
        ramp = f", ramp {training.ramp}" if training is not None and training.ramp else ""
        precision = ", bf16" if training is not None and training.precision == "bf16" else ""
        return f"{settings!r}{ramp}{precision}"

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """What :func:`perform` recorded for these settings; None if it did not get there."""
        try:
            figures: dict[str, Any] = json.loads((folder / f"{self.name}.json").read_text())
        except FileNotFoundError:
            return None
        return figures if figures.get("settings") == self.settings else None

    def network(self) -> nn.Module:
        """The network with its initial weights."""
        torch.manual_seed(self.seed)
        if self.twin:
            return create(str(self.recipe.twin), **self.recipe.twin_options)
        return create(self.recipe.network, **self.recipe.options)


def perform(run: Run, work: Path, say: Say, device: str = "cpu") -> float:
    """Train and measure; ``work`` gets ``NAME.safetensors`` and, last, ``NAME.json``; snapshots ``NAME.snapshots/``.

    Returns:
        The error in percent.
    """
    network = run.network().to(device)
    if all(parameter.ndim <= 4 for parameter in network.parameters()):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu":
        quicken(network)
    training = run.recipe.training
    assert training is not None
    if training.precision == "bf16" and device == "cpu" and not quick():
        say(f"{run.name}: this CPU has no bfloat16 instructions; --precision fp32 is many times as quick here")
    with convolutions(network, training.precision):
        seconds = train(network, run, work / f"{run.name}.state", say, device)
    scores, images = measure(network, run, device)
    write_atomically(work / f"{run.name}.safetensors", serialized(network))
    figures = {
        **scores,
        "images": images,
        "seconds": round(seconds),
        "epochs": training.epochs,
        "precision": training.precision,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "settings": run.settings,
    }
    write_atomically(work / f"{run.name}.json", (json.dumps(figures) + "\n").encode())
    (work / f"{run.name}.state").unlink(missing_ok=True)
    return scores["error"]


def train(network: nn.Module, run: Run, state_path: Path, say: Say, device: str = "cpu") -> float:
    """Train with the task's loss on new samples in every epoch; continue from ``state_path`` if it exists.

    Returns:
        Seconds of training, of all parts of an interrupted run.

    Raises:
        InputError: the state belongs to other settings, or is damaged.
    """
    recipe = run.recipe
    assert recipe.training is not None
    plan = recipe.training
    task = task_of(recipe, run.folder)
    if plan.ramp and not task.ramps:
        raise SourceError(f"recipe {recipe.name}: [training] ramp applies to addition and house-numbers only")
    generator = torch.Generator().manual_seed(1000 + run.seed)
    groups = _groups(network, plan.localization_factor)
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, plan.learning_rate, momentum=0.9)
        if plan.optimizer == "sgd"
        else torch.optim.Adam(groups, plan.learning_rate)
    )
    steps_per_epoch = math.ceil(task.samples / plan.batch_size)
    steps = plan.epochs * steps_per_epoch
    begin, seconds = _restore(state_path, run.settings, network, optimizer, generator)
    snapshots = Snapshots(state_path.with_suffix(".snapshots"), steps, run.snapshots, resumed=begin > 0)
    snapshots.keep(network, begin * steps_per_epoch)
    network.train()
    for epoch in range(begin, plan.epochs):
        started = time.perf_counter()
        losses = []
        before = epoch * steps_per_epoch
        strength = partial(_strength, before, steps * plan.ramp)
        for index, (images, targets) in enumerate(task.epoch(plan.batch_size, generator, strength)):
            rate = _rate(plan.optimizer, (before + index) / steps, plan.warmup)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * group["factor"] * rate
            loss = task.loss(network, as_input(images, recipe, device), targets.to(device), generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            snapshots.keep(network, before + index + 1)
        seconds += time.perf_counter() - started
        _keep(state_path, run.settings, epoch + 1, seconds, network, optimizer, generator)
        if epoch % 5 == 4:
            say(f"{run.name}: epoch {epoch + 1} of {plan.epochs}, loss {fmean(losses):.4f}, {seconds:.0f} s")
    network.eval()
    return seconds


def training_digits(recipe: Recipe) -> Digits:
    """The undistorted training digits of a recipe."""
    assert recipe.data is not None
    return load_mnist("training") if recipe.data.digits == "mnist" else split_digits()[0]


def task_of(recipe: Recipe, folder: Path | None = None) -> Task:
    """The experiment that a recipe's [data] names.

    Raises:
        SourceError: a canvas that the set does not have, or a set that is read from a folder without one.
        InputError: the folder does not have it.
    """
    data = recipe.data
    assert data is not None
    if data.digits == "folder":
        if folder is None:
            raise SourceError(f"recipe {recipe.name} is trained on {data.distortion}: give its folder with --data")
        return SvhnNumbers(folder, data.canvas[0]) if data.distortion == "svhn" else CubBirds(folder, data.canvas[0])
    if data.distortion in DISTORTIONS:
        return DistortedDigits(training_digits(recipe), data)
    height, width = data.canvas
    sizes = dict.fromkeys(("colocalization", "colocalization-cluttered"), Colocalization.canvas)
    fixed = {"addition": Addition.canvas[0], **sizes}.get(data.distortion, height)
    if not height == width == fixed:
        raise SourceError(
            f"recipe {recipe.name}: {data.distortion} has a canvas of {fixed} x {fixed}, not {height} x {width}"
        )
    makers: dict[str, Callable[[], Task]] = {
        "addition": Addition,
        "colocalization": Colocalization,
        "colocalization-cluttered": lambda: Colocalization(cluttered=True),
        "house-numbers": lambda: HouseNumbers(height),
        "two-parts": lambda: TwoParts(height),
        "volumes": lambda: Volumes(height),
    }
    return makers[data.distortion]()


def measure(network: nn.Module, run: Run, device: str = "cpu") -> tuple[dict[str, float], int]:
    """(scores in percent, samples): ``error`` and what else the task judges, on samples that are the same in every run.

    Sequences also have ``digit_error``, boxes ``iou``.
    """
    task = task_of(run.recipe, run.folder)
    scores: dict[str, list[Tensor]] = {}
    count = 0
    with torch.inference_mode():
        for images, targets in task.test("validation" if run.validate else "test", TEST_SEED):
            judged = task.judge(network(as_input(images, run.recipe, device)), targets.to(device))
            for name, values in judged.items():
                scores.setdefault(name, []).append(values.cpu().double())
            count += len(images)
    return {name: 100 * float(torch.cat(values).mean()) for name, values in scores.items()}, count


def as_input(images: Tensor, recipe: Recipe, device: str = "cpu") -> Tensor:
    """Converts images [N, H, W] or [N, C, ...] uint8 to the network's input [N, C, ...] with the recipe's scaling."""
    preprocess = recipe.preprocess or Preprocess()
    images = images[:, None] if images.ndim == 3 else images
    shape = (-1, *(1 for _ in images.shape[2:]))
    mean, std = (torch.tensor(values, device=device).reshape(shape) for values in (preprocess.mean, preprocess.std))
    return (images.to(device).float() * preprocess.scale - mean) / std


def _groups(network: nn.Module, factor: float) -> list[dict[str, Any]]:
    steering: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (steering if "localization" in name or name.startswith("head.") else rest).append(parameter)
    return [
        group for group in ({"params": rest, "factor": 1.0}, {"params": steering, "factor": factor}) if group["params"]
    ]


def _strength(before: int, ramp: float, index: int) -> float:
    """Of the distortions at step ``index`` of an epoch that starts at step ``before``: rises over ``ramp`` steps."""
    return min(1.0, (before + index) / ramp) if ramp else 1.0


def _rate(optimizer: str, done: float, warmup: float) -> float:
    if optimizer == "sgd":
        return 0.1 ** int(3 * done)  # of three equal parts, as the paper's 50,000 of 150,000 steps
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _keep(
    path: Path,
    settings: str,
    epoch: int,
    seconds: float,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    state = {
        "settings": settings,
        "epoch": epoch,
        "seconds": seconds,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    with appearing(path) as temporary:
        torch.save(state, temporary)


def _restore(
    path: Path, settings: str, network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[int, float]:
    """(the first epoch to train, seconds before it)."""
    if not path.is_file():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True)
        same = state["settings"] == settings
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged ({reason}); delete it to start this run again") from None
    if not same:
        raise InputError(f"{path} belongs to other settings of this recipe; delete it to start again")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return int(state["epoch"]), float(state["seconds"])
