"""Dataclasses out of JSON, for results and for what worker processes answer."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_MOST = 2**63 - 1


def decode(kind: type[T], value: Any) -> T:
    """``value`` out of JSON as ``kind``, a dataclass of dataclasses, tuples, mappings and plain values.

    Raises:
        KeyError, TypeError, ValueError: it does not fit.
    """
    found: T = _decode(kind, value)
    return found


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise TypeError(f"{kind.__name__} is an object, not {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        # what an older version did not have keeps its default
        known = [each for each in fields(kind) if each.name in value or "since" not in each.metadata]
        return kind(**{each.name: _decode(hints[each.name], value[each.name]) for each in known})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _decode(inner, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, found {type(value).__name__}")
        return tuple(_decode(arguments[0], each) for each in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {type(value).__name__}")
        return {key: _decode(arguments[1], each) for key, each in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"expected one of {', '.join(map(str, arguments))}, found {value!r}")
        return value
    if isinstance(value, int) and not -_MOST <= value <= _MOST:
        raise ValueError("a number has too many digits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and value in ("nan", "inf", "-inf"):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
