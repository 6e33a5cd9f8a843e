"""From the scores of classes to a class, its confidence and the next best. Imports numpy only.

A model's first output [N, classes] has one score per class. Its activation turns them into probabilities: a softmax
where the classes exclude each other, a sigmoid where each is judged on its own. A model that ends in one has
probabilities already; the activation is then not applied again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.activation import Activation, Scores, resolve_scores
from stn_infer.arrays import Array
from stn_infer.errors import UsageError
from stn_infer.printing import counted
from stn_infer.ranking import best_first, probabilities

__all__ = ["Activation", "Candidate", "Classifier", "Ranked", "Scores", "label_of", "resolve_scores"]

THRESHOLD = 0.5
_SOFTMAX = Scores()


@dataclass(frozen=True)
class Candidate:
    """One class for one sample; ``label`` is None where the classes have no names."""

    prediction: int
    label: str | None
    confidence: float

    @property
    def name(self) -> str:
        """The label, or the number of the class."""
        return str(self.prediction) if self.label is None else self.label

    def describe(self) -> str:
        """Name and confidence, such as ``seven 98%``; a value that is not between 0 and 1 as it is."""
        percent = 0 <= self.confidence <= 1
        return f"{self.name} {self.confidence:.0%}" if percent else f"{self.name} {self.confidence:.3g}"


@dataclass(frozen=True)
class Ranked:
    """The classes that are shown for N samples, best first; K is the largest number of them.

    Attributes:
        classes: int64 [N], the class with the highest score.
        confidences: float32 [N], its probability; with the activation ``none`` its value.
        order: int64 [N, K], classes from the highest score to lower ones.
        values: float32 [N, K], their confidences.
        counts: int64 [N], how many of them are shown.
        labels: the name of each class; None where there are none.
    """

    classes: NDArray[np.int64]
    confidences: NDArray[np.float32]
    order: NDArray[np.int64]
    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def best(self, row: int) -> Candidate:
        """The class with the highest score of one sample."""
        return self._candidate(int(self.classes[row]), float(self.confidences[row]))

    def shown(self, row: int) -> tuple[Candidate, ...]:
        """All classes that are shown for one sample, best first."""
        count = int(self.counts[row])
        pairs = zip(self.order[row, :count].tolist(), self.values[row, :count].tolist(), strict=True)
        return tuple(self._candidate(number, value) for number, value in pairs)

    def padded(self, values: NDArray[Any], fill: float) -> NDArray[Any]:
        """``order`` or ``values``, with ``fill`` where nothing is shown."""
        return np.where(np.arange(values.shape[1]) < self.counts[:, None], values, values.dtype.type(fill))

    def _candidate(self, number: int, value: float) -> Candidate:
        return Candidate(number, None if self.labels is None else label_of(self.labels, number), value)


@dataclass(frozen=True)
class Classifier:
    """Ranks the classes of samples by their scores.

    Attributes:
        scores: what the scores are.
        labels: the name of each class; None: they have none.
        top_k: show this many classes; None: the best one, or with a sigmoid all above the threshold.
        threshold: with a sigmoid: the least confidence of a class that is shown; None: 0.5, or none with ``top_k``.

    Raises:
        UsageError: ``top_k`` is below 1, or a threshold is given without a sigmoid or not between 0 and 1.
    """

    scores: Scores = _SOFTMAX
    labels: tuple[str, ...] | None = None
    top_k: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is at least 1, not {self.top_k}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"a threshold is between 0 and 1, not {self.threshold}")
        if self.threshold is not None and not self.many:
            raise UsageError(f"a threshold needs the activation sigmoid, not {self.scores.activation}")

    @property
    def many(self) -> bool:
        """Whether any number of classes can be right."""
        return self.scores.activation == "sigmoid"

    @property
    def lists(self) -> bool:
        """Whether more than the best class is asked for."""
        return self.many or self.top_k is not None

    def width(self, classes: int) -> int:
        """The largest number of classes that are shown for a sample, of so many."""
        most = self.top_k if self.top_k is not None else classes if self.many else 1
        return min(most, classes)

    def rank(self, values: Array) -> Ranked:
        """The classes for scores [N, classes] of any real type, without NaN; for equal scores the lower number first.

        Confidences are computed in float64. The order is that of the scores, which an activation can make equal.
        """
        width = max(1, self.width(values.shape[1]))
        if not len(values):
            none, order = np.zeros(0, np.int64), np.zeros((0, width), np.int64)
            return Ranked(none, np.zeros(0, np.float32), order, order.astype(np.float32), none, self.labels)
        order = best_first(values, width)
        chosen = probabilities(values, order, self.scores.activation, self.scores.applied)
        counts = np.full(len(values), order.shape[1], np.int64)
        least = self.threshold if self.threshold is not None or self.top_k is not None else THRESHOLD
        if self.many and least is not None:
            counts = (chosen >= least).sum(axis=1, dtype=np.int64)
        found = chosen.astype(np.float32)
        return Ranked(order[:, 0], found[:, 0], order, found, counts, self.labels)


def label_of(labels: Sequence[str], number: int) -> str:
    """The label of a class.

    Raises:
        UsageError: there are fewer labels.
    """
    if number >= len(labels):
        raise UsageError(f"the model predicts class {number}, given {counted(len(labels), 'label')}")
    return labels[number]
