"""A node's attributes and inputs, as the operators read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stn_infer.arrays import Array

Attributes = Mapping[str, Any]
Operator = Callable[[Attributes, Sequence[Array | None]], list[Array]]


def present(inputs: Sequence[Array | None]) -> list[Array]:
    """The inputs that are not omitted."""
    return [value for value in inputs if value is not None]


def first(inputs: Sequence[Array | None]) -> Array:
    """Input 0, which no operator omits."""
    value = inputs[0]
    assert value is not None
    return value


def optional(inputs: Sequence[Array | None], index: int) -> Array | None:
    """An input that may be omitted, or be beyond the end of the list. An empty tensor stands for an omitted one."""
    return inputs[index] if index < len(inputs) else None


def integers(attributes: Attributes, inputs: Sequence[Array | None], index: int, name: str) -> list[int] | None:
    """Returns a list of integers that is an attribute in older opsets and an input in newer ones."""
    value = attributes.get(name)
    if value is None:
        value = optional(inputs, index)
    return None if value is None else [int(item) for item in np.asarray(value).ravel()]
