"""Mutations of text: JSON and TOML by value, lists by line."""

from __future__ import annotations

import json
import random
import re
import tomllib
from typing import Any

from tests.fuzz.mutate_bytes import FLOATS, integer, text

_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        10**12,
        10**400,
        0.5,
        float("nan"),
        float("inf"),
        1e308,
        "",
        "x",
        [],
        {},
        [[]],
        {"": 0},
    ),
    *([None], [1, 2], ["a"], {"a": {"b": []}}, "name\n", "é", "1/0", "1/255", "x" * 300),
)


def _deep(generator: random.Random) -> Any:
    value: Any = 0
    for _ in range(generator.choice((10, 100, 900))):
        value = [value] if generator.random() < 0.5 else {"a": value}
    return value


def change_value(value: Any, generator: random.Random) -> Any:
    """``value`` (of JSON or TOML) with one part changed; lists and tables are changed in place."""
    sites: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, (dict, list)):
            entries = list(found.items()) if isinstance(found, dict) else list(enumerate(found))
            sites += [(found, key) for key, _ in entries]
            waiting += [inner for _, inner in entries]
    if not sites:
        return generator.choice(_VALUES)
    by_key: dict[Any, list[tuple[Any, Any]]] = {}
    for parent, key in sites:
        by_key.setdefault(key if isinstance(key, str) else "", []).append((parent, key))
    parent, key = generator.choice(by_key[generator.choice(list(by_key))])  # each name as likely
    old = parent[key]
    match generator.randrange(8):
        case 0:
            del parent[key]
        case 1:
            parent[key] = _deep(generator)
        case 2:
            other, there = generator.choice(sites)
            if there in other if isinstance(other, dict) else there < len(other):
                parent[key] = json.loads(json.dumps(other[there], default=str))
        case 3 if isinstance(parent, dict):
            parent[text(generator)] = parent.pop(key)
        case 4 if isinstance(old, list):
            parent[key] = old * 2
        case 5 if isinstance(old, (int, float)) and not isinstance(old, bool):
            parent[key] = (
                integer(generator, int(old))
                if generator.random() < 0.6 and abs(old) < 1e300
                else generator.choice(FLOATS)
            )
        case 6 if isinstance(old, str):
            parent[key] = text(generator)
        case _:
            parent[key] = generator.choice(_VALUES)
    return value


def mutate_json(data: bytes, generator: random.Random) -> bytes | None:
    """A JSON document with one value changed; None if ``data`` is not one."""
    try:
        return json.dumps(change_value(json.loads(data), generator), allow_nan=True).encode()
    except (ValueError, RecursionError, OverflowError):
        return None


def mutate_toml(data: bytes, generator: random.Random) -> bytes | None:
    """A TOML document with one value changed; None if ``data`` is not one."""
    try:
        tables = tomllib.loads(data.decode())
        changed = change_value(tables, generator)
        return "\n".join(f"{json.dumps(str(key))} = {_toml(value)}" for key, value in changed.items()).encode()
    except (ValueError, RecursionError, AttributeError, OverflowError):
        return None


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool) or value is None:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value))


def mutate_lines(data: bytes, generator: random.Random) -> bytes:
    """Lines removed, repeated, changed or replaced; and words and numbers in them."""
    lines = data.split(b"\n")
    at = generator.randrange(len(lines))
    match generator.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, generator.choice(lines))
        case 2:
            lines[at] = text(generator).encode()
        case 3:
            lines[at] = re.sub(rb"\d+", lambda _: str(integer(generator)).encode(), lines[at])
        case 4:
            words = lines[at].split(b",")
            words[generator.randrange(len(words))] = text(generator).encode()
            lines[at] = b",".join(words)
        case _:
            lines[at] = generator.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r", b'"')) + lines[at]
    return b"\n".join(lines)
