from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stn_infer.json_text import json_text
from stn_infer.printing import Printed


@dataclass(frozen=True)
class Inner:
    error: float
    name: str = "a\u2028b"


@dataclass(frozen=True)
class Outer(Printed):
    path: Path
    inner: tuple[Inner, ...]
    counts: dict[int, float]

    def lines(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Chosen:
    big: bytes = b"x"

    def json_content(self) -> dict[str, Any]:
        return {"inner": Inner(0.5)}


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_dataclass_by_its_fields() -> None:
    found = Outer(Path("a/b"), (Inner(float("nan")), Inner(float("-inf"), "c")), {1: float("inf"), 2: 0.5})
    text = found.to_json()
    assert text.isascii()
    assert strict(text) == {
        "path": "a/b",
        "inner": [{"error": "nan", "name": "a\u2028b"}, {"error": "-inf", "name": "c"}],
        "counts": {"1": "inf", "2": 0.5},
    }


def test_its_own_content_comes_first() -> None:
    assert strict(json_text([Chosen()])) == [{"inner": {"error": 0.5, "name": "a\u2028b"}}]


def test_numbers_of_numpy() -> None:
    assert strict(json_text([np.float64(0.5), np.float64("inf")])) == [0.5, "inf"]


@pytest.mark.parametrize("value", [b"x", object(), np.zeros(2)])
def test_what_json_lacks_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        json_text({"value": value})
