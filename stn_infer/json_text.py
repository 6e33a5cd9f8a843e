"""Results as JSON that every parser reads: a dataclass by its fields, infinities and NaN as strings, all in ASCII."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any


def json_text(value: object) -> str:
    """``value`` as one JSON document; what :func:`json_value` cannot convert raises TypeError."""
    return json.dumps(json_value(value), indent=1, allow_nan=False)


def json_value(value: object) -> Any:
    """``value`` in the types that JSON has.

    A dataclass is an object with its fields, or with what its method ``json_content`` returns; a path is a string. JSON
    has no NaN and no infinities: they become ``"nan"``, ``"inf"`` and ``"-inf"``, which Python's ``float`` reads.
    """
    content = getattr(value, "json_content", None)
    if content is not None:
        return json_value(content())
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: json_value(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return str(float(value))
    return str(value) if isinstance(value, Path) else value
