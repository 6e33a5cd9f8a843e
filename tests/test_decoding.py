"""Decodings in a file's metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stn_infer.decoding import Decoding, decoding_from
from stn_infer.errors import UsageError
from stn_infer.metadata import ModelMetadata

NUMBER = Decoding("number", "sequence", ("output",), end=-1, length="count", symbols=("a", "b", ""))
BOX = Decoding("object", "box", ("theta",))


def test_round_trip_through_a_file() -> None:
    metadata = ModelMetadata(decodings=(NUMBER, BOX))
    assert ModelMetadata.from_props(metadata.to_props()) == metadata
    assert not any("decodings" in key for key in ModelMetadata().to_props())


def test_columns_and_outputs() -> None:
    assert NUMBER.columns == ("number",) and NUMBER.reads == ("output", "count")
    assert BOX.columns == ("object_left", "object_top", "object_right", "object_bottom") and BOX.reads == ("theta",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "x", "kind": "box"}, "needs 'outputs'"),
        ({"name": "x", "kind": "boxes", "outputs": ["y"]}, "one of sequence, box, not 'boxes'"),
        ({"name": "x", "kind": "box", "outputs": []}, "names of the model's outputs"),
        ({"name": "x", "kind": "box", "outputs": "theta"}, "outputs is a list"),
        ({"name": "x", "kind": "box", "outputs": ["y", "z"]}, "a box has one output"),
        ({"name": "x", "kind": "box", "outputs": ["y"], "end": 3}, "a box has one output"),
        ({"name": "", "kind": "box", "outputs": ["y"]}, "has a name"),
        ({"name": "x", "kind": "sequence", "outputs": ["y"], "end": "last"}, "number of a class"),
        ({"name": "x", "kind": "sequence", "outputs": ["y"], "symbols": [1]}, "symbols are texts"),
        ({"name": "x", "kind": "sequence", "outputs": ["y"], "ende": 3}, "no field 'ende'"),
        ([], "is a table"),
    ],
)
def test_a_wrong_table_is_one_line(table: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decoding_from(table)
    with pytest.raises(UsageError, match="metadata is damaged"):
        ModelMetadata.from_props({"stn_infer.decodings": json.dumps([table])})
