"""A recipe as a TOML file, so that the weights of a trained cell can be exported by name of the file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from stn_infer.models.recipes import Recipe
from stn_infer.preprocess.rule import Preprocess


def text_of(recipe: Recipe) -> str:
    """What :func:`stn_infer.models.recipes.load_recipe` reads; without [data] and [training] of a set in a folder."""
    options = {key: value for key, value in recipe.options.items() if key != "input_shape"}
    lines = [] if recipe.labels is None else [f"labels = {_value(recipe.labels)}", ""]
    lines += ["[model]", *_pairs({"network": recipe.network, "input_shape": recipe.input_shape, "options": options})]
    if recipe.preprocess is not None:
        lines += ["", "[preprocess]", *_pairs(_changed(recipe.preprocess))]
    tables = () if recipe.data is None or recipe.data.digits == "folder" else (recipe.data, recipe.training)
    for title, table in zip(("data", "training"), tables, strict=False):
        if table is not None:
            lines += ["", f"[{title}]", *_pairs({entry.name: getattr(table, entry.name) for entry in fields(table)})]
    return "\n".join(lines) + "\n"


def _changed(preprocess: Preprocess) -> dict[str, Any]:
    """The fields that differ from the default."""
    default = Preprocess()
    values = {entry.name: getattr(preprocess, entry.name) for entry in fields(preprocess)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_pairs(value))} }}" if value else "{}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)  # strings, numbers and truth values are written alike
