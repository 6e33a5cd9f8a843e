"""Code shared by all backends: checking inputs, and running models with a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stn_infer.arrays import Array, fits, shape_text
from stn_infer.backends.base import TensorSpec
from stn_infer.errors import InputError, ModelError, UsageError

#: The smallest and the largest length that a model takes on each batch axis, for the lengths that are given.
Limits = Callable[[Mapping[str, int]], Mapping[str, tuple[int, int]]]


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> int:
    """Check names, dtypes and shapes against ``specs``. Returns the length of the first batch axis; 1 without one.

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
        batch, rest = spec.shape[:1], spec.shape[1:]
        if len(shape) != len(spec.shape) or (shape[1:] != rest and not fits(shape[1:], rest)):
            raise InputError(f"input {spec.name!r} takes shape {shape_text(spec.shape)}, given {shape_text(shape)}")
        if batch == (None,):
            if batches.setdefault(spec.batch, shape[0]) != shape[0]:
                raise _different_batches(specs, inputs)
        elif batch != shape[:1]:
            raise InputError(f"input {spec.name!r} takes shape {shape_text(spec.shape)}, given {shape_text(shape)}")
    return next(iter(batches.values()), 1)


def _different_batches(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> InputError:
    batches: dict[str, set[int]] = {}
    for spec in filter(is_batched, specs):
        batches.setdefault(spec.batch, set()).add(len(inputs[spec.name]))
    axis, sizes = next((axis, sizes) for axis, sizes in batches.items() if len(sizes) > 1)
    inputs_of = "all inputs" if len(batches) == 1 else f"all inputs on axis {axis!r}"
    return InputError(f"{inputs_of} need the same batch size, given {', '.join(map(str, sorted(sizes)))}")


def row_axis(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """The axis whose rows are samples, for a file of ours whose inputs have several; None if they have one.

    An axis of its own is named ``<input>_batch``; other exporters give equal axes different names. The samples are the
    rows of the outputs. Inputs on other axes belong to all rows of a file.

    Raises:
        UsageError: the outputs are on different axes, or an input has its samples on another axis than axis 0.
    """
    moved = next((spec for spec in inputs if spec.batch_axis), None)
    if moved is not None:
        raise UsageError(
            f"input {moved.name!r} has its samples on axis {moved.batch_axis}; expected them on axis 0: put a "
            "Transpose before it in the model"
        )
    batched = [spec for spec in inputs if is_batched(spec)]
    axes = {spec.batch for spec in batched}
    found = {spec.batch for spec in outputs}
    if not found & axes or not own_axes((spec.name, spec.batch) for spec in batched):
        return None
    if len(found) > 1:
        described = ", ".join(f"{spec.name} ({spec.batch})" for spec in outputs)
        raise UsageError(f"the outputs have rows of different kinds: {described}; run takes models with one kind")
    return found.pop()


def own_axes(axes: Iterable[tuple[str, str]]) -> bool:
    """Whether inputs, by name and axis, have several batch axes in a file of ours; see :func:`row_axis`."""
    pairs = list(axes)
    found = {axis for _, axis in pairs}
    return len(found) > 1 and found - {"batch"} <= {f"{name}_batch" for name, _ in pairs}


def is_shared(spec: TensorSpec, axis: str | None) -> bool:
    """Whether an input belongs to all samples: it has no batch axis, or another one than :func:`row_axis` says."""
    return not is_batched(spec) or (axis is not None and spec.batch != axis)


def is_batched(spec: TensorSpec) -> bool:
    """Whether axis 0 is a batch: an input may be a scalar, or have as many rows for any number of samples."""
    return bool(spec.shape) and spec.shape[0] is None


def with_batch_axes(specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int | str | None]]) -> list[TensorSpec]:
    """Inputs with :attr:`TensorSpec.batch_axis`: the axis that has the length of the others' batch.

    Args:
        specs: the inputs.
        shapes: of each, lengths and names of dynamic axes.
    """
    first_axes = {axis for shape in shapes for axis in shape[:1] if isinstance(axis, str) and axis}

    def axis_of(shape: Sequence[int | str | None]) -> int:
        if not shape or not isinstance(shape[0], int):
            return 0
        return next((axis for axis, size in enumerate(shape) if size in first_axes), 0)

    return [replace(spec, batch_axis=axis_of(shape)) for spec, shape in zip(specs, shapes, strict=True)]


def fixed_batch(specs: Iterable[TensorSpec], label: str) -> int | None:
    """The batch size that is fixed in the file; None if an input has a dynamic one.

    Raises:
        ModelError: the inputs have different ones.
    """
    lengths = {spec.shape[0] for spec in specs if spec.shape}
    fixed = {length for length in lengths if length is not None}
    if len(fixed) < len(lengths):
        return None
    if len(fixed) > 1:
        raise ModelError(f"{label}: its inputs have different fixed batch sizes {sorted(fixed)}")
    return fixed.pop() if fixed else None


