"""The trained models that are shipped: recipe, weights and measured figures in ``shipped/``. No torch in here."""

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
    """What ``export/train.py`` measured.

    Attributes:
        seeds: one run each.
        errors: the model's error in percent, one a seed.
        twin: the transformer-less network that was trained alike; None when there was none.
        twin_errors: its error in percent, one a seed.
        shipped_seed: whose weights are shipped.
        images: how many test images, each a distortion of a digit that training never saw.
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
        """The twin's mean error, percent."""
        return fmean(self.twin_errors) if self.twin_errors else None

    @property
    def shipped_error(self) -> float:
        """The error of the weights that are shipped, percent."""
        return self.errors[self.seeds.index(self.shipped_seed)]


@dataclass(frozen=True)
class ShippedModel:
    """A trained model that comes with the package."""

    name: str
    recipe: Recipe
    weights_path: Path
    results: Results


SHIPPED: tuple[str, ...] = tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def shipped(name: str) -> ShippedModel:
    """The shipped model called ``name``.

    Raises:
        SourceError: there is none of that name, or its files are damaged.
    """
    if name not in SHIPPED:
        near = difflib.get_close_matches(name, SHIPPED, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(SHIPPED)}"
        raise SourceError(f"no model called {name!r} is shipped; {hint}")
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
        raise SourceError(
            f"the measured figures {path} are missing or damaged ({error}); reinstall stn-infer"
        ) from None
