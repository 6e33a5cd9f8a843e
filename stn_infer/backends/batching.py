"""Code shared by all backends: checking inputs, and running models with a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import InputError


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> int:
    """Check names, dtypes and shapes against ``specs``; axis 0 may have any length. Returns the batch size.

    Raises:
        InputError: a name is missing or unknown, a shape or dtype does not match, or batch sizes differ.
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
        raise InputError(f"all inputs need the same batch size, given {', '.join(map(str, sorted(batches)))}")
    return int(batches.pop()) if batches else 1


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for a message; a dynamic axis is ``?``: ``[?, 1, 28, 28]``."""
    return "[" + ", ".join("?" if axis is None else str(axis) for axis in shape) + "]"


def run_in_fixed_batches(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    inputs: Mapping[str, Array],
    batch: int,
    fixed: int,
) -> dict[str, Array]:
    """Run a model whose batch size is ``fixed`` on ``batch`` samples.

    The last chunk is padded by repeating its last sample; the outputs of the padding are dropped.
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
