"""Columns of texts and boxes in every format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stn_infer.backends.base import TensorSpec
from stn_infer.decoding import Decoding
from stn_infer.errors import UsageError
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import FORMATS, make_format
from stn_infer.predictions import Classifier

FLOAT32 = np.dtype(np.float32)
OUTPUTS = (
    TensorSpec("heads", (None, 2, 3), FLOAT32),
    TensorSpec("box", (None, 4), FLOAT32),
    TensorSpec("crop", (None, 1, 2, 2), FLOAT32),
    TensorSpec("score", (None, 1), FLOAT32),
)
DECODINGS = (
    Decoding("text", "sequence", ("heads",), symbols=('"', ",", "é")),
    Decoding("object", "box", ("box",)),
)
VALUES: dict[str, Any] = {
    "heads": np.eye(3, dtype=np.float32)[np.array([[0, 1], [2, 2], [1, 0]])],
    "box": np.array([[0, 1, 2, 3], [0.1, 0.2, np.inf, 4], [5, 6, 7, 8]], np.float32),
    "crop": np.zeros((3, 1, 2, 2), np.float32),
    "score": np.array([[0.5], [0.25], [0.75]], np.float32),
}
TEXTS = ['",', "éé", ',"']
SIDES = ["object_left", "object_top", "object_right", "object_bottom"]


def written(path: Path, format: str, parts: int = 2, stored: tuple[TensorSpec, ...] = OUTPUTS) -> Path:
    encoder = make_format(format, stored, None, Decoder(DECODINGS, (), stored))
    pieces = []
    for part in np.array_split(np.arange(3), parts) if parts else []:
        outputs = {spec.name: VALUES[spec.name][part] for spec in stored}
        pieces.append(encoder.encode(encoder.rows(tuple(f"{i}.png" for i in part), outputs)))
    encoder.write(path / "x", pieces)
    return path / "x"


@pytest.mark.parametrize("stored", [OUTPUTS, OUTPUTS[:2]])
def test_csv(tmp_path: Path, stored: tuple[TensorSpec, ...]) -> None:
    with written(tmp_path, "csv", stored=stored).open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["input", "text", *SIDES, *(["score_0"] if len(stored) > 2 else [])]
    assert [line[1] for line in lines] == TEXTS
    assert np.array_equal(np.array([line[2:6] for line in lines]).astype(np.float32), VALUES["box"])


def test_jsonl(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path, "jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert lines[0] == {"input": "0.png", "text": '",', **dict(zip(SIDES, [0, 1, 2, 3], strict=True)), "score": [0.5]}
    assert lines[1]["object_right"] is None and lines[1]["object_left"] == pytest.approx(0.1)


@pytest.mark.parametrize("parts", [2, 0])
def test_parquet(tmp_path: Path, parts: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(tmp_path, "parquet", parts))
    assert table.column_names == ["input", "text", *SIDES, "score_0"]
    assert [str(kind) for kind in table.schema.types] == ["string", "string", *["float"] * 5]
    assert table["text"].to_pylist() == (TEXTS if parts else [])


@pytest.mark.parametrize("parts", [2, 0])
def test_npz_has_the_outputs_too(tmp_path: Path, parts: int) -> None:
    with np.load(written(tmp_path, "npz", parts)) as found:
        assert set(found) == {"input", "text", *SIDES, "heads", "box", "crop", "score"}
        assert found["text"].tolist() == (TEXTS if parts else [])
        assert found["heads"].shape == (3 * bool(parts), 2, 3)
        if parts:
            assert np.array_equal(np.stack([found[side] for side in SIDES], 1), VALUES["box"])


@pytest.mark.parametrize("format", FORMATS)
def test_the_first_of_several_heads_is_no_classifier(format: str) -> None:
    heads = (TensorSpec("a", (None, 3), FLOAT32), TensorSpec("b", (None, 3), FLOAT32))
    decoder = Decoder((Decoding("text", "sequence", ("a", "b")),), (), heads)
    assert not make_format(format, heads, None, decoder).classifies
    with pytest.raises(UsageError, match="not a vector of class scores"):
        make_format(format, heads, Classifier(labels=("x", "y", "z")), decoder)
