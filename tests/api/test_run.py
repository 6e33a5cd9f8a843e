from __future__ import annotations

import csv
import os
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stn_infer.api.run import run
from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, PixelBackend, TensorSpec
from stn_infer.errors import InputError, ModelError, OutputError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.inference import RunSummary
from stn_infer.pipeline.job import read_ledger
from stn_infer.preprocess.rule import Preprocess

FLOAT32 = np.dtype(np.float32)
PIXELS = (TensorSpec("input", (None, 1, 4, 4), FLOAT32),)
SCORES = (TensorSpec("scores", (None, 3), FLOAT32),)


class Fake:
    """A backend that answers with ``function``; by default (mean, 0.5, 0) of each image."""

    name = "fake"

    def __init__(
        self,
        function: Callable[[Mapping[str, Array]], dict[str, Array]] | None = None,
        inputs: Sequence[TensorSpec] = PIXELS,
        outputs: Sequence[TensorSpec] = SCORES,
        device: str = "cpu",
        metadata: ModelMetadata | None = None,
    ) -> None:
        self.inputs, self.outputs, self.device = tuple(inputs), tuple(outputs), device
        self.metadata = metadata or ModelMetadata()
        self.batches: list[int] = []
        self._function = function or self._mean

    @staticmethod
    def _mean(inputs: Mapping[str, Array]) -> dict[str, Array]:
        mean = inputs["input"].mean(axis=(1, 2, 3))
        return {"scores": np.stack([mean, np.full_like(mean, 0.5), np.zeros_like(mean)], axis=1)}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(next(iter(inputs.values()))))
        return self._function(inputs)

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        raise AssertionError("run must not close a backend that it did not open")


