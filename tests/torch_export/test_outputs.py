"""The tensors in what a model returns, and their names."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from stn_infer.errors import ModelError
from stn_infer.torch_export.outputs import output_names, output_tensors, unique_names

A, B, C = (torch.full((2,), float(value)) for value in range(3))


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Result:
    logits: Any
    warped: Any
    aux: Any = None


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (A, ["output"]),
        ([A], ["output"]),
        ((A, None), ["output"]),
        ((A, None, [B, C]), ["output_0", "output_1", "output_2"]),
        ({"logits": A, "aux": None, "warped": B}, ["logits", "warped"]),
        ({"a": {"b": A}, "c": [B]}, ["a", "c"]),
        ({"a": {"b": A, "d": B}, "c": [A, None, C]}, ["a.b", "a.d", "c.0", "c.2"]),
        (collections.OrderedDict(z=A, a=B), ["z", "a"]),
        (Result(A, B), ["logits", "warped"]),
        (Result(A, Pair(B, Result(C, None))), ["logits", "warped.first", "warped.second"]),
        (Pair(A, {"x": B}), ["first", "second"]),
        ((A, Result(B, None)), ["output_0", "output_1"]),
        ({"": A, 0: B}, ["output_0", "0"]),
    ],
)
def test_names(returned: Any, names: list[str]) -> None:
    assert output_names(returned) == names
    assert len(output_tensors(returned)) == len(names)


def test_order() -> None:
    found = output_tensors(Result({"x": A, "y": (B, None)}, C))
    assert [float(tensor[0]) for tensor in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((A, 3), "returns int; expected tensors"),
        ((A, "x", 2.0), "returns float, str; expected tensors"),
        (None, "returns nothing"),
        ({"a": None}, "returns nothing"),
        ({"a": object()}, "returns object; expected tensors, alone or in tuples, lists, dictionaries"),
    ],
)
def test_what_is_not_a_tensor(returned: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        output_tensors(returned)


def test_unique_names() -> None:
    assert unique_names(["x", "y", "y", "x_out"], ["x"]) == ["x_out", "y", "y_out", "x_out_out"]
