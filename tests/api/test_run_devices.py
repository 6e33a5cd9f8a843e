"""`run` on devices: batches that overlap, last batches that are padded, and several devices for one job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from stn_infer.api.open import open_backend
from stn_infer.api.run import run
from stn_infer.arrays import Array
from stn_infer.backends.base import BatchingBackend, PixelBackend, TensorSpec
from stn_infer.backends.eager import EagerBackend
from stn_infer.backends.several import SeveralBackends
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import LoadedModel
from tests.support.shared import portable
from tests.support.streams_standin import Late

FLOAT32 = np.dtype(np.float32)
RULE = Preprocess("rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Batches:
    """Gives the sum of each image; every batch size has a cost."""

    name, full_batches, in_flight = "batches", True, 2

    def __init__(self, *size: int | None, device: str = "cuda:0", pixels: bool = True, fails: bool = False) -> None:
        self.device, self.takes_pixels, self._fails = device, pixels, fails
        self.inputs = (TensorSpec("input", (None, 3, *(size or (4, 5))), FLOAT32),)
        self.outputs = (TensorSpec("sum", (None, 1), FLOAT32),)
        self.metadata = ModelMetadata()
        self.sizes: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._fails:
            raise ModelError(f"{self.device} is broken")
        time.sleep(0.001)
        self.sizes.append(len(inputs["input"]))
        return {"sum": inputs["input"].sum((1, 2, 3), keepdims=True)[:, 0, 0]}

    def run_pixels(self, pixels: Array, preprocess: Preprocess) -> dict[str, Array]:
        return self.run({"input": pixels * np.float32(preprocess.scale)})

    def describe(self) -> dict[str, str]:
        return {"device": self.device, "runtime": "numpy"}

    def close(self) -> None:
        self.device = "closed"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (45, 4, 5, 3), dtype=np.uint8))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("run.json", "run.lock")}


def sums(folder: Path) -> list[float]:
    found: list[float] = []
    for path in sorted(folder.glob("predictions-*.csv")):
        found += [float(line.rpartition(",")[2]) for line in path.read_text().splitlines()[1:]]
    return found


def expected(images: Path) -> list[float]:
    return (np.load(images) / 255.0).sum((1, 2, 3)).tolist()


@pytest.mark.parametrize("pixels", [True, False])
def test_the_last_batch_is_padded(pixels: bool, images: Path, tmp_path: Path) -> None:
    backend = Batches(pixels=pixels)
    assert isinstance(backend, BatchingBackend) and isinstance(backend, PixelBackend)
    summary = run(backend, images, tmp_path / "out", batch_size=8, shard_rows=20, preprocess="scale=1/255")
    assert summary.ok == 45 and backend.sizes == [8] * 7  # 8, 8, 4; 8, 8, 4; 5
    np.testing.assert_allclose(sums(tmp_path / "out"), expected(images), rtol=1e-5)


def test_batches_of_images_of_any_size_are_not_padded(images: Path, tmp_path: Path) -> None:
    backend = Batches(None, None)
    run(backend, images, tmp_path / "out", batch_size=32, preprocess="scale=1/255")
    assert sorted(backend.sizes) == [13, 32]
    np.testing.assert_allclose(sums(tmp_path / "out"), expected(images), rtol=1e-5)


class Net(nn.Module):
    """A few numbers that tell an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0], x[:, 2, 3, 4]], 1)


def test_a_job_through_slots_equals_one_without(images: Path, tmp_path: Path) -> None:
    """Each step of a batch runs late, and batches overlap; none gets another's values."""
    loaded = LoadedModel("net", Net().eval(), ((3, 4, 5),), ModelMetadata(preprocess=RULE), "factory", None)
    streams = Late()
    for name, backend in (("plain", EagerBackend(loaded)), ("slots", EagerBackend(loaded, streams=streams))):
        summary = run(backend, images, tmp_path / name, batch_size=4, workers=4, format="npz")
        assert summary.ok == 45
    assert streams.errors == []
    found = [dict(np.load(tmp_path / name / "predictions-00000.npz")) for name in ("plain", "slots")]
    np.testing.assert_array_equal(found[0]["input"], found[1]["input"])
    np.testing.assert_allclose(found[0]["output"], found[1]["output"], rtol=1e-5, atol=1e-6)


