"""Random inputs for any ONNX file. Types and shapes come from the file; the user may give the dynamic sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from stn_infer.arrays import Array
from stn_infer.budget import too_large
from stn_infer.errors import ModelError, UsageError
from stn_infer.proto.traversal import given_inputs

Shapes = Mapping[str, tuple[int, ...]]
_BASES = (32, 64, 224, 16)


@dataclass(frozen=True)
class InputPlan:
    """One input of a model.

    Attributes:
        name: its name.
        elem_type: ONNX's type number.
        dims: one entry per axis: a number if the size is fixed, a symbol if it is dynamic.
    """

    name: str
    elem_type: int
    dims: tuple[int | str, ...]


def parse_named_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parses ``NAME=2,3,64,64`` into shapes by name; ``3,64,64`` (for a single input) gets the name "".

    Raises:
        UsageError: a text does not have this form, or a name occurs twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.replace("x", ",").split(",")
        if not all(part.strip().isdigit() and 0 < int(part) < 2**31 for part in parts) or (equals and not name):
            raise UsageError(f"--input-shape takes NAME=2,3,64,64, positive numbers, not {text!r}")
        if name in shapes:
            raise UsageError(f"--input-shape names {name or 'the input'!r} twice")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def plan_inputs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[InputPlan, ...]:
    """Returns the inputs that a caller must give, with the sizes from ``shapes`` filled in.

    Args:
        model: the model.
        shapes: by name ("" for a single input): the shape of the whole input, or of one sample, without the batch.

    Raises:
        UsageError: ``shapes`` does not fit the model, or an input's rank is unknown and not given.
        ModelError: an input is not a numeric tensor.
    """
    values = given_inputs(model.graph)
    given = dict(shapes or {})
    if "" in given:
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise UsageError(f"--input-shape needs an input name, NAME=2,3,64,64; the inputs are {names or 'none'}")
        given[values[0].name] = given.pop("")
    unknown = given.keys() - {value.name for value in values}
    if unknown:
        names = ", ".join(value.name for value in values)
        raise UsageError(f"the model has no input {min(unknown)!r}; its inputs are {names or 'none'}")
    plans = [_plan(value, given.get(value.name)) for value in values]
    bound = {
        symbol: size
        for value, plan in zip(values, plans, strict=True)
        for symbol, size in zip(_dims(value), plan.dims, strict=False)
        if isinstance(symbol, str) and isinstance(size, int)
    }
    return tuple(
        InputPlan(plan.name, plan.elem_type, tuple(bound.get(d, d) if isinstance(d, str) else d for d in plan.dims))
        for plan in plans
    )


def batch_symbols(plans: Sequence[InputPlan]) -> frozenset[str]:
    """The symbols that denote the batch: the dynamic sizes of the inputs' first axes."""
    return frozenset(plan.dims[0] for plan in plans if plan.dims and isinstance(plan.dims[0], str))


def size_symbols(plans: Sequence[InputPlan]) -> frozenset[str]:
    """The symbols of the other dynamic sizes."""
    names = frozenset(size for plan in plans for size in plan.dims if isinstance(size, str))
    return names - batch_symbols(plans)


def random_feeds(plans: Sequence[InputPlan], batch: int, size: int, generator: np.random.Generator) -> dict[str, Array]:
    """Returns random inputs: normal floats, integers 0 and 1 (they may be indices), booleans, and uint8 pixels.

    Args:
        plans: the inputs.
        batch: the batch size.
        size: the value of every other dynamic size.
        generator: the source of random numbers.

    Raises:
        UsageError: the inputs would have more than 2**28 values together.
    """
    batches = batch_symbols(plans)
    shapes = {
        plan.name: [(batch if dim in batches else size) if isinstance(dim, str) else dim for dim in plan.dims]
        for plan in plans
    }
    if problem := too_large(shapes):
        raise UsageError(f"{problem}; give --input-shape where sizes are dynamic")
    return {plan.name: _random(plan, shapes[plan.name], generator) for plan in plans}


def _random(plan: InputPlan, shape: list[int], generator: np.random.Generator) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(plan.elem_type)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if dtype == np.uint8:
        return generator.integers(0, 256, shape).astype(np.uint8)
    if np.issubdtype(dtype, np.integer):
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _plan(value: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> InputPlan:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise ModelError(f"input {value.name!r} is not a numeric tensor, so the model cannot be run on random inputs")
    if not tensor.HasField("shape"):
        if given is None:
            raise UsageError(f"input {value.name!r} has no shape in the file; give --input-shape {value.name}=...")
        return InputPlan(value.name, tensor.elem_type, given)
    dims = _dims(value)
    if given is None:
        return InputPlan(value.name, tensor.elem_type, dims)
    if len(given) == len(dims) - 1:
        filled: tuple[int | str, ...] = (dims[0], *given)
    else:
        filled = given
    if len(filled) != len(dims) or any(
        isinstance(old, int) and old != new for old, new in zip(dims, filled, strict=True)
    ):
        raise UsageError(f"input {value.name!r} is [{', '.join(map(str, dims))}]; --input-shape says {list(given)}")
    return InputPlan(value.name, tensor.elem_type, filled)


def _dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        int(dim.dim_value)
        if dim.HasField("dim_value") and dim.dim_value > 0
        else dim.dim_param or f"{value.name}.{axis}"
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def plausible_shapes(model: onnx.ModelProto) -> Iterator[tuple[Shapes, Shapes]]:
    """Yields pairs of shapes by input name, without the batch, most likely first; none without dynamic sizes.

    A symbol denotes the same size everywhere. Axes first get distinct sizes, so that they cannot be confused, and then
    one common size, which some networks require.
    """
    inputs = {value.name: _sizes(value) for value in given_inputs(model.graph)}
    symbols = list(dict.fromkeys(size for sizes in inputs.values() for size in sizes if isinstance(size, str)))
    if not symbols:
        return
    for step in (32, 0):
        for base in _BASES:
            # The second shapes have other differences than the first, so no quotient of sizes stays the same.
            first, second = (
                {symbol: start + place * apart for place, symbol in enumerate(symbols)}
                for start, apart in ((base, step), (base + 32, 2 * step))
            )
            yield _filled(inputs, first), _filled(inputs, second)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Sizes without the batch: a number, or the symbol of a dynamic size (generated if it has none)."""
    dims = list(value.type.tensor_type.shape.dim)[1:]
    return tuple(d.dim_value or d.dim_param or f"{value.name} {axis}" for axis, d in enumerate(dims, 1))


def _filled(inputs: Mapping[str, tuple[int | str, ...]], sizes: Mapping[str, int]) -> Shapes:
    return {
        name: tuple(sizes[size] if isinstance(size, str) else size for size in shape) for name, shape in inputs.items()
    }
