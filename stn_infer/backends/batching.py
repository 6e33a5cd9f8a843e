"""Code shared by all backends: checking inputs, and running models with a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import InputError, ModelError, UsageError


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> int:
    """Check names, dtypes and shapes against ``specs``; axis 0 may have any length. Returns the first input's.

    Raises:
        InputError: a name is missing or unknown, a shape or dtype does not match, or batch sizes differ.
    """
    names = [spec.name for spec in specs]
    if inputs.keys() != set(names):
        given = ", ".join(inputs) or "none"
        raise InputError(f"the model takes the inputs {', '.join(names)}; given: {given}")
    batches: dict[str, int] = {}
    for spec in specs:
        array = inputs[spec.name]
        shape = array.shape
        if array.dtype != spec.dtype:
            raise InputError(f"input {spec.name!r} takes {spec.dtype} values, given {array.dtype}; convert them first")
        # called once per run, so the common case is one comparison
        if len(shape) != len(spec.shape) or (shape[1:] != spec.shape[1:] and not _fits(shape[1:], spec.shape[1:])):
            raise InputError(f"input {spec.name!r} takes shape {shape_text(spec.shape)}, given {shape_text(shape)}")
        if shape and batches.setdefault(spec.batch, shape[0]) != shape[0]:
            raise _different_batches(specs, inputs)
    return next(iter(batches.values()), 1)


def _fits(lengths: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return all(length in (None, given) for length, given in zip(wanted, lengths, strict=True))


def _different_batches(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> InputError:
    batches: dict[str, set[int]] = {}
    for spec in specs:
        batches.setdefault(spec.batch, set()).update(inputs[spec.name].shape[:1])
    axis, sizes = next((axis, sizes) for axis, sizes in batches.items() if len(sizes) > 1)
    inputs_of = "all inputs" if len(batches) == 1 else f"all inputs on axis {axis!r}"
    return InputError(f"{inputs_of} need the same batch size, given {', '.join(map(str, sorted(sizes)))}")


def row_axis(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """The axis whose rows are samples, for a file of ours whose inputs have several; None if they have one.

    An axis of its own is named ``<input>_batch``; other exporters give equal axes different names. The samples are the
    rows of the outputs. Inputs on other axes belong to all rows of a file.

    Raises:
        UsageError: the outputs are on different axes.
    """
    axes = {spec.batch for spec in inputs}
    found = {spec.batch for spec in outputs}
    if len(axes) < 2 or not found & axes or not axes - {"batch"} <= {f"{spec.name}_batch" for spec in inputs}:
        return None
    if len(found) > 1:
        described = ", ".join(f"{spec.name} ({spec.batch})" for spec in outputs)
        raise UsageError(f"the outputs have rows of different kinds: {described}; run takes models with one kind")
    return found.pop()


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for a message; a dynamic axis is ``?``: ``[?, 1, 28, 28]``."""
    return "[" + ", ".join("?" if axis is None else str(axis) for axis in shape) + "]"


def fixed_batch(specs: Iterable[TensorSpec], label: str) -> int | None:
    """The batch size that is fixed in the file; None if it is dynamic.

    Raises:
        ModelError: the inputs have different ones.
    """
    fixed = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    if len(fixed) > 1:
        raise ModelError(f"{label}: its inputs have different fixed batch sizes {sorted(fixed)}")
    return fixed.pop() if fixed else None


def free_batch(spec: TensorSpec) -> TensorSpec:
    """``spec`` with a dynamic axis 0: a backend runs batches of any length."""
    return replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec


def run_on_empty_axes(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    specs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    inputs: Mapping[str, Array],
) -> dict[str, Array] | None:
    """Run on a sample of zeros on each batch axis without samples, and drop it; None: all axes have samples."""
    empty = {spec.batch for spec in specs if spec.shape and not len(inputs[spec.name])}
    if not empty:
        return None
    padded = dict(inputs)
    for spec in specs:
        if spec.shape and spec.batch in empty:
            padded[spec.name] = np.zeros((1, *inputs[spec.name].shape[1:]), spec.dtype)
    found = run(padded)
    return {spec.name: found[spec.name][: 0 if spec.batch in empty else None] for spec in outputs}


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
