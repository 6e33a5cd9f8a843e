"""The order of classes by their scores, and their probabilities. Imports numpy only.

The program of a Triton repository has these functions too: :mod:`stn_infer.serving.program`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def best_first(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The ``count`` best classes [N, count] for scores [N, classes] of any real type, equal ones by their number."""
    if count == 1:
        return np.asarray(scores.argmax(axis=1)[:, None], np.int64)
    exact: NDArray[Any] = scores if scores.dtype.kind == "f" else scores.astype(np.float64)
    order: NDArray[np.int64] = np.argsort(-exact, axis=1, kind="stable")[:, :count]
    return order


def probabilities(
    scores: NDArray[Any], classes: NDArray[np.int64], activation: str, applied: bool
) -> NDArray[np.float64]:
    """The probabilities [N, K] of ``classes`` [N, K].

    Args:
        scores: [N, classes] of any real type.
        classes: numbers of classes.
        activation: ``softmax``, ``sigmoid`` or ``none``.
        applied: whether the scores are probabilities already.
    """
    chosen: NDArray[np.float64] = np.take_along_axis(scores, classes, axis=1).astype(np.float64)
    if applied or activation == "none":
        return chosen
    if activation == "sigmoid":
        small = np.exp(-np.abs(chosen))
        return np.where(chosen >= 0, 1 / (1 + small), small / (1 + small))
    highest = scores.max(axis=1, keepdims=True).astype(np.float64)
    total = exponentials(scores.astype(np.float64), highest).sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = exponentials(chosen, highest) / total
    return found


def exponentials(values: NDArray[np.float64], highest: NDArray[np.float64]) -> NDArray[np.float64]:
    """``exp(values - highest)``, where equal infinities have no distance."""
    return np.exp(np.subtract(values, highest, out=np.zeros_like(values), where=values != highest))
