"""Pre-processing as text, and metadata in a file."""

from __future__ import annotations

import pytest

from stn_infer.errors import UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess


def test_parse() -> None:
    rule = Preprocess.parse("rgb,size=32x100,scale=1/127.5,mean=1,std=0.5:0.25:1/8")
    assert rule == Preprocess("rgb", (32, 100), 1 / 127.5, (1.0,), (0.5, 0.25, 0.125))


def test_an_update_keeps_other_fields() -> None:
    rule = Preprocess("rgb", (32, 100), mean=(0.5,))
    assert rule.updated("size=model, std=2") == Preprocess("rgb", None, mean=(0.5,), std=(2.0,))
    assert rule.updated("") == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color=blue", "'gray' or 'rgb' or 'bgr'"),
        ("sise=3x3", "unknown preprocess key 'sise'"),
        ("size=3x", "is malformed"),
        ("size=3x4x5", "is malformed"),
        ("size=0x3", "at least 1"),
        ("scale=1/0", "is malformed"),
        ("scale=abc", "is malformed"),
        ("std=0", "divide by zero"),
        ("mean=1:2", "takes 1 or 1"),
        ("rgb,mean=1:2", "takes 1 or 3"),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess.parse(text)


def test_round_trip_through_a_file() -> None:
    rule = Preprocess.parse("rgb,size=8x9,mean=1:2:3")
    metadata = ModelMetadata(rule, ("zero", "one ÷"), "st-cnn-affine-rts", weights="ema (averaged)")
    assert ModelMetadata.from_props({**metadata.to_props(), "other": "kept apart"}) == metadata
    assert ModelMetadata.from_props({}) == ModelMetadata()


@pytest.mark.parametrize(
    "value",
    [
        "not json",
        "[1]",
        '{"color": "blue"}',
        '{"unknown": 1}',
        '{"size": 3}',
        '{"size": [1.5, 2.5]}',
        '{"size": [true, 2]}',
        '{"size": [1, 2, 3]}',
        '{"size": [100000, 100000]}',
        '{"size": ["a", "b"]}',
        '{"mean": null}',
        '{"mean": [NaN]}',
        '{"std": [Infinity]}',
        '{"std": ["1"]}',
        '{"scale": 1e999}',
        '{"scale": "1"}',
        '{"color": ["gray"]}',
        "null",
        "[" * 100000,
    ],
)
def test_damaged_metadata(value: str) -> None:
    with pytest.raises(UsageError, match="the file's stn_infer metadata is damaged") as caught:
        ModelMetadata.from_props({"stn_infer.preprocess": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["{}", '"abc"', "3", '[["a"]]', "[" * 100000])
def test_damaged_labels(value: str) -> None:
    with pytest.raises(UsageError, match="the file's stn_infer metadata is damaged"):
        ModelMetadata.from_props({"stn_infer.labels": value})


def test_spellings_of_earlier_versions_are_read() -> None:
    old = ModelMetadata.from_props({"stn_infer.preprocess": '{"colour": "grey", "size": [8, 9]}'})
    assert old.preprocess == Preprocess("gray", size=(8, 9), exif="ignore"), "earlier versions ignored it"
    assert Preprocess.parse("grey") == Preprocess.parse("colour=grey") == Preprocess("gray")