def test_run_with_onnxruntime_on_a_gpu_uses_cuda_graphs(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With streams and kernels of this machine in place of a GPU's; whoever opens a backend gets none unasked."""
    from stn_infer.backends import ort_graphs

    streams, opened, graphed = Late(), list[ort_graphs.GraphedOrtBackend](), ort_graphs.GraphedOrtBackend

    def here(model: Any, device: str, threads: int | None) -> Any:
        opened.append(graphed(model, "cpu", threads, streams=streams))
        opened[-1].device = device
        return opened[-1]

    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[N, 3, 4, 5] input) => (float[N, 3] sum)'
        " { sum = ReduceMean <axes = [2, 3], keepdims = 0> (input) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    how: dict[str, Any] = {"batch_size": 4, "workers": 4, "format": "npz", "preprocess": "imagenet"}
    run(tmp_path / "m.onnx", images, tmp_path / "plain", **how)
    monkeypatch.setattr(ort_graphs, "GraphedOrtBackend", here)
    summary = run(tmp_path / "m.onnx", images, tmp_path / "graphs", device="cuda:0", **how)
    assert summary.ok == 45 and streams.errors == [] and len(opened) == 1
    found = [np.load(tmp_path / name / "predictions-00000.npz")["sum"] for name in ("plain", "graphs")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(MissingDependencyError):
        open_backend(tmp_path / "m.onnx", device="cuda:0")


def several(*devices: str, **change: Any) -> tuple[SeveralBackends, list[Batches]]:
    backends = [Batches(device=device, **change) for device in devices]
    return SeveralBackends(backends), backends


def test_several_devices_write_the_files_of_one(images: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 4, "shard_rows": 20, "preprocess": "scale=1/255"}
    run(Batches(), images, tmp_path / "one", **how)
    both, backends = several("cuda:0", "cuda:1")
    assert isinstance(both, BatchingBackend) and isinstance(both, PixelBackend)
    assert (both.device, both.in_flight, both.full_batches, both.takes_pixels) == ("cuda:0,cuda:1", 4, True, True)
    summary = run(both, images, tmp_path / "both", **how)
    assert summary.ok == 45 and files(tmp_path / "both") == files(tmp_path / "one")
    assert sum(len(backend.sizes) for backend in backends) == 12 and all(backend.sizes for backend in backends)
    assert both.describe() == {"device": "cuda:0,cuda:1", "runtime": "numpy"}
    both.close()
    assert [backend.device for backend in backends] == ["closed", "closed"]


def test_a_job_of_several_devices_is_resumed_with_one(images: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 4, "shard_rows": 20, "preprocess": "scale=1/255"}
    run(Batches(), images, tmp_path / "one", **how)

    def stop(done: int, total: int) -> None:
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(several("cuda:0", "cuda:1")[0], images, tmp_path / "out", progress=stop, **how)
    summary = run(Batches(), images, tmp_path / "out", resume=True, **how)
    assert summary.resumed >= 20 and files(tmp_path / "out") == files(tmp_path / "one")


def test_a_device_that_fails_stops_the_job(images: Path, tmp_path: Path) -> None:
    both = SeveralBackends([Batches(device="cuda:0"), Batches(device="cuda:1", fails=True)])
    with pytest.raises(ModelError, match="cuda:1 is broken"):
        run(both, images, tmp_path / "out", batch_size=4, preprocess="scale=1/255")


def test_each_call_goes_where_the_fewest_are() -> None:
    both, (first, second) = several("cuda:0", "cuda:1")
    values = np.zeros((2, 3, 4, 5), np.float32)
    inner = first.run

    def nested(inputs: Mapping[str, Array]) -> dict[str, Array]:
        both.run({"input": values[:1]})
        return inner(inputs)

    first.run = nested  # type: ignore[method-assign]
    both.run({"input": values})
    assert (first.sizes, second.sizes) == ([2], [1])


def test_backends_of_different_models() -> None:
    with pytest.raises(UsageError, match="one model in one runtime"):
        SeveralBackends([Batches(), Batches(7, 7)])


def test_several_sessions_of_onnxruntime(images: Path, tmp_path: Path) -> None:
    """What `--devices` does on GPUs, on the CPU."""
    model, digits = tmp_path / "model.onnx", tmp_path / "digits.npy"
    onnx.save(portable("tutorial-stn-r"), model)
    np.save(digits, np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8))
    for name, devices in (("one", None), ("two", ["cpu", "cpu"])):
        run(model, digits, tmp_path / name, batch_size=4, devices=devices)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize(
    "device, devices, message",
    [
        ("cuda:0", ["cuda:1"], "one device or several, given device cuda:0 and devices cuda:1"),
        ("cpu", ["cuda:1", "cuda:1"], "different GPUs in devices, given cuda:1 twice"),
        ("cpu", ["cuda", "cuda:0"], "different GPUs in devices, given cuda:0 twice"),
        ("cpu", [], "different GPUs in devices, given none"),
        ("cpu", ["gpu"], "a device is 'cpu', 'cuda' or 'cuda:N', not 'gpu'"),
    ],
)
def test_devices_that_cannot_be_used(
    device: str, devices: list[str], message: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run("tutorial-stn-r", images, tmp_path / "out", device=device, devices=devices)


def test_pictures_are_saved_with_one_device(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--save-images takes one device, given cpu, cpu"):
        run("tutorial-stn-r", images, tmp_path / "out", devices=["cpu", "cpu"], save_images=tmp_path / "pictures")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_devices_that_are_not_there(images: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="device cuda:0 was requested"):
        run("tutorial-stn-r", images, tmp_path / "out", backend="eager", devices=["cuda:0", "cuda:1"])
    assert not (tmp_path / "out").exists()