def free_batch(specs: Sequence[TensorSpec], fixed: int | None) -> tuple[TensorSpec, ...]:
    """``specs`` with a dynamic axis 0 where all have the same fixed one: a backend runs batches of any length."""
    if fixed is None:
        return tuple(specs)
    return tuple(replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec for spec in specs)


def run_on_empty_axes(
    run: Callable[[Mapping[str, Array]], dict[str, Array]], specs: Sequence[TensorSpec], inputs: Mapping[str, Array]
) -> dict[str, Array] | None:
    """What a model gives for batch axes without samples; None: all axes have samples.

    It runs on one and on two samples of zeros on these axes. The difference is what one sample adds to each output, by
    whatever name its axis goes.
    """
    empty = {spec.batch for spec in specs if is_batched(spec) and not len(inputs[spec.name])}
    if not empty:
        return None

    def given(count: int) -> dict[str, Array]:
        padded = {spec.name: inputs[spec.name] for spec in specs}
        changed = (spec.name for spec in specs if is_batched(spec) and spec.batch in empty)
        return padded | {name: _zeros(padded[name], count) for name in changed}

    one, two = run(given(1)), run(given(2))
    return {name: _without_one(value, two[name]) for name, value in one.items()}


def _without_one(one: Array, two: Array) -> Array:
    """An output for no samples, from those for one and for two."""
    lengths = (max(0, 2 * less - more) for less, more in zip(one.shape, two.shape, strict=True))
    return one[tuple(map(slice, lengths))]


def _zeros(array: Array, count: int) -> Array:
    return np.zeros((count, *array.shape[1:]), array.dtype)


def run_within(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    specs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    inputs: Mapping[str, Array],
    limits: Limits,
) -> dict[str, Array]:
    """Run a model that takes a range of lengths on each batch axis on any lengths.

    A shorter axis is padded by its last sample. A longer one is run in pieces, if all outputs have its rows.

    Args:
        run: runs the model on lengths within the limits.
        specs, outputs: the model's inputs and outputs.
        inputs: arrays that fit ``specs``.
        limits: what the model takes on each axis; asked again for the pieces of a longer axis.

    Raises:
        InputError: an axis is longer than its limit, and there is an output that has other rows.
    """
    lengths = {spec.batch: len(inputs[spec.name]) for spec in specs if is_batched(spec)}
    ranges = limits(lengths)

    def of_rows(axis: str, rows: Array, limits: Limits) -> dict[str, Array]:
        cut = {spec.name: _rows(inputs[spec.name], rows) for spec in specs if is_batched(spec) and spec.batch == axis}
        chosen = {spec.name: inputs[spec.name] for spec in specs} | cut
        return run_within(run, specs, outputs, chosen, limits)

    for axis, (low, high) in ranges.items():
        length = lengths[axis]
        if length < low:
            padding = np.minimum(np.arange(low), max(length - 1, 0))
            found = of_rows(axis, padding, lambda _: ranges)
            return {spec.name: found[spec.name][: length if spec.batch == axis else None] for spec in outputs}
        if length > high:
            other = next((spec for spec in outputs if spec.batch != axis), None)
            if other is not None:
                raise InputError(
                    f"{axis} has {length} rows, the engine takes {low} to {high} at once, and output {other.name!r} "
                    f"has the rows of {other.batch}; build the engine with another --profile"
                )
            starts = range(0, length, high)
            pieces = [of_rows(axis, np.arange(start, min(start + high, length)), limits) for start in starts]
            return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return run(inputs)


def _rows(array: Array, rows: Array) -> Array:
    """Rows of an array; zeros if it has none."""
    return array[rows] if len(array) else _zeros(array, len(rows))


def run_in_fixed_batches(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    inputs: Mapping[str, Array],
    batch: int,
    fixed: int,
) -> dict[str, Array]:
    """Run a model whose batch size is ``fixed`` on ``batch`` samples.

    The last chunk is padded by repeating its last sample; the outputs of the padding are dropped.

    Raises:
        ModelError: an output is one value for all samples.
    """
    pieces: list[dict[str, Array]] = []
    for start in range(0, max(batch, 1), fixed):
        count = min(fixed, batch - start)
        rows = np.minimum(np.arange(start, start + fixed), max(start + count - 1, 0))
        outputs = run({name: _rows(array, rows) if array.ndim else array for name, array in inputs.items()})
        whole = next((name for name, array in outputs.items() if not array.ndim), None)
        if whole is not None:
            raise ModelError(
                f"output {whole!r} is one value for all samples, so the model takes {fixed} at a time, given {batch}"
            )
        pieces.append({name: array[:count] for name, array in outputs.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
