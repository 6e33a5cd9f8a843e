"""Which inputs are drawn, and what is known to be on them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stn_infer.data.inputs import Inputs, Sample, is_input
from stn_infer.data.labeled import read_labeled
from stn_infer.errors import InputError, UsageError


@dataclass(frozen=True)
class Drawn:
    """Some inputs.

    Attributes:
        samples: in the order of all.
        truths: the label given with each: a class or a text; None where there is none.
        sampled: of how many they were chosen at random, and the seed; None: they are the first.
    """

    samples: tuple[Sample, ...]
    truths: tuple[str | None, ...]
    sampled: tuple[int, int] | None = None


def choose(
    sources: Sequence[str | Path],
    count_rows: Callable[[str], int | None],
    count: int,
    seed: int | None,
    classes: Sequence[str] | None,
) -> Drawn:
    """The first ``count`` inputs, or, with a ``seed``, so many chosen at random, each at most once.

    A single folder whose subfolders are all named as ``classes`` has these as labels, and so has a CSV file, as for
    ``eval``.

    Args:
        sources: as for ``run``, or one CSV file.
        count_rows: as for :class:`~stn_infer.data.inputs.Inputs`.
        count: the largest number of inputs.
        seed: of the random choice; the same seed chooses the same of the same inputs.
        classes: of the model; None: it predicts no classes.

    Raises:
        InputError: there are no inputs, one that is named does not exist, or a label in a CSV file is not one of
            ``classes``.
    """
    only = Path(sources[0]) if len(sources) == 1 else None
    if only is not None and only.suffix.lower() == ".csv":
        given = read_labeled(only)
        labels: Sequence[str | None] = given.labels or [None] * len(given.samples)
        _check(only, labels, classes)
        taken, sampled = _taken(len(given.samples), count, seed)
        return Drawn(tuple(given.samples[at] for at in taken), tuple(labels[at] for at in taken), sampled)
    with Inputs(sources, count_rows) as inputs:
        if seed is None:
            samples, sampled = tuple(islice(inputs, count)), None
        else:
            taken, sampled = _taken(sum(1 for _ in inputs), count, seed)
            wanted = set(taken)
            samples = tuple(sample for at, sample in enumerate(inputs) if at in wanted)
    if not samples:
        raise InputError("no input was found: there is nothing to draw")
    if only is None or not _has_class_folders(only, classes):
        return Drawn(samples, (None,) * len(samples), sampled)
    folders = (os.path.relpath(sample.path, only).split(os.sep)[0] for sample in samples)
    return Drawn(samples, tuple(folders), sampled)


def _taken(total: int, count: int, seed: int | None) -> tuple[Sequence[int], tuple[int, int] | None]:
    if seed is None:
        return range(min(count, total)), None
    return sorted(random.Random(seed).sample(range(total), min(count, total))), (total, seed)


def _has_class_folders(folder: Path, classes: Sequence[str] | None) -> bool:
    """Whether all inputs lie in subfolders that have the names of classes."""
    if classes is None or not folder.is_dir():
        return False
    known = set(classes)
    names = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    inside = [entry.name for entry in names if entry.is_dir()]
    return bool(inside) and known.issuperset(inside) and not any(is_input(entry.path) for entry in names)


def _check(path: Path, labels: Sequence[str | None], classes: Sequence[str] | None) -> None:
    if classes is None:
        return
    known = set(classes)
    for label in labels:
        if label is not None and label not in known:
            some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
            raise InputError(
                f"{path} has the unknown class {label!r}; the model's classes are {some} "
                "(--labels FILE names them otherwise)"
            )


def check_choice(count: int | None, sample: int | None, seed: int | None) -> tuple[int, int | None]:
    """How many inputs are drawn, and the seed of a random choice.

    Raises:
        UsageError: both numbers are given, one is below 1, or a seed without a random choice.
    """
    if count is not None and sample is not None:
        raise UsageError("--count draws the first inputs, --sample some at random; give one of them")
    if seed is not None and sample is None:
        raise UsageError("--seed is of the random choice of --sample; give --sample N too")
    number = 8 if count is None and sample is None else count if sample is None else sample
    if number is None or number < 1:
        raise UsageError(f"at least 1 input is drawn, not {number}")
    return number, None if sample is None else seed or 0
