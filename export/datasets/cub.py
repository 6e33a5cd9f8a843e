"""CUB-200-2011, as its archive unpacks: images.txt, image_class_labels.txt, train_test_split.txt and images/.

Each line of the three files starts with an image's number. Then follow its path below images/, its class (from 1), and
whether it belongs to the training part (1) or the test part (0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.datasets.pictures import open_picture
from stn_infer.errors import InputError, UsageError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Bird:
    """An image of the data set.

    Attributes:
        path: of the JPEG.
        label: its class, from 0.
        training: part of the training set, otherwise of the test set.
    """

    path: Path
    label: int
    training: bool


def read_birds(folder: Path) -> list[Bird]:
    """The images of a CUB-200-2011 folder, ordered by number.

    Raises:
        InputError: one of the three files is missing or damaged, or they list different images.
    """
    folder = Path(folder)
    paths = _table(folder / "images.txt", _inside)
    labels = _table(folder / "image_class_labels.txt", _class)
    split = _table(folder / "train_test_split.txt", _flag)
    for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
        if different := sorted(paths.keys() ^ table.keys()):
            raise InputError(f"{folder / name} and images.txt differ: image {different[0]} is in only one of them")
    return [Bird(folder / "images" / paths[number], labels[number], split[number]) for number in sorted(paths)]


def resized(bird: Bird, size: int = 224) -> NDArray[np.uint8]:
    """The image as the networks read it: its shorter side resized to ``size`` pixels, then the square in its middle.

    Returns:
        [size, size, 3] uint8, RGB.

    Raises:
        UsageError: a size below 1.
        InputError: the JPEG is missing or damaged.
    """
    if size < 1:
        raise UsageError(f"an image has at least 1 pixel, not {size}")
    picture = open_picture(bird.path)
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _table(path: Path, value: Callable[[str], Value]) -> dict[int, Value]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; unpack CUB_200_2011.tgz and give its folder"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file; unpack CUB_200_2011.tgz again") from None
    found: dict[int, Value] = {}
    for index, line in enumerate(lines, 1):
        if not line.strip():
            continue
        number, _, rest = line.strip().partition(" ")
        try:
            key = int(number)
            if key in found:
                raise ValueError(number)
            found[key] = value(rest)
        except ValueError:
            raise InputError(
                f"{path}, line {index}: expected a new image number and its value, found {line[:60]!r}"
            ) from None
    if not found:
        raise InputError(f"{path} lists no images; unpack CUB_200_2011.tgz again")
    return found


def _inside(text: str) -> str:
    parts = Path(text).parts
    if not parts or Path(text).is_absolute() or ".." in parts:
        raise ValueError(text)
    return text


def _class(text: str) -> int:
    label = int(text)
    if label < 1:
        raise ValueError(text)
    return label - 1


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"
