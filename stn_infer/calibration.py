"""The user's images as a model's inputs, for int8 ranges and for measuring what a lower precision costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.errors import InputError

if TYPE_CHECKING:
    from stn_infer.backends.base import TensorSpec
    from stn_infer.metadata import Preprocess

MOST_SAMPLES = 1024
_BATCH = 32


@dataclass(frozen=True)
class Calibration:
    """Samples that stand for what the model will see.

    Attributes:
        batches: inputs by name, [N, ...]; together ``samples`` of them.
        samples: how many were read.
        notes: what the user should know, such as files that could not be read.
    """

    batches: tuple[dict[str, NDArray[Any]], ...]
    samples: int
    notes: tuple[str, ...]


def load_calibration(
    sources: Sequence[str | Path], specs: Sequence[TensorSpec], preprocess: Preprocess | None
) -> Calibration:
    """Read and pre-process ``sources`` as ``run`` does.

    Of more than 1,024 samples, 1,024 are taken at even distances, since folders are often sorted by class.

    Args:
        sources: files, folders, patterns, array files, ``@list.txt``.
        specs: the model's inputs.
        preprocess: how pixels become inputs; None where the model takes no images.

    Raises:
        InputError: there is nothing to read, or nothing of it can be read.
    """
    from stn_infer.data.inputs import Inputs
    from stn_infer.data.loader import Loader

    loader = Loader(specs, preprocess)
    with Inputs(sources, loader.arrays.count_rows) as inputs:
        total = inputs.survey().samples
        count = min(total, MOST_SAMPLES)
        wanted = set((np.arange(count) * total // count).tolist())
        chosen = [sample for index, sample in enumerate(inputs) if index in wanted]
    batches: list[dict[str, NDArray[Any]]] = []
    errors: list[str] = []
    for start in range(0, len(chosen), _BATCH):
        loaded = loader.load(chosen[start : start + _BATCH])
        batches += [group.inputs for group in loaded.groups]
        errors += loaded.errors.values()
    samples = count - len(errors)
    if not samples:
        raise InputError(f"no calibration sample can be read: {errors[0]}")
    notes = [f"{len(errors)} of {count} calibration samples were left out; the first: {errors[0]}"] if errors else []
    if total > count:
        notes.append(f"{count} of {total} calibration samples were taken, at even distances")
    return Calibration(tuple(batches), samples, tuple(notes))
