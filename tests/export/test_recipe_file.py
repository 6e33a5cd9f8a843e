"""Recipes written and read again: the same network, data and training."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from export.cells import cells, more_cells
from export.experiments import experiments, folder_experiments
from export.recipe_file import text_of
from stn_infer.models.recipes import Recipe, load_recipe

RECIPES = [cell.recipe() for cell in (*cells(), *more_cells(), *experiments())]


def comparable(recipe: Recipe) -> Any:
    """Sequences as lists, as TOML has them."""
    return json.loads(json.dumps(asdict(replace(recipe, twin_options={}))))


def written(recipe: Recipe, folder: Path) -> Recipe:
    path = folder / f"{recipe.name}.toml"
    path.write_text(text_of(recipe), encoding="utf-8")
    return load_recipe(path)


def test_every_cell_is_read_as_it_was(tmp_path: Path) -> None:
    for recipe in RECIPES:
        assert comparable(written(recipe, tmp_path)) == comparable(recipe)


def test_a_set_in_a_folder_is_left_out(tmp_path: Path) -> None:
    for experiment in folder_experiments():
        recipe = experiment.recipe()
        found = written(recipe, tmp_path)
        assert comparable(found) == comparable(replace(recipe, data=None, training=None))


@pytest.mark.parametrize("labels", [('"quoted"', "back\\slash", "ünïcode"), ("a, b", "[x]", "line\nbreak")])
def test_labels_of_any_text(tmp_path: Path, labels: tuple[str, ...]) -> None:
    assert written(replace(RECIPES[0], labels=labels), tmp_path).labels == labels
