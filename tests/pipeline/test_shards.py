"""How many workers run the model at once, and which rows are encoded together."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.ort import OrtBackend
from stn_infer.decoding import Decoding
from stn_infer.errors import ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.formats import NpzFormat
from stn_infer.pipeline.inference import run_job
from stn_infer.pipeline.plan import RunOptions
from tests.support.onnx_files import affine_model


class Counting(OrtBackend):
    """Counts the calls that run at the same time; each waits for others for a while."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model, threads=1)
        self.most = self._now = 0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.01)
        try:
            return super().run(inputs)
        finally:
            with self._lock:
                self._now -= 1


@pytest.mark.parametrize(("callers", "most"), [(1, {1}), (2, {1, 2}), (None, {2, 3, 4}), (9, {2, 3, 4})])
def test_callers_bound_the_calls_at_once(callers: int | None, most: set[int], tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.zeros((16, 1, 8, 8), np.float32))
    backend = Counting(affine_model().SerializeToString())
    options = RunOptions(batch_size=1, format="npz", workers=4, callers=callers)
    run_job(backend, [str(tmp_path / "inputs.npy")], tmp_path / "job", options, model="model", model_sha256="")
    assert backend.most in most


def test_no_callers() -> None:
    with pytest.raises(UsageError, match="callers is at least 1, not 0"):
        RunOptions(callers=0)


class Echo:
    """A backend whose output is its input."""

    name, device, metadata = "echo", "cpu", ModelMetadata()

    def __init__(self) -> None:
        float32, shape = np.dtype(np.float32), (None, 1, None, None)
        self.inputs = (TensorSpec("image", shape, float32),)
        self.outputs = (TensorSpec("warped", shape, float32),)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"warped": inputs["image"]}

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("size", "batch_size", "parts"), [(4, 8, 3), (4, 600, 2), (4, 1100, 1), (256, 3, 4), (256, 4, 5)]
)
def test_small_batches_are_encoded_together(
    size: int, batch_size: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 20 if size == 256 else 1100  # a sample of 256x256 has a quarter of the bytes that are encoded at once
    values = np.random.default_rng(0).random((count, 1, size, size), np.float32)
    np.save(tmp_path / "x.npy", values)
    found: list[int] = []
    write = NpzFormat.write
    monkeypatch.setattr(
        NpzFormat, "write", lambda self, path, parts: found.append(len(parts)) or write(self, path, parts)
    )
    options = RunOptions(batch_size=batch_size, format="npz", shard_rows=2000, workers=1)
    run_job(Echo(), [tmp_path / "x.npy"], tmp_path / "job", options, model="model")
    assert found == [parts]
    with np.load(tmp_path / "job" / "predictions-00000.npz") as file:
        np.testing.assert_array_equal(file["warped"], values)
        assert file["input"][-1] == f"{tmp_path}/x.npy[{count - 1}]"


@pytest.mark.parametrize(("size", "batch_size"), [(8, 1), (8, 2), (512, 1)])
def test_outputs_of_different_sizes_cannot_be_in_one_file(size: int, batch_size: int, tmp_path: Path) -> None:
    """In one block (8x8), or in two (a sample of 512x512 is one)."""
    for name, side in (("a", size), ("b", size + 1)):
        np.save(tmp_path / f"{name}.npy", np.zeros((1, 1, side, side), np.float32))
    options = RunOptions(batch_size=batch_size, format="npz", workers=1)
    with pytest.raises(ModelError, match="gave outputs of different sizes; run each input size separately"):
        run_job(Echo(), [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "job", options, model="model")
    assert not list((tmp_path / "job").glob("predictions-*"))


class Reader(Echo):
    """A backend that reads one letter in each column of its input, which can have any width."""

    metadata = ModelMetadata(decodings=(Decoding("text", "sequence", ("places",), symbols=("a", "b")),))

    def __init__(self) -> None:
        super().__init__()
        self.outputs += (TensorSpec("places", (None, None, 2), np.dtype(np.float32)),)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        first = inputs["image"][:, 0, 0]
        return {**super().run(inputs), "places": np.stack([1 - first, first], axis=2)}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "npz"])
def test_outputs_of_different_sizes_that_are_not_stored(format: str, batch_size: int, tmp_path: Path) -> None:
    """Texts of any length are, and those of different sizes and batches go into one file, in order."""
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="--format parquet needs pyarrow")
    widths = {"one": 2, "two": 2, "wide": 5, "three": 2, "as wide": 5, "last": 3}
    for name, width in widths.items():
        np.save(tmp_path / f"{name}.npy", np.ones((1, 1, 4, width), np.float32))
    options = RunOptions(batch_size=batch_size, format=format, workers=1, outputs=() if format == "npz" else None)
    inputs = [tmp_path / f"{name}.npy" for name in widths]
    done = run_job(Reader(), inputs, tmp_path / "job", options, model="model")
    assert (done.ok, done.failed) == (len(widths), 0)
    path = tmp_path / "job" / f"predictions-00000.{format}"
    if format == "parquet":
        from pyarrow import parquet

        found = parquet.read_table(path)["text"].to_pylist()
    elif format == "npz":
        with np.load(path) as file:
            found = file["text"].tolist()
    else:
        lines = path.read_text().splitlines()
        found = [json.loads(line)["text"] for line in lines] if format == "jsonl" else [*csv.DictReader(lines)]
        found = [row["text"] for row in found] if format == "csv" else found
    assert found == ["b" * width for width in widths.values()]