def write_images(folder: Path, count: int) -> list[Path]:
    """Gray images of one value each: 0, 1, 2…"""
    folder.mkdir()
    paths = [folder / f"{i:04d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("L", (4, 4), i % 256).save(path)
    return paths


def table(folder: Path, kind: str) -> list[dict[str, str]]:
    """All rows of all shards."""
    rows = []
    for path in sorted(folder.glob(f"{kind}-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def test_the_fake_is_a_backend() -> None:
    assert isinstance(Fake(), Backend)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_come_in_the_order_of_the_inputs(tmp_path: Path, device: str, workers: int) -> None:
    paths = write_images(tmp_path / "in", 50)

    def slow_at_first(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["input"][0, 0, 0, 0] < 0.1:
            time.sleep(0.05)
        return Fake._mean(inputs)

    fake = Fake(slow_at_first, device=device)
    progress: list[tuple[int, int]] = []
    summary = run(
        fake,
        tmp_path / "in",
        tmp_path / "out",
        batch_size=4,
        shard_rows=18,
        workers=workers,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert isinstance(summary, RunSummary)
    assert (summary.total, summary.ok, summary.failed, summary.resumed, summary.failures) == (50, 50, 0, 0, ())
    assert summary.preprocess == Preprocess()
    predictions, ledger = table(tmp_path / "out", "predictions"), table(tmp_path / "out", "ledger")
    assert [row["input"] for row in predictions] == [str(path) for path in paths] == [row["input"] for row in ledger]
    means = np.array([row["scores_0"] for row in predictions], np.float32)
    assert np.allclose(means, np.arange(50) / 255)
    assert [int(row["prediction"]) for row in predictions] == [1] * 50
    assert [(int(row["shard"]), int(row["row"])) for row in ledger] == [(i // 18, i % 18) for i in range(50)]
    assert sorted(fake.batches) == sorted([4, 4, 4, 4, 2] * 2 + [4, 4, 4, 2]), "a batch never spans two shards"
    assert progress[0] == (0, 50) and progress[-1] == (50, 50)
    assert progress == sorted(progress)


def test_a_bad_image_fails_only_its_own_row(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 10)
    paths[2].write_bytes(b"")
    paths[3].write_bytes(b"no image")
    paths[4].write_bytes(paths[5].read_bytes()[:-20])
    Image.new("L", (5, 4)).save(paths[9])
    summary = run(Fake(), tmp_path / "in", tmp_path / "out", batch_size=3, shard_rows=5)
    assert (summary.total, summary.ok, summary.failed) == (10, 6, 4)
    assert [name for name, _ in summary.failures] == [str(paths[i]) for i in (2, 3, 4, 9)]
    ledger = table(tmp_path / "out", "ledger")
    assert [row["status"] for row in ledger] == ["ok"] * 2 + ["failed"] * 3 + ["ok"] * 4 + ["failed"]
    assert "0 bytes" in ledger[2]["error"] and "4x5" in ledger[9]["error"]
    assert [row["row"] for row in ledger] == ["0", "1", "", "", "", "0", "1", "2", "3", ""]
    good = [str(paths[i]) for i in (0, 1, 5, 6, 7, 8)]
    assert [row["input"] for row in table(tmp_path / "out", "predictions")] == good


def test_a_shard_of_failures_only(tmp_path: Path) -> None:
    for path in write_images(tmp_path / "in", 4)[:2]:
        path.write_bytes(b"")
    summary = run(Fake(), tmp_path / "in", tmp_path / "out", shard_rows=2)
    assert (summary.ok, summary.failed) == (2, 2)
    assert (tmp_path / "out" / "predictions-00000.csv").read_text().count("\n") == 1
    assert len(table(tmp_path / "out", "predictions")) == 2


def test_nan_is_not_a_prediction(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 6)

    def nan_at_two(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = Fake._mean(inputs)
        outputs["scores"][np.isclose(outputs["scores"][:, 0], 2 / 255), 1] = np.nan
        return outputs

    summary = run(Fake(nan_at_two), tmp_path / "in", tmp_path / "out", batch_size=4)
    assert summary.failures == ((str(paths[2]), "the model's output 'scores' contains NaN for this input"),)
    assert [row["row"] for row in table(tmp_path / "out", "ledger")] == ["0", "1", "", "2", "3", "4"]
    means = [float(row["scores_0"]) * 255 for row in table(tmp_path / "out", "predictions")]
    assert np.allclose(means, [0, 1, 3, 4, 5])


class Stop(Exception):
    pass


def stop_at(image: int) -> Fake:
    """Stops at a batch that begins with this image or a later one."""

    def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if round(float(inputs["input"][0, 0, 0, 0]) * 255) >= image:
            raise Stop
        return Fake._mean(inputs)

    return Fake(function)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "npz"])
def test_a_killed_run_resumes_to_the_same_files(tmp_path: Path, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    paths = write_images(tmp_path / "in", 40)
    paths[3].write_bytes(b"")
    arguments: dict[str, Any] = {"batch_size": 3, "shard_rows": 7, "format": format}
    run(Fake(), tmp_path / "in", tmp_path / "whole", **arguments)
    with pytest.raises(Stop):
        run(stop_at(25), tmp_path / "in", tmp_path / "out", workers=2, **arguments)
    done = len(list((tmp_path / "out").glob("ledger-*.csv")))
    assert done == 3
    assert not list((tmp_path / "out").glob(".*")), "no temporary file is left"
    fake = Fake()
    summary = run(fake, tmp_path / "in", tmp_path / "out", resume=True, **arguments)
    assert (summary.total, summary.ok, summary.failed, summary.resumed) == (40, 39, 1, 7 * done)
    assert sum(fake.batches) == 40 - 7 * done
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    again = Fake()
    assert run(again, tmp_path / "in", tmp_path / "out", resume=True, **arguments).resumed == 40
    assert again.batches == []


def test_a_shard_whose_predictions_are_gone_is_made_again(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 10)
    run(Fake(), tmp_path / "in", tmp_path / "out", shard_rows=5)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "predictions-00000.csv").unlink()
    assert run(Fake(), tmp_path / "in", tmp_path / "out", shard_rows=5, resume=True).resumed == 5
    assert contents(tmp_path / "out") == before


def test_other_inputs_are_another_job(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 4)
    run(Fake(), tmp_path / "in", tmp_path / "out")
    Image.new("L", (4, 4)).save(tmp_path / "in" / "more.png")
    with pytest.raises(OutputError, match="cannot resume another job: samples was 4, now 5"):
        run(Fake(), tmp_path / "in", tmp_path / "out", resume=True)


@pytest.mark.parametrize("kept", [32768, 0])
def test_inputs_that_disappear_during_the_run_fail_only_their_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr("stn_infer.data.inputs._KEPT", kept)
    paths = write_images(tmp_path / "in", 200)

    def progress(done: int, total: int) -> None:
        paths[199].unlink(missing_ok=True)
        (tmp_path / "in" / "new.png").touch()

    summary = run(Fake(), tmp_path / "in", tmp_path / "out", progress=progress, batch_size=1, workers=1)
    assert (summary.total, summary.ok, summary.failed) == (200, 199, 1)
    assert summary.failures == ((str(paths[199]), f"no such file: {paths[199]}"),)
    rows = list(read_ledger(tmp_path / "out" / "ledger-00000.csv"))
    assert [row.input for row in rows] == list(map(str, paths))


def test_every_odd_file_fails_only_its_own_row(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (good,) = write_images(folder, 1)
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.npy")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "empty.png").touch()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 4, 4), }"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (folder / "code.npy").write_bytes(b"\x93NUMPY\x01\x00\x1f\x00__import__('os').system('true')")
    with zipfile.ZipFile(folder / "odd.npz", "w") as archive:
        archive.writestr("input.npy", b"nothing of the kind")
    summary = run(Fake(), folder, tmp_path / "out")
    assert (summary.total, summary.ok, summary.failed) == (9, 1, 8)
    rows = {Path(row.input).name: row for row in read_ledger(tmp_path / "out" / "ledger-00000.csv")}
    assert rows.pop(good.name).status == "ok"
    expected = {
        "pipe.png": "is a named pipe, expected an image file",
        "pipe.npy": "is a named pipe, expected a file",
        "device.jpg": "is a device, expected an image file",
        "dangling.png": "no such file",
        "empty.png": "is empty (0 bytes)",
        "huge.npy": "its header declares 64000000000000 bytes of data",
        "code.npy": "is not a readable .npy file",
        "odd.npz": "is not a readable .npz file",
    }
    assert set(rows) == set(expected)
    for name, text in expected.items():
        assert text in rows[name].error, name


def test_arrays_and_labels_and_several_outputs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)

    def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
        scores = Fake._mean(inputs)["scores"]
        return {"map": np.zeros((len(scores), 8, 9), np.float32), "scores": scores}

    outputs = (*SCORES, TensorSpec("map", (None, 8, 9), FLOAT32))
    fake = Fake(function, outputs=outputs, metadata=ModelMetadata(labels=("a", "b", "c")))
    with pytest.raises(UsageError, match="--format npz"):
        run(fake, tmp_path / "x.npy", tmp_path / "out")
    assert fake.batches == [] and not (tmp_path / "out").exists()
    run(fake, tmp_path / "x.npy", tmp_path / "out", format="npz")
    with np.load(tmp_path / "out" / "predictions-00000.npz") as result:
        assert np.allclose(result["scores"][:, 0], pixels.mean(axis=(1, 2)) / 255)
        assert result["map"].shape == (5, 8, 9)
        assert set(result["label"]) <= {"a", "b"}
        assert result["input"][4] == f"{tmp_path}/x.npy[4]"


def test_several_inputs(tmp_path: Path) -> None:
    specs = (*PIXELS, TensorSpec("shift", (None, 2), FLOAT32))

    def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"scores": np.concatenate([inputs["shift"], inputs["input"][:, 0, 0, :1]], axis=1)}

    values, shift = np.float32(np.random.rand(7, 1, 4, 4)), np.float32(np.random.rand(7, 2))
    np.savez(tmp_path / "x.npz", input=values, shift=shift)
    summary = run(Fake(function, inputs=specs), tmp_path / "x.npz", tmp_path / "out", batch_size=2)
    assert summary.ok == 7
    rows = table(tmp_path / "out", "predictions")
    assert np.allclose([[float(row[f"scores_{i}"]) for i in range(2)] for row in rows], shift)
    write_images(tmp_path / "in", 1)
    with pytest.raises(InputError, match=r"input is not a single image .* input, shift"):
        run(Fake(function, inputs=specs), tmp_path / "in", tmp_path / "out2")


def test_a_size_that_the_network_cannot_take_fails_only_its_own_row(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 3)
    Image.new("L", (2, 2)).save(paths[1])

    def at_least_four(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["input"].shape[3] < 4:
            raise ModelError("the model failed: the kernel is larger than the image")
        return Fake._mean(inputs)

    fake = Fake(at_least_four, [TensorSpec("input", (None, 1, None, None), FLOAT32)])
    summary = run(fake, paths, tmp_path / "out")
    assert (summary.ok, summary.failed) == (2, 1)
    assert summary.failures == ((str(paths[1]), "the model failed: the kernel is larger than the image"),)
    with pytest.raises(ModelError, match="kernel is larger"):  # with one fixed size, it fails for all inputs
        run(Fake(at_least_four, [TensorSpec("input", (None, 1, 2, 2), FLOAT32)]), [paths[1]], tmp_path / "fixed")


def test_sizes_may_differ_if_the_model_has_dynamic_sizes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.new("L", (3 + i % 2, 4), 10 * i).save(tmp_path / "in" / f"{i}.png")
    fake = Fake(inputs=[TensorSpec("input", (None, 1, None, None), FLOAT32)])
    assert run(fake, tmp_path / "in", tmp_path / "out").ok == 6
    assert fake.batches == [3, 3]
    means = [float(row["scores_0"]) * 255 for row in table(tmp_path / "out", "predictions")]
    assert np.allclose(means, [0, 10, 20, 30, 40, 50])


def test_the_files_preprocessing_and_the_users(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (9, 9), 100).save(tmp_path / "in" / "x.png")
    own = ModelMetadata(preprocess=Preprocess(size=(4, 4), scale=1.0, mean=(50.0,)))
    run(Fake(metadata=own), tmp_path / "in", tmp_path / "a")
    assert float(table(tmp_path / "a", "predictions")[0]["scores_0"]) == 50
    summary = run(Fake(metadata=own), tmp_path / "in", tmp_path / "b", preprocess="mean=0,std=2")
    assert float(table(tmp_path / "b", "predictions")[0]["scores_0"]) == 50
    assert summary.preprocess == Preprocess(size=(4, 4), scale=1.0, std=(2.0,))


@pytest.mark.parametrize("argument", ["batch_size", "workers", "shard_rows"])
def test_numbers_start_at_one(tmp_path: Path, argument: str) -> None:
    with pytest.raises(UsageError, match=f"{argument} is at least 1, not 0"):
        run(Fake(), tmp_path, tmp_path / "out", **{argument: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_model_that_fails_ends_the_run(tmp_path: Path, device: str) -> None:
    write_images(tmp_path / "in", 30)

    def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise ModelError("out of memory")

    with pytest.raises(ModelError, match="out of memory"):
        run(Fake(function, device=device), tmp_path / "in", tmp_path / "out", batch_size=1, workers=2)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("stn-")]


def test_an_output_without_a_batch_axis(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    fake = Fake(lambda inputs: {"scores": np.zeros((1, 3), np.float32)})
    with pytest.raises(ModelError, match=r"'scores' has shape \[1, 3\] for 3 samples"):
        run(fake, tmp_path / "in", tmp_path / "out")


def test_few_batches_are_in_flight_at_once(tmp_path: Path) -> None:
    """Bounded queues: while the first batch hangs, only a few of the others may be read."""
    write_images(tmp_path / "in", 200)
    release = threading.Event()
    started: list[int] = []

    def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
        first = round(float(inputs["input"][0, 0, 0, 0]) * 255)
        started.append(first)
        if first == 0:
            release.wait(timeout=30)
        return Fake._mean(inputs)

    thread = threading.Thread(
        target=run, args=(Fake(function), tmp_path / "in", tmp_path / "out"), kwargs={"batch_size": 1, "workers": 2}
    )
    thread.start()
    deadline = time.monotonic() + 30
    while len(started) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    ahead = len(started)
    release.set()
    thread.join(timeout=60)
    assert ahead == 8, "four batches per worker"
    assert len(started) == 200


def write_array(path: Path, count: int, *axes: int) -> Any:
    values = np.random.default_rng(0).integers(0, 256, (count, *axes), dtype=np.uint8)
    np.save(path, values)
    return values


def test_outputs_that_are_part_of_the_input_are_kept(tmp_path: Path) -> None:
    """The memory of a batch is used again for another one."""
    values = write_array(tmp_path / "x.npy", 150, 300, 200)
    inputs = (TensorSpec("input", (None, 1, 300, 200), FLOAT32),)
    fake = Fake(lambda given: {"scores": given["input"][:, 0, 7, :3]}, inputs)
    run(fake, tmp_path / "x.npy", tmp_path / "out", batch_size=8, preprocess="scale=1", format="npz")
    with np.load(tmp_path / "out" / "predictions-00000.npz") as found:
        assert np.array_equal(found["scores"], values[:, 7, :3])


class FakePixels(Fake):
    """Takes pixels, and returns the first three of each image."""

    takes_pixels = True

    def run_pixels(self, pixels: Array, preprocess: Preprocess) -> dict[str, Array]:
        assert pixels.dtype == np.uint8
        self.batches.append(len(pixels))
        return {"scores": pixels.reshape(len(pixels), -1)[:, :3] * np.float32(preprocess.scale)}


def test_a_backend_that_takes_pixels(tmp_path: Path) -> None:
    values = write_array(tmp_path / "x.npy", 10, 4, 4)
    np.save(tmp_path / "y.npy", values[:, None].astype(np.float32))
    fake = FakePixels()
    assert isinstance(fake, PixelBackend) and not isinstance(Fake(), PixelBackend)
    summary = run(fake, [tmp_path / "x.npy", tmp_path / "y.npy"], tmp_path / "out", batch_size=4, preprocess="scale=2")
    assert (summary.ok, fake.batches) == (20, [4, 4, 2, 2, 4, 4])
    rows = table(tmp_path / "out", "predictions")
    assert [float(row["scores_1"]) for row in rows[:10]] == (values[:, 0, 1] * 2.0).tolist()
    assert [float(row["scores_0"]) for row in rows[10:]] == values.astype(np.float32).mean(axis=(1, 2)).tolist()


def test_shards_of_large_outputs_have_fewer_rows(tmp_path: Path) -> None:
    def rows_of(*axes: int | None) -> int:
        from stn_infer.pipeline.plan import shard_rows

        return shard_rows(Fake(outputs=[TensorSpec("x", (None, *axes), FLOAT32)]))

    assert rows_of(10) == 4096
    assert rows_of(3, 512, 512) == 85
    assert rows_of(3, None, None) == 341
    assert rows_of(3, 9000, 9000) == 1


class Mean(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)


def test_a_module_of_the_program(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 3)
    module = Mean().train()
    summary = run(module, paths, tmp_path / "out", backend="eager", input_shapes=[(1, 4, 4)], preprocess="0..1")
    assert summary.ok == 3 and module.training
    assert str(summary).splitlines()[0] == summary.headline and summary.headline.startswith("3 inputs: 3 predicted")
    assert [row["prediction"] for row in table(tmp_path / "out", "predictions")] == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (3, "in", "expected a model's file or source, or a module, got int"),
        (Fake(), 3, "inputs are paths, patterns or lists of these, got int; Predictor takes pictures"),
        (Fake(), [np.zeros((4, 4))], "got ndarray; Predictor takes pictures, arrays and tensors"),
    ],
)
def test_what_is_no_model_and_no_input(tmp_path: Path, model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(model, inputs, tmp_path / "out")
