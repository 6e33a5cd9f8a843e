"""What every backend does around its runtime: check the inputs, and feed models whose batch is fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import InputError


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> int:
    """Check names, types and shapes against ``specs``; axis 0 is free. Returns the batch size.

    Raises:
        InputError: a name is missing or unknown, a shape or type is not the spec's, or batch sizes differ.
    """
    names = [spec.name for spec in specs]
    missing = [name for name in names if name not in inputs]
    unknown = [name for name in inputs if name not in names]
    if missing or unknown:
        given = ", ".join(inputs) or "none"
        raise InputError(f"the model takes the inputs {', '.join(names)}; given: {given}")
    batches: set[int] = set()
    for spec in specs:
        array = inputs[spec.name]
        if array.dtype != spec.dtype:
            raise InputError(f"input {spec.name!r} takes {spec.dtype} values, given {array.dtype}; convert them first")
        fits = array.ndim == len(spec.shape) and all(
            length is None or length == given for length, given in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(
                f"input {spec.name!r} takes shape {shape_text(spec.shape)}, given {shape_text(array.shape)}"
            )
        batches.update(array.shape[:1])
    if len(batches) > 1:
        raise InputError(f"all inputs need one batch size, given {', '.join(map(str, sorted(batches)))}")
    return int(batches.pop()) if batches else 1


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for a message, axis 0 being the batch: ``[N, 1, 28, 28]``."""
    return "[" + ", ".join("?" if axis is None else str(axis) for axis in shape) + "]"


def run_in_fixed_batches(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    inputs: Mapping[str, Array],
    batch: int,
    fixed: int,
) -> dict[str, Array]:
    """Run a model that only takes ``fixed`` samples at a time on ``batch`` of them.

    The last piece is filled up by repeating its last sample, and what that gives is dropped.
    """
    if batch == 0:
        outputs = run({name: np.zeros((fixed, *array.shape[1:]), array.dtype) for name, array in inputs.items()})
        return {name: array[:0] for name, array in outputs.items()}
    pieces: list[dict[str, Array]] = []
    for start in range(0, batch, fixed):
        count = min(fixed, batch - start)
        rows = np.minimum(np.arange(start, start + fixed), start + count - 1)
        outputs = run({name: array[rows] for name, array in inputs.items()})
        pieces.append({name: array[:count] for name, array in outputs.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
