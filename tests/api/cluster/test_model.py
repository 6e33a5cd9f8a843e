"""``run(ray=...)``: what is sent to workers, and what the driver makes of their answers. Ray itself is a stand-in."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stn_infer.api.cluster.model import SentModel
from stn_infer.api.fingerprint import fingerprint
from stn_infer.api.run import run
from stn_infer.api.source import OnnxModel
from stn_infer.backends.ort import OrtBackend
from stn_infer.cluster import spread, worker
from stn_infer.errors import ClusterError, ModelError, OutputError, UsageError
from stn_infer.pipeline.environment import Environment
from tests.support import ray_standin
from tests.support.ray_standin import StandIn
from tests.support.tensorrt_parts import module_or_skip

ROWS = 8
OPTIONS: dict[str, Any] = {"preprocess": "0..1", "shard_rows": ROWS, "batch_size": 3}
FREE = {"preprocess": "0..1"}


def write_model(path: Path, *, external: bool = False) -> None:
    """y = flatten(x) * w"""
    values = numpy_helper.from_array(np.arange(20, dtype=np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Mul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 20])
    graph = helper.make_graph(nodes, "graph", [x], [y], [values])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights", size_threshold=0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and 30 images, one of them damaged, in which the test runs."""
    (tmp_path / "images").mkdir()
    for i in range(30):
        pixels = np.full((4, 5), i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
    (tmp_path / "images" / "11.png").write_bytes(b"damaged")
    write_model(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return ray_standin.install(monkeypatch)


def files(folder: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def rows(folder: str) -> list[dict[str, str]]:
    found = []
    for path in sorted(Path(folder).glob("ledger-*.csv")):
        with path.open(newline="") as file:
            found += list(csv.DictReader(file))
    return found


def test_a_cluster_writes_the_files_of_one_machine(place: Path, ray: StandIn) -> None:
    calls = []
    alone = run("model.onnx", "images", "alone", **OPTIONS)
    spread = run("model.onnx", "images", "spread", ray="auto", progress=lambda *now: calls.append(now), **OPTIONS)
    assert files("alone") == files("spread") and len(files("alone")) == 9
    assert dataclasses.replace(spread, output=alone.output, seconds=alone.seconds) == alone
    assert (alone.ok, alone.failed) == (29, 1)
    assert calls == [(0, 30), (8, 30), (16, 30), (24, 30), (30, 30)]
    assert run("model.onnx", "images", "spread", resume=True, **OPTIONS).resumed == 30


def test_each_machine_resumes_what_the_other_began(place: Path, ray: StandIn) -> None:
    """Shards are smaller on a cluster; a resumed job keeps their size."""
    np.save("many.npy", np.zeros((8200, 1, 4, 5), np.float32))
    run("model.onnx", "many.npy", "out", ray="local", **FREE)
    assert json.loads(Path("out/run.json").read_text())["shard_rows"] == 192
    before = files("out")
    for name in ("ledger-00003.csv", "predictions-00042.csv"):
        os.unlink(f"out/{name}")
    assert run("model.onnx", "many.npy", "out", resume=True, **FREE).resumed == 8200 - 192 - 8200 % 192
    assert files("out") == before
    assert run("model.onnx", "many.npy", "alone", **FREE).ok == 8200
    assert json.loads(Path("alone/run.json").read_text())["shard_rows"] == 4096
    os.unlink("alone/ledger-00001.csv")
    assert run("model.onnx", "many.npy", "alone", resume=True, ray="auto", **FREE).resumed == 8200 - 4096


def test_a_shard_whose_process_is_lost_has_three_tries(place: Path, ray: StandIn) -> None:
    ray.lost = lambda shard, attempt: shard == 1 or (shard == 2 and attempt < 3)
    summary = run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert ray.tries == {0: 1, 1: 3, 2: 3, 3: 1}
    assert (summary.ok, summary.failed) == (22, 8)
    found = rows("out")
    assert [row["input"] for row in found] == [f"images/{i:02}.png" for i in range(30)]
    assert {row["status"] for row in found[8:16]} == {"failed"}
    assert found[8]["error"].startswith("the process that predicted its shard ended 3 times without an answer")
    assert Path("out/predictions-00001.csv").read_text().count("\n") == 1, "a header"


def test_an_answer_that_is_lost_after_the_shard_was_written(place: Path, ray: StandIn) -> None:
    ray.lost, ray.late = lambda shard, attempt: shard == 2, True
    summary = run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert (summary.ok, summary.failed) == (29, 1) and ray.tries[2] == 3


def test_workers_that_are_lost_are_replaced_and_all_are_ended(place: Path, ray: StandIn) -> None:
    ray.dead = lambda actor: actor < 2 or actor == 4  # before the model is open
    ray.lost = lambda shard, attempt: shard == 1 and attempt == 1
    summary = run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert (summary.ok, summary.failed) == (29, 1)
    assert ray.tries == {0: 1, 1: 2, 2: 1, 3: 1}
    assert ray.actors == 6 and ray.ended == set(range(6))


def test_workers_that_always_end_are_an_error(place: Path, ray: StandIn) -> None:
    ray.dead = lambda actor: True
    with pytest.raises(ClusterError, match="the cluster failed: the actor died"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert ray.ended == set(range(ray.actors)) and ray.actors < 8
    assert not Path("out").exists()


@pytest.mark.parametrize("taken", [0, 1])
def test_a_cluster_that_cannot_keep_what_it_is_given(
    place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """The model, or the job."""
    given: list[Any] = []

    def put(value: Any) -> Any:
        if len(given) == taken:
            raise ray_standin.RayError("Failed to put object\nin object store")
        given.append(value)
        return value

    monkeypatch.setattr(sys.modules["ray"], "put", put)
    with pytest.raises(ClusterError, match=r"^the cluster failed: Failed to put object in object store$"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert len(given) == taken and ray.ended == set(range(ray.actors))


def test_a_node_is_lost_whose_other_workers_have_nothing_to_do(place: Path, ray: StandIn) -> None:
    """They cost its shard no tries."""

    def lost(shard: int, attempt: int) -> bool:
        if shard == 3 and attempt == 1:
            ray.gone = {0, 1, 2}
            return True
        return False

    ray.resources, ray.lost = [{"CPU": 4.0}], lost
    summary = run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert (summary.ok, summary.failed) == (29, 1) and ray.tries[3] == 2


def test_as_many_workers_as_shards(place: Path, ray: StandIn) -> None:
    """A large cluster starts some before it knows how many shards there are."""
    ray.resources = [{"CPU": 40.0}]
    run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert ray.actors == 16 and ray.ended == set(range(16))
    run("model.onnx", "images", "many", ray="auto", preprocess="0..1", shard_rows=1)
    assert ray.actors == 16 + 30


def test_shards_are_smaller_for_more_workers(place: Path, ray: StandIn) -> None:
    np.save("many.npy", np.zeros((8200, 1, 4, 5), np.float32))
    ray.resources = [{"CPU": 8.0}]
    run("model.onnx", "many.npy", "out", ray="auto", **FREE)
    assert json.loads(Path("out/run.json").read_text())["shard_rows"] == 64


@pytest.mark.parametrize("error", [ValueError("out of luck"), ModelError("out of luck")])
def test_an_exception_ends_a_shard_and_not_the_job(
    place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    predict = OrtBackend.run

    def fails(self: OrtBackend, inputs: dict[str, Any]) -> Any:
        if (inputs["x"] == np.float32(20 / 255)).all(axis=(1, 2, 3)).any():
            raise error
        return predict(self, inputs)

    monkeypatch.setattr(OrtBackend, "run", fails)
    summary = run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert (summary.ok, summary.failed) == (21, 9) and ray.tries[2] == 3
    assert rows("out")[16]["error"].startswith("its shard failed 3 times: ")
    assert rows("out")[16]["error"].endswith("out of luck")


def test_an_error_of_every_shard_is_one_of_the_job(place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: OrtBackend, inputs: dict[str, Any]) -> Any:
        raise ModelError("no memory for the model")

    monkeypatch.setattr(OrtBackend, "run", fails)
    with pytest.raises(ModelError, match="no memory for the model"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert list(files("out")) == ["run.json"], "the job can be resumed"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("runtime", "onnxruntime 1.0", r"the runtime is onnxruntime 1\.0 on \S+, and onnxruntime"),
        ("libraries", "NumPy 1", r"libraries is NumPy 1 on"),
        ("plugin", "", r"the plugin library is missing on \S+, and 1\.0 abc on"),
        ("cpu", "x86_64 avx", r"the CPU is x86_64 avx on"),
    ],
)
def test_a_worker_that_differs_is_refused(
    place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch, field: str, value: str, message: str
) -> None:
    real = Environment.of
    first = dataclasses.replace(real(OrtBackend(Path("model.onnx"), "cpu", 1)), plugin="1.0 abc")
    found = iter([first, dataclasses.replace(first, **{field: value})])
    monkeypatch.setattr(worker.Environment, "of", lambda backend: next(found))
    with pytest.raises(ClusterError, match=rf"a worker would give other results: {message}"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)


def test_a_worker_with_another_decoder_is_refused(place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    options = {**OPTIONS, "preprocess": "0..1,jpeg=nvimgcodec"}
    assert run("model.onnx", "images", "out", ray="auto", **options).ok == 29
    found = iter(["nvImageCodec 1", "nvImageCodec 2"])
    monkeypatch.setattr("stn_infer.data.codecs.nvimgcodec.identity", lambda device: next(found))
    with pytest.raises(
        ClusterError, match=r"libraries is .*, nvImageCodec 2 on \S+, and .*, nvImageCodec 1 in the job"
    ):
        run("model.onnx", "images", "other", ray="auto", **options)


def test_a_worker_of_another_version_is_refused(place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "__version__", "9.9")
    with pytest.raises(ClusterError, match=r"stn-infer is \S+ on the worker \S+, and 9\.9 here; install the same"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert not Path("out").exists()


@pytest.mark.parametrize("missing", ["out", "images", "."])
def test_a_folder_that_is_missing_on_a_worker(
    place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    what = "output" if missing == "out" else "inputs"
    if missing == "out":
        monkeypatch.setattr(worker.Folder, "has_job", lambda folder: False)
    elif missing == ".":
        monkeypatch.setattr(worker.os, "chdir", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    else:
        calls = iter([True] * 4 + [False])  # of the driver, then of the worker
        monkeypatch.setattr(worker, "_is_folder", lambda path: next(calls))
    with pytest.raises(ClusterError, match=rf"the {what} must be on a file system of all nodes, or a URL: \S+ of this"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)


def test_a_folder_that_nobody_has_fails_only_its_inputs(place: Path, ray: StandIn) -> None:
    Path("list.txt").write_text("images/03.png\nnowhere/04.png\n")
    summary = run("model.onnx", "@list.txt", "out", ray="auto", **OPTIONS)
    assert (summary.ok, summary.failed) == (1, 1)
    assert rows("out")[1]["error"] == "no such file: nowhere/04.png"


def test_an_output_that_cannot_be_written_ends_the_job(
    place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Any, shard: int, lines: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(worker.Folder, "write_ledger", full)
    with pytest.raises(OutputError, match="the disk is full"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert ray.tries == {0: 1}


def test_a_model_that_does_not_open_on_a_worker(place: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: SentModel) -> Any:
        raise ModelError("no such provider")

    monkeypatch.setattr(SentModel, "__call__", fails)
    with pytest.raises(ModelError, match="no such provider"):
        run("model.onnx", "images", "out", ray="auto", **OPTIONS)
    assert not Path("out").exists()


def test_external_data_stay_in_their_file(place: Path, ray: StandIn) -> None:
    write_model(place / "large.onnx", external=True)
    run("large.onnx", "images", "alone", **OPTIONS)
    run("large.onnx", "images", "spread", ray="auto", **OPTIONS)
    assert files("alone") == files("spread")
    sha256 = fingerprint(OnnxModel(place / "large.onnx"))
    other = SentModel(place / "large.onnx", False, "0" * 64, "ort", "cpu", 1, None, False)
    with pytest.raises(ModelError, match="is another file on a worker"):
        other()
    dataclasses.replace(other, sha256=sha256)().close()
    with pytest.raises(ModelError, match="must be on a file system of all nodes"):
        dataclasses.replace(other, content=place / "missing.onnx")()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray": "model.onnx"}, "expected the cluster's address as HOST:PORT or auto"),
        ({"devices": ["cuda:0", "cuda:1"]}, "--devices are those of this machine"),
        ({"device": "cuda:3"}, "Ray chooses the GPU; give --device cuda, not cuda:3"),
        ({"backend": "eager"}, "--ray takes no PyTorch backend; use --backend ort"),
        ({"save_images": "pictures"}, "--save-images does not work on a cluster"),
    ],
)
def test_what_does_not_work_on_a_cluster(place: Path, ray: StandIn, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run("model.onnx", "images", "out", **{"ray": "auto", **OPTIONS, **options})
    assert not Path("out").exists()


def test_no_gpu_in_the_cluster(place: Path, ray: StandIn) -> None:
    with pytest.raises(ClusterError, match="no node of the cluster has 1 CPU and 1 GPU"):
        run("model.onnx", "images", "out", ray="auto", device="cuda", **OPTIONS)


def test_an_open_backend_stays_here(place: Path, ray: StandIn) -> None:
    backend = OrtBackend(place / "model.onnx", "cpu", 1)
    with pytest.raises(UsageError, match="an open backend cannot be sent to a cluster"):
        run(backend, "images", "out", ray="auto", **OPTIONS)
