"""``Array``: a numpy array of any element type; products of matrices with its axes, and shapes with open axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether an array of this shape is one of the ``wanted`` lengths; None for any."""
    return len(shape) == len(wanted) and all(
        length in (None, given) for length, given in zip(wanted, shape, strict=True)
    )


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for a message; a dynamic axis is ``?``: ``[?, 1, 28, 28]``."""
    return "[" + ", ".join("?" if axis is None else str(axis) for axis in shape) + "]"
