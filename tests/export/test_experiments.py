"""The other experiments: each can be built, and each set is trained for a moment and measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from export import trainer
from export.datasets import colocalize
from export.experiments import CANVAS, FolderExperiment, experiments, folder_experiments
from export.trainer import Run, perform, task_of
from stn_infer.errors import SourceError
from stn_infer.models.recipes import SETS, Data
from tests.support.digits import plain_digits, use
from tests.support.photographs import write_birds, write_house_numbers

#: One of each set, with a transformer; options that make it quick.
QUICK = {
    "addition-2xst-fcn-affine": {"hidden": 16},
    "colocalization": {"filters": 4},
    "house-numbers-st-multi": {"width": 0.1, "hidden": 16},
    "two-parts-2st": {"width": 0.1, "output_size": (32, 32)},
    "volumes-st": {"filters": 2, "localization_filters": 2},
}
FOUND = {experiment.name: experiment for experiment in experiments()}


def test_every_set_has_an_experiment_and_a_canvas() -> None:
    assert {experiment.data for experiment in FOUND.values()} == set(SETS) == set(CANVAS)
    assert len(FOUND) == len(list(experiments())) == 14


@pytest.mark.parametrize("name", FOUND)
def test_the_network_fits_the_set(name: str) -> None:
    recipe = FOUND[name].recipe()
    assert recipe.data is not None and recipe.input_shape[-2:] == recipe.data.canvas
    with torch.inference_mode():
        output = Run(recipe, False, 0).network().eval()(torch.rand(2, *recipe.input_shape))
    if isinstance(output, dict):
        assert output["box"].shape == (2, 4)
    else:
        shapes = {"addition": (2, 19), "house-numbers": (2, 5, 11), "two-parts": (2, 16), "volumes": (2, 10)}
        assert output.shape == shapes[recipe.data.distortion]


@pytest.mark.parametrize("name", QUICK)
def test_a_set_is_trained_and_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plain_digits())
    monkeypatch.setattr(colocalize, "ENCODER_STEPS", 1)
    task = task_of(FOUND[name].recipe())
    monkeypatch.setattr(type(task), "samples", 6)
    monkeypatch.setattr(type(task), "tests", 4)
    experiment = replace(FOUND[name], options={**FOUND[name].options, **QUICK[name]})
    recipe = experiment.recipe()
    assert recipe.training is not None
    run = Run(replace(recipe, training=replace(recipe.training, epochs=2, batch_size=3)), False, 0)
    before = run.network().state_dict()
    perform(run, tmp_path, lambda line: None)
    figures = run.finished(tmp_path)
    assert figures is not None and figures["images"] == 4 and 0 <= figures["error"] <= 100
    assert ("digit_error" in figures) == (experiment.data == "house-numbers")
    assert ("iou" in figures) == (experiment.data == "colocalization")
    after = load_file(tmp_path / f"{run.name}.safetensors")
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[key], before[key]) for key in after)


def test_a_canvas_of_another_size_is_one_line() -> None:
    recipe = FOUND["addition-cnn"].recipe()
    with pytest.raises(SourceError, match="addition has a canvas of 42 x 42, not 40 x 42"):
        task_of(replace(recipe, data=Data("addition", (40, 42), "mnist")))
    with pytest.raises(SourceError, match="house-numbers has a canvas of 64 x 64, not 64 x 48"):
        task_of(replace(recipe, data=Data("house-numbers", (64, 48), "mnist")))


def test_the_classifier_heads_of_house_numbers_keep_their_learning_rate() -> None:
    recipe = FOUND["house-numbers-st-multi"].recipe()
    network = Run(replace(recipe, options={**recipe.options, "width": 0.1}), False, 0).network()
    fast, slow = trainer._groups(network, 0.1)
    assert any(parameter is network.heads.weight for parameter in fast["params"])
    localized = {id(value) for key, value in network.named_parameters() if "localization" in key}
    assert {id(value) for value in slow["params"]} == localized


@pytest.mark.slow
@pytest.mark.parametrize("experiment", list(folder_experiments()), ids=lambda experiment: experiment.name)
def test_the_network_fits_the_data_set(experiment: FolderExperiment) -> None:
    recipe = experiment.recipe()
    with torch.device("meta"):
        output = Run(recipe, False, 0).network().eval()(torch.empty(2, *recipe.input_shape))
    assert output.shape == ((2, 5, 11) if experiment.data == "svhn" else (2, 200))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("svhn-64-st-single", {"input_shape": (3, 16, 16), "width": 0.05, "hidden": 8, "localization_filters": 2}),
        ("cub-224-cnn", {"input_shape": (3, 32, 32), "width": 0.05}),
    ],
)
def test_a_data_set_of_the_users_is_trained_and_measured(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    write_house_numbers(tmp_path / "train", 5)
    write_house_numbers(tmp_path / "test", 3)
    write_birds(tmp_path, 5, 3)
    found = {experiment.name: experiment for experiment in folder_experiments()}
    recipe = replace(found[name], options=options).recipe()
    assert recipe.training is not None
    run = Run(replace(recipe, training=replace(recipe.training, epochs=1, batch_size=2)), False, 0, folder=tmp_path)
    perform(run, tmp_path, lambda line: None)
    figures = run.finished(tmp_path)
    assert figures is not None and figures["images"] == 3 and 0 <= figures["error"] <= 100
    with pytest.raises(SourceError, match="give its folder with --data"):
        task_of(recipe)
