"""``Array``: a numpy array of any element type, and the product of a matrix with one axis of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def along(values: Array, axis: int, matrix: Array) -> Array:
    """Multiplies ``matrix`` [out, in] onto one axis of ``values``."""
    return np.asarray(np.moveaxis(np.tensordot(values, matrix, axes=(axis, 1)), -1, axis))


def contracted(values: Array, first: int, matrices: Iterable[Array]) -> Array:
    """Multiplies one matrix [out, in] onto each axis of ``values`` from ``first`` on."""
    for axis, matrix in enumerate(matrices, first):
        values = along(values, axis, matrix)
    return values
