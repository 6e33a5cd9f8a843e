"""Outputs of a sample that depend on the other samples of its batch, such as statistics over the batch.

Such a model is right only at the batch that it was meant for, but ``run`` batches samples as they come. It is found by
running a batch, and its first sample alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stn_infer.arrays import Array

#: What is called a difference, relative to the output's magnitude, in float64 and in float32.
_EXACT, _SINGLE = 1e-6, 1e-3
#: In float32, a rounding error may move a nearest sample: a difference in fewer values than this is none.
_SHARE = 0.01


def dependent_outputs(
    run: Callable[[list[Array]], Sequence[Array]],
    first: Sequence[Array],
    samples: int,
    outputs: Sequence[Array],
    *,
    exact: bool,
) -> tuple[int, ...]:
    """The indices of the outputs that differ for the first sample in a batch and alone.

    Args:
        run: runs the model.
        first: the inputs of the first sample alone; an input that belongs to all samples as it is.
        samples: the number of samples in the batch; one of a single sample has no such outputs.
        outputs: the model's for the batch.
        exact: whether ``run`` computes in float64.
    """
    if samples < 2 or not outputs or outputs[0].shape[:1] != (samples,):
        return ()
    alone = run(list(first))
    return tuple(
        index
        for index, (whole, single) in enumerate(zip(outputs, alone, strict=False))
        if whole.shape[:1] == (samples,) and _differs(whole, single, exact)
    )


def _differs(whole: Array, single: Array, exact: bool) -> bool:
    first = whole[:1]
    if single.shape != first.shape or not first.size:
        return single.shape != first.shape
    if whole.dtype.kind != "f":
        return exact and not np.array_equal(first, single)  # a label may hang on float32's last digit
    with np.errstate(invalid="ignore"):
        scale = float(np.nanmax(np.abs(whole), initial=0.0, where=np.isfinite(whole))) or 1.0
        off = ~(np.abs(first - single) <= (_EXACT if exact else _SINGLE) * scale)
    off &= ~((first == single) | (np.isnan(first) & np.isnan(single)))
    return bool(off.mean() > (0 if exact else _SHARE))


def dependence_note(names: Sequence[str]) -> str:
    """A sentence for outputs with these names."""
    listed = ", ".join(map(repr, names))
    return (
        f"batch-dependent: {'output' if len(names) == 1 else 'outputs'} {listed} of a sample "
        f"{'depends' if len(names) == 1 else 'depend'} on the other samples of its batch, so results change with the "
        "batch size"
    )
