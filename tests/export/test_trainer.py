"""A training run: interrupted and continued it ends as one that was not; a foreign or damaged state is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export import trainer
from export.bfloat16 import BFloat16Conv2d
from export.cells import PAPER, cells, more_cells
from export.datasets.composed import Addition
from export.datasets.task import Batch, Part
from export.trainer import Run, train
from stn_infer.data.digits import Digits
from stn_infer.data.distort import DISTORTIONS
from stn_infer.errors import InputError, SourceError
from stn_infer.models import NETWORKS, recipes
from stn_infer.models.recipes import Data, Recipe, Training
from tests.support.digits import plain_digits, use

RECIPE = Recipe(
    name="small",
    network="st-fcn-attention",
    input_shape=(1, 28, 28),
    options={"input_shape": (1, 28, 28), "hidden": 16},
    data=Data("RTS", (28, 28)),
    training=Training(epochs=3, batch_size=50, learning_rate=1e-3),
)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    digits = Digits(rng.integers(0, 256, (120, 28, 28), dtype=np.uint8), rng.integers(0, 10, 120))
    monkeypatch.setattr(trainer, "training_digits", lambda recipe: digits)


def weights(run: Run, state: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """The trained weights; ``stop_after``: interrupted after so many states were written."""
    network = run.network()
    written = 0
    keep = trainer._keep

    def stopping(*arguments: object) -> None:
        nonlocal written
        keep(*arguments)  # type: ignore[arg-type]
        written += 1
        if written == stop_after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_keep", stopping)
        try:
            train(network, run, state, lambda line: None)
        except KeyboardInterrupt:
            assert stop_after is not None
    return network.state_dict()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    assert RECIPE.training is not None
    run = Run(replace(RECIPE, training=replace(RECIPE.training, optimizer=optimizer)), False, 3)
    whole = weights(run, tmp_path / "whole.state")
    first = weights(run, tmp_path / "part.state", stop_after=1)
    assert any(not torch.equal(first[name], value) for name, value in whole.items())
    weights(run, tmp_path / "part.state", stop_after=1)
    continued = weights(run, tmp_path / "part.state")
    assert all(torch.equal(continued[name], value) for name, value in whole.items())


def test_a_state_of_other_settings_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "small.state"
    weights(Run(RECIPE, False, 3), state, stop_after=1)
    with pytest.raises(InputError, match="belongs to other settings"):
        weights(Run(RECIPE, False, 4), state)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"is damaged .*; delete it"):
        weights(Run(RECIPE, False, 3), state)


@pytest.mark.parametrize(
    ("optimizer", "done", "expected"),
    [("sgd", 0.0, 1), ("sgd", 0.34, 0.1), ("sgd", 0.99, 0.01), ("adam", 0.025, 0.5), ("adam", 0.05, 1), ("adam", 1, 0)],
)
def test_the_learning_rate_follows_its_schedule(optimizer: str, done: float, expected: float) -> None:
    assert trainer._rate(optimizer, done, 0.05) == pytest.approx(expected)


def test_every_figure_of_the_paper_is_a_cell_that_can_be_built() -> None:
    found = list(cells())
    assert len(found) == sum(len(row) for row in PAPER.values()) == 36
    assert len({cell.name for cell in found}) == len(found)
    assert [cell.name for cell in found[:3]] == ["st-cnn-affine-r", "st-cnn-projective-r", "st-cnn-tps-r"]
    for cell in found:
        recipe = cell.recipe()
        assert recipe.data is not None
        network = Run(recipe, False, 0).network().eval()
        with torch.inference_mode():
            assert network(torch.zeros(2, *recipe.input_shape)).shape == (2, 10)


def test_cells_without_a_figure_of_the_paper_can_be_built() -> None:
    found = list(more_cells())
    assert len({cell.name for cell in found}) == 30 and not {cell.name for cell in found} & {c.name for c in cells()}
    for cell in found:
        recipe = cell.recipe()
        assert cell.paper is None and NETWORKS[cell.network].family in ("PiecewiseAffine", "Translation", "Attention")
        if recipe.data is not None and recipe.data.distortion in ("R", "RTS"):
            network = Run(recipe, False, 0).network().eval()
            with torch.inference_mode():
                assert network(torch.zeros(2, *recipe.input_shape)).shape == (2, 10)


def test_recipes_know_the_distortions() -> None:
    assert recipes.DISTORTIONS == DISTORTIONS


def test_a_result_counts_only_for_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "measure", lambda network, run, device: ({"error": 12.5}, 100))
    assert RECIPE.training is not None
    run = Run(RECIPE, False, 3)
    assert run.finished(tmp_path) is None
    trainer.perform(run, tmp_path, lambda line: None)
    figures = run.finished(tmp_path)
    assert figures is not None and (figures["error"], figures["images"], figures["epochs"]) == (12.5, 100, 3)
    longer = Run(replace(RECIPE, training=replace(RECIPE.training, epochs=4)), False, 3)
    assert longer.name == run.name and longer.finished(tmp_path) is None


def test_distortions_grow_over_the_ramp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plain_digits())
    monkeypatch.setattr(Addition, "samples", 6)
    seen: list[float] = []
    draw = Addition.draw

    def recording(task: Addition, part: Part, count: int, generator: torch.Generator, strength: float = 1) -> Batch:
        seen.append(strength)
        return draw(task, part, count, generator, strength)

    monkeypatch.setattr(Addition, "draw", recording)
    training = Training(epochs=4, batch_size=2, seeds=(0,), ramp=0.5)
    options = {"input_shape": (2, 42, 42), "classes": 19, "hidden": 4}
    recipe = Recipe("sum", "fcn", (2, 42, 42), options, data=Data("addition", (42, 42), "mnist"), training=training)
    whole = weights(Run(recipe, False, 0), tmp_path / "a.state")
    assert seen == pytest.approx([min(1, step / 6) for step in range(12)])
    assert any(
        not torch.equal(value, whole[key]) for key, value in Run(recipe, False, 0).network().state_dict().items()
    )
    parts = tmp_path / "b.state"
    weights(Run(recipe, False, 0), parts, stop_after=2)
    assert all(torch.equal(value, whole[key]) for key, value in weights(Run(recipe, False, 0), parts).items())
    plain = Run(replace(recipe, training=replace(training, ramp=0.0)), False, 0)
    assert plain.settings != Run(recipe, False, 0).settings and "ramp" not in plain.settings


def test_a_ramp_of_another_set_is_one_line(tmp_path: Path) -> None:
    assert RECIPE.training is not None
    run = Run(replace(RECIPE, training=replace(RECIPE.training, ramp=0.5)), False, 0)
    with pytest.raises(SourceError, match="ramp applies to addition and house-numbers only"):
        weights(run, tmp_path / "x.state")


def test_a_run_of_another_precision_is_another_run(tmp_path: Path) -> None:
    assert RECIPE.training is not None
    half = Run(replace(RECIPE, training=replace(RECIPE.training, precision="bf16")), False, 0)
    assert half.settings == f"{Run(RECIPE, False, 0).settings}, bf16"


def test_convolutions_are_float32_again_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3))
    seen: list[list[type]] = []
    record = lambda *arguments: seen.append([type(module) for module in network])  # noqa: E731
    monkeypatch.setattr(Run, "network", lambda run: network)
    monkeypatch.setattr(trainer, "train", lambda *arguments: record() or 0.0)
    monkeypatch.setattr(trainer, "measure", lambda *arguments: record() or ({"error": 1.0}, 1))
    assert RECIPE.training is not None
    run = Run(replace(RECIPE, training=replace(RECIPE.training, precision="bf16")), False, 0)
    trainer.perform(run, tmp_path, lambda line: None)
    assert seen == [[BFloat16Conv2d], [torch.nn.Conv2d]]
    figures = run.finished(tmp_path)
    assert figures is not None and figures["precision"] == "bf16"


@pytest.mark.parametrize(("precision", "quick", "said"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)])
def test_bfloat16_on_a_cpu_that_is_slow_at_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, quick: bool, said: int
) -> None:
    monkeypatch.setattr(trainer, "quick", lambda: quick)
    monkeypatch.setattr(trainer, "train", lambda *arguments: 0.0)
    monkeypatch.setattr(trainer, "measure", lambda *arguments: ({"error": 1.0}, 1))
    assert RECIPE.training is not None
    lines: list[str] = []
    run = Run(replace(RECIPE, training=replace(RECIPE.training, precision=precision)), False, 0)
    trainer.perform(run, tmp_path, lines.append)
    assert len(lines) == said and all("--precision fp32" in line for line in lines)
