"""Which inputs of a model share a batch, found by running it with different numbers of rows.

A detector's second stage takes images [N, ...] and boxes [K, ...]: N and K have nothing to do with each other. In most
models of several inputs they are one number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.sources.inputs import batch_sizes, dtypes_of, random_values, rows_of
from stn_infer.sources.load import COMMON_AXIS
from stn_infer.torch_export.autocast import autocast_off
from stn_infer.torch_export.outputs import output_tensors

if TYPE_CHECKING:
    from stn_infer.sources.load import LoadedModel


def find_batch_axes(loaded: LoadedModel, names: Sequence[str]) -> tuple[str, ...]:
    """The name of axis 0 of each input: ``batch``, or ``<input>_batch`` for an axis of its own; empty if all share one.

    Args:
        loaded: the source.
        names: its inputs' names.
    """
    count = len(loaded.input_shapes)
    if count < 2 or loaded.fixed_batch is not None:
        return ()
    axes = [COMMON_AXIS] * count
    for index in range(1, count):
        alone = [COMMON_AXIS] * count
        alone[index] = f"{names[index]}_batch"
        if _runs(loaded, tuple(alone)):
            axes[index] = alone[index]
    # inputs that are tied to one another, but not to the first: they go together or not at all
    tied = [index for index in range(1, count) if axes[index] == COMMON_AXIS]
    if len(tied) > 1:
        together = [f"{names[tied[0]]}_batch" if index in tied else axis for index, axis in enumerate(axes)]
        if _runs(loaded, tuple(together)):
            axes = together
    return tuple(axes) if len(set(axes)) > 1 and _runs(loaded, tuple(axes)) else ()


def trial_inputs(loaded: LoadedModel, batch: int = 2) -> list[Array]:
    """Inputs for a trial run: ``batch`` rows of the first input, and another number on every other axis.

    The user's examples, else random values: those on an axis of their own are in [0, 1), because they may be numbers of
    images.
    """
    counts = batch_sizes(loaded, batch)
    if loaded.examples:
        return rows_of(loaded, counts)
    generator = np.random.default_rng(0)
    axes = loaded.axes
    pairs = zip(counts, axes, loaded.input_shapes, dtypes_of(loaded), strict=True)
    return [
        generator.random((number, *shape)).astype(dtype)
        if axis != axes[0]
        else random_values(generator, (number, *shape), dtype)
        for number, axis, shape, dtype in pairs
    ]


def _runs(loaded: LoadedModel, axes: tuple[str, ...]) -> bool:
    """Whether the model runs with another number of rows on each of these axes."""
    import torch

    try:
        with torch.no_grad(), warnings.catch_warnings(), autocast_off():
            warnings.simplefilter("ignore")
            for batch in (2, 3):
                values = trial_inputs(replace(loaded, batch_axes=axes), batch)
                outputs = output_tensors(loaded.module(*(torch.from_numpy(value) for value in values)))
                if not all(output.ndim for output in outputs):
                    return False
    except Exception:  # the user's forward may raise anything
        return False
    return True


def output_axes(loaded: LoadedModel, sizes: Sequence[int]) -> tuple[str, ...]:
    """The axis of each output by its number of rows, for :func:`trial_inputs`; the first axis if none has that many."""
    axes = loaded.batch_axes
    if not axes:
        return (COMMON_AXIS,) * len(sizes)
    found = dict(zip(batch_sizes(loaded, 2), axes, strict=True))
    return tuple(found.get(size, axes[0]) for size in sizes)
