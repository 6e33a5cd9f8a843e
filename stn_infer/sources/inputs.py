"""Inputs of a source: their types, and values for them, made up or from the user's examples."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from stn_infer.sources.load import LoadedModel

#: The types that an input may have.
DTYPES = ("float32", "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


@dataclass(frozen=True)
class GivenInput:
    """An input as ``--input NAME:TYPE:SHAPE`` declares it.

    Attributes:
        name: the parameter of ``forward``.
        dtype: one of :data:`DTYPES`.
        shape: without the batch; empty for one value per sample.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> GivenInput:
        """Parse a declaration such as ``lengths:int64:20``, or ``lengths:int64`` for one value per sample.

        Raises:
            UsageError: it has another form, or the type is unknown.
        """
        match = re.fullmatch(r"([^:]+):([^:]+)(?::([\d,\s]*))?", text)
        sizes = [size for size in (match[3] or "").split(",") if size.strip()] if match else []
        if match is None or any(int(size) < 1 for size in sizes):
            raise UsageError(
                f"--input takes NAME:TYPE:SHAPE with integers of at least 1, without the batch, such as "
                f"lengths:int64:20 or image:uint8:3,32,32; got {text!r}"
            )
        if match[2] not in DTYPES:
            raise UsageError(f"--input {text}: unknown type {match[2]!r}, expected one of {', '.join(DTYPES)}")
        return cls(match[1], match[2], tuple(int(size) for size in sizes))


def given_inputs(given: Sequence[GivenInput], names: Sequence[str]) -> list[GivenInput]:
    """``given`` in the order of ``forward``'s parameters, ``names``.

    Raises:
        UsageError: a name is unknown or given twice, or one is missing before the last.
    """
    by_name = {each.name: each for each in given}
    unknown = [each.name for each in given if each.name not in names]
    if unknown or len(by_name) < len(given):
        wrong = unknown[0] if unknown else next(each.name for each in given if by_name[each.name] is not each)
        raise UsageError(f"the model takes the inputs {', '.join(names)}; given: {wrong}{'' if unknown else ' twice'}")
    ordered = [by_name[name] for name in names if name in by_name]
    missing = [name for name in names[: len(ordered)] if name not in by_name]
    if missing:
        raise UsageError(f"input {missing[0]} is not given; the model takes {', '.join(names)} in this order")
    return ordered


def with_types(loaded: LoadedModel, given: Sequence[GivenInput], names: Sequence[str]) -> LoadedModel:
    """``loaded`` with the inputs that the user declares, in the order of ``names``; raises as :func:`given_inputs`."""
    ordered = given_inputs(given, names)
    return replace(
        loaded,
        input_shapes=tuple(each.shape for each in ordered),
        dtypes=tuple(each.dtype for each in ordered),
    )


def with_examples(
    loaded: LoadedModel, examples: Mapping[str, Array] | Sequence[Array], names: Sequence[str]
) -> LoadedModel:
    """``loaded`` with example inputs, which define shapes and types; float64 and float16 become float32.

    Args:
        loaded: the source.
        examples: arrays [N, ...] by ``forward``'s parameters, or in their order.
        names: ``forward``'s parameters.

    Raises:
        UsageError: a name is unknown or missing, or an array has no batch axis, no rows or an unsupported type.
    """
    if isinstance(examples, Mapping):
        by_name = dict(examples)
        if len(by_name) == 1 and len(names) >= 1 and next(iter(by_name)) not in names:
            by_name = {names[0]: next(iter(by_name.values()))}
    else:
        if len(examples) > len(names):
            raise UsageError(f"the model takes the inputs {', '.join(names)}; given: {len(examples)} arrays")
        by_name = dict(zip(names, examples, strict=False))
    given = [
        GivenInput(name, _dtype(name, array), tuple(array.shape[1:])) for name, array in by_name.items() if array.ndim
    ]
    flat = [name for name, array in by_name.items() if not array.ndim or not len(array)]
    if flat:
        raise UsageError(f"the example for {flat[0]!r} has shape {list(by_name[flat[0]].shape)}; expected [N, ...]")
    ordered = given_inputs(given, names)
    return replace(
        with_types(loaded, ordered, names),
        examples=tuple(by_name[each.name].astype(each.dtype) for each in ordered),
    )


def _dtype(name: str, array: Array) -> str:
    dtype = "float32" if array.dtype.kind == "f" else str(array.dtype)
    if dtype not in DTYPES:
        raise UsageError(f"the example for {name!r} has type {array.dtype}; expected one of {', '.join(DTYPES)}")
    return dtype


def dtypes_of(loaded: LoadedModel) -> tuple[np.dtype[Any], ...]:
    """The type of each input."""
    return tuple(np.dtype(name) for name in loaded.dtypes or ("float32",) * len(loaded.input_shapes))


def random_values(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Values of one type: normally distributed, for uint8 any, for other integers (indices, mostly) 0 or 1."""
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def batch_sizes(loaded: LoadedModel, batch: int) -> list[int]:
    """The number of rows of each input: ``batch`` on the first axis, and a larger one on every other axis.

    Examples on axes of their own keep their numbers of rows, because one may hold row numbers of another.
    """
    axes = loaded.axes
    order = list(dict.fromkeys(axes))
    if loaded.examples and len(order) > 1:
        rows = {
            axis: max(len(value) for value, own in zip(loaded.examples, axes, strict=True) if own == axis)
            for axis in order
        }
        taken: set[int] = set()
        for axis in order:  # all different, and none of them 1, so that no size passes for another
            while max(2, rows[axis]) in taken:
                rows[axis] = max(2, rows[axis]) + 1
            rows[axis] = max(2, rows[axis])
            taken.add(rows[axis])
        return [rows[axis] for axis in axes]
    return [batch + 2 * order.index(axis) for axis in axes]


def rows_of(loaded: LoadedModel, counts: Sequence[int]) -> list[Array]:
    """The first rows of each example input, repeated if there are fewer; zeros without examples."""
    if loaded.examples:
        return [array[np.arange(count) % len(array)] for array, count in zip(loaded.examples, counts, strict=True)]
    shapes = zip(counts, loaded.input_shapes, dtypes_of(loaded), strict=True)
    return [np.zeros((count, *shape), dtype) for count, shape, dtype in shapes]


def zeros(loaded: LoadedModel, batch: int = 1) -> list[Array]:
    """Inputs [N, *shape] for a trial run, N being the batch size that the source is tied to, else ``batch``.

    The first examples if there are some, else zeros.
    """
    return rows_of(loaded, batch_sizes(loaded, loaded.fixed_batch or batch))


def input_names(module: nn.Module, count: int) -> list[str]:
    """The names of the first ``count`` parameters of ``forward``; if it has fewer, ``input``, or ``input_0``, …"""
    return parameter_names(module, count)[:count]


def parameter_names(module: nn.Module, count: int) -> list[str]:
    """The names of all parameters of ``forward``; if it has fewer than ``count``, ``input``, or ``input_0``, …"""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return names if len(names) >= count else numbered("input", count)


def takes_any_number(module: nn.Module) -> bool:
    """Whether ``forward`` takes any number of inputs, ``*inputs``."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind == inspect.Parameter.VAR_POSITIONAL for parameter in parameters)


def numbered(name: str, count: int) -> list[str]:
    """``[name]``, or ``[name_0, name_1, …]`` for several."""
    return [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
