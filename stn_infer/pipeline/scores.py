"""What ``eval`` reports: how predictions compare with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array


@dataclass(frozen=True)
class ClassScore:
    """One class.

    Attributes:
        label: its name.
        samples: those that show it.
        precision: the share of its predictions that are right; None if it was never predicted.
        recall: the share of its samples that are right; None if there are none.
    """

    label: str
    samples: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Classification:
    """Classes.

    Attributes:
        accuracy: the share of right predictions.
        confusion: samples by [true class][predicted class].
        classes: one score per class.
        top_k: how many best classes ``top_k_accuracy`` is about; None if it was not asked for.
        top_k_accuracy: the share of samples whose label is among them.
    """

    accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassScore, ...]
    top_k: int | None = None
    top_k_accuracy: float | None = None

    @property
    def top_label(self) -> str:
        """``top-5`` for 5 best classes; empty if none were asked for."""
        return "" if self.top_k is None else f"top-{self.top_k}"

    @classmethod
    def of(
        cls,
        truth: Sequence[int],
        ranked: Sequence[Sequence[int]],
        labels: Sequence[str],
        *,
        top_k: int | None = None,
    ) -> Classification:
        """From class numbers; ``ranked`` has the best of each sample first, and ``labels`` names every class."""
        predicted = [row[0] for row in ranked]
        among = [right in row[:top_k] for right, row in zip(truth, ranked, strict=True)]
        confusion = np.zeros((len(labels), len(labels)), np.int64)
        np.add.at(confusion, (np.asarray(truth), np.asarray(predicted)), 1)
        right, rows, columns = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        classes = tuple(
            ClassScore(
                label,
                int(rows[index]),
                float(right[index] / columns[index]) if columns[index] else None,
                float(right[index] / rows[index]) if rows[index] else None,
            )
            for index, label in enumerate(labels)
        )
        accuracy, table = float(right.sum() / confusion.sum()), tuple(map(tuple, confusion.tolist()))
        return cls(accuracy, table, classes, top_k, None if top_k is None else sum(among) / len(among))


@dataclass(frozen=True)
class SequenceScore:
    """Texts.

    Attributes:
        error: the share of texts with any difference.
        character_error: insertions, deletions and substitutions, divided by the labels' characters.
    """

    error: float
    character_error: float

    @classmethod
    def of(cls, truth: Sequence[str], predicted: Sequence[str]) -> SequenceScore:
        """From texts."""
        wrong = sum(one != other for one, other in zip(truth, predicted, strict=True))
        edits = sum(edit_distance(one, other) for one, other in zip(truth, predicted, strict=True))
        return cls(wrong / len(truth), edits / max(1, sum(map(len, truth))))


@dataclass(frozen=True)
class BoxScore:
    """Boxes.

    Attributes:
        mean_iou: the mean intersection over union.
        above_half: the share of boxes whose IoU is above 0.5.
    """

    mean_iou: float
    above_half: float

    @classmethod
    def of(cls, truth: Array, predicted: Array) -> BoxScore:
        """From boxes [N, 4] (left, top, right, bottom)."""
        values = intersection_over_union(truth, predicted)
        return cls(float(values.mean()), float((values > 0.5).mean()))


def edit_distance(first: str, second: str) -> int:
    """The fewest insertions, deletions and substitutions of characters (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def intersection_over_union(first: Array, second: Array) -> NDArray[np.float64]:
    """IoU [N] of boxes [N, 4] (left, top, right, bottom); 0 for two without an area."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    common = (high - low).clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) for boxes in (one, other)]
    union = areas[0] + areas[1] - common
    found: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(union), where=union > 0)
    return found
