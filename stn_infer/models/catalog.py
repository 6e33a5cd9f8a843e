"""The shipped trained models: model configs (recipes), weights and measured errors in ``shipped/``.

This module does not import torch.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from stn_infer.errors import SourceError
from stn_infer.models.recipes import Recipe, load_recipe

FOLDER = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Results:
    """The errors that ``export/train.py`` measured.

    Attributes:
        seeds: one training run each.
        errors: the model's test error in percent, one per seed.
        twin: the baseline network (no STN), trained with the same settings; None if there is none.
        twin_errors: the baseline's test error in percent, one per seed.
        shipped_seed: the seed whose weights are shipped.
        images: the number of test images, each a distortion of a held-out digit.
    """

    seeds: tuple[int, ...]
    errors: tuple[float, ...]
    twin: str | None
    twin_errors: tuple[float, ...]
    shipped_seed: int
    images: int

    @property
    def error(self) -> float:
        """The model's mean error, percent."""
        return fmean(self.errors)

    @property
    def twin_error(self) -> float | None:
        """The baseline's mean error, percent."""
        return fmean(self.twin_errors) if self.twin_errors else None

    @property
    def shipped_error(self) -> float:
        """The error of the shipped weights, percent."""
        return self.errors[self.seeds.index(self.shipped_seed)]


@dataclass(frozen=True)
class ShippedModel:
    """A trained model that is shipped with the package."""

    name: str
    recipe: Recipe
    weights_path: Path
    results: Results


SHIPPED: tuple[str, ...] = tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def shipped(name: str) -> ShippedModel:
    """The shipped model called ``name``.

    Raises:
        SourceError: there is no such model, or its files are damaged.
    """
    if name not in SHIPPED:
        near = difflib.get_close_matches(name, SHIPPED, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(SHIPPED)}"
        raise SourceError(f"no such shipped model: {name!r}; {hint}")
    return ShippedModel(
        name, load_recipe(FOLDER / f"{name}.toml"), FOLDER / f"{name}.safetensors", _results(FOLDER / f"{name}.json")
    )


def _results(path: Path) -> Results:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Results(
            seeds=tuple(fields["seeds"]),
            errors=tuple(fields["errors"]),
            twin=fields["twin"],
            twin_errors=tuple(fields["twin_errors"]),
            shipped_seed=fields["shipped_seed"],
            images=fields["images"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"the measured errors {path} are missing or damaged ({error}); reinstall stn-infer") from None
