"""Dataclasses out of JSON: what does not fit is one of three exceptions, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from stn_infer.benchmarking.decode import decode


@dataclass(frozen=True)
class Timed:
    name: str
    seconds: tuple[float, ...]
    calls: int


def test_whole_numbers_are_floats_too() -> None:
    found = decode(Timed, {"name": "ort", "seconds": [1, 0.5], "calls": 3})
    assert found == Timed("ort", (1.0, 0.5), 3) and isinstance(found.seconds[0], float)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": [10**400]},  # JSON has numbers of any length
        {"calls": 10**400},
        {"calls": -(2**64)},
        {"calls": True},
        {"calls": 0.5},
        {"seconds": {}},
        {"seconds": [[]]},
        {"name": None},
    ],
)
def test_what_does_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        decode(Timed, {"name": "ort", "seconds": [1], "calls": 3} | change)
