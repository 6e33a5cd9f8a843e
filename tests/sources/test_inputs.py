"""Inputs as the user declares them, and values for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from stn_infer.errors import UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.inputs import GivenInput, dtypes_of, random_values, rows_of, with_examples, with_types, zeros
from stn_infer.sources.load import LoadedModel

NAMES = ("image", "lengths", "scale")


def loaded(**more: Any) -> LoadedModel:
    return LoadedModel("net", nn.Identity(), ((1, 4, 4),), ModelMetadata(), "factory", **more)


def test_declarations() -> None:
    assert GivenInput.parse("lengths:int64:20,3") == GivenInput("lengths", "int64", (20, 3))
    assert GivenInput.parse("lengths:int64") == GivenInput.parse("lengths:int64:") == GivenInput("lengths", "int64", ())
    given = with_types(loaded(), [GivenInput.parse("lengths:int64"), GivenInput.parse("image:uint8:3,8,8")], NAMES)
    assert given.input_shapes == ((3, 8, 8), ())
    assert dtypes_of(given) == (np.uint8, np.int64)
    assert [(value.shape, value.dtype) for value in zeros(given, 2)] == [((2, 3, 8, 8), np.uint8), ((2,), np.int64)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lengths", "NAME:TYPE:SHAPE .* got 'lengths'"),
        ("lengths:int64:0", "at least 1"),
        ("lengths:int64:a", "got 'lengths:int64:a'"),
        ("lengths:complex64:2", "unknown type 'complex64', expected one of float32"),
    ],
)
def test_wrong_declarations(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GivenInput.parse(text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["image", "wrong"], "takes the inputs image, lengths, scale; given: wrong"),
        (["image", "image"], "given: image twice"),
        (["image", "scale"], "input lengths is not given"),
    ],
)
def test_names_that_do_not_fit(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_types(loaded(), [GivenInput(name, "int64", ()) for name in names], NAMES)


def test_examples() -> None:
    image, lengths = np.ones((3, 1, 4, 4)), np.array([5, 6, 7])
    for examples in ({"lengths": lengths, "image": image}, (image, lengths)):
        given = with_examples(loaded(), examples, NAMES)
        assert given.input_shapes == ((1, 4, 4), ()) and dtypes_of(given) == (np.float32, np.int64)
        rows = rows_of(given, [5, 2])
        assert rows[0].shape == (5, 1, 4, 4) and rows[1].tolist() == [5, 6]
    assert with_examples(loaded(), {"any": image}, NAMES).input_shapes == ((1, 4, 4),)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ((np.float32(1),), r"'image' has shape \[\]; expected \[N, ...\]"),
        ((np.ones((0, 3)),), r"'image' has shape \[0, 3\]"),
        ((np.array(["a"]),), "'image' has type <U1"),
        ((np.ones(1),) * 4, "given: 4 arrays"),
        ({"image": np.ones((1, 2)), "other": np.ones((1, 2))}, "given: other"),
    ],
)
def test_examples_that_do_not_fit(examples: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_examples(loaded(), examples, NAMES)


def test_random_values() -> None:
    generator = np.random.default_rng(0)
    assert set(np.unique(random_values(generator, (99,), np.dtype(np.int64)))) == {0, 1}
    assert set(np.unique(random_values(generator, (99,), np.dtype(bool)))) == {False, True}
    assert random_values(generator, (999,), np.dtype(np.uint8)).max() > 200
    assert random_values(generator, (9,), np.dtype(np.float32)).dtype == np.float32
