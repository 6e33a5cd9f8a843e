"""``stn-infer run`` on real files, with a small ONNX model: [N, 1, 8, 8] -> [N, 3] scores."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stn_infer.activation import Scores
from stn_infer.cli.main import main
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from tests.support.helpers import nothing_larger_than

COMMAND = [sys.executable, "-m", "stn_infer.cli.main"]
ROWS = 6000  # in batches of one: takes seconds, so that it can be interrupted


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = ModelMetadata(Preprocess(), ("ant", "bee", "cat"), scores=Scores("softmax"))
    helper.set_model_props(proto, metadata.to_props())
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def invoke(*arguments: object, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)], input=input)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_one_line(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


def test_predictions_are_the_models(model: Path, images: Path, tmp_path: Path) -> None:
    result = invoke(model, images, "-o", tmp_path / "out", "--batch-size", 8)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("20 inputs: 20 predicted, 0 failed")
    assert result.stderr == "", "no progress bar in a pipe"
    weights = numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    rows = table(tmp_path / "out" / "predictions-00000.csv")
    assert len(rows) == 20
    for row in rows:
        scores = (np.asarray(Image.open(row["input"])).reshape(64) / 255.0) @ weights
        assert np.allclose([float(row[f"scores_{i}"]) for i in range(3)], scores, atol=1e-5)
        assert int(row["prediction"]) == scores.argmax()
        assert row["label"] == ("ant", "bee", "cat")[scores.argmax()]


def test_a_list_on_stdin_in_every_format(model: Path, images: Path, tmp_path: Path) -> None:
    names = "".join(f"{path}\n" for path in sorted(images.iterdir())).encode()
    for format in ("csv", "jsonl", "npz"):
        result = invoke(model, "-", "-o", tmp_path / format, "--format", format, input=names)
        assert result.exit_code == 0, result.output
        assert (tmp_path / format / f"predictions-00000.{format}").exists()


def test_options_override_the_files_metadata(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("x\ny\nz\n")
    result = invoke(
        model, images, "-o", tmp_path / "out", "--labels", tmp_path / "labels.txt", "--preprocess", "scale=0"
    )
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "out" / "predictions-00000.csv")
    assert {row["label"] for row in rows} == {"x"}
    assert {float(row["scores_2"]) for row in rows} == {0.0}


@pytest.mark.parametrize(
    "options, message",
    [
        (("--devices", "0,x"), "expected the numbers of GPUs, such as 0,1, not '0,x'"),
        (("--devices", ""), "expected the numbers of GPUs, such as 0,1, not ''"),
        (("--devices", "1,1"), "expected different GPUs in devices, given cuda:1 twice"),
        (("--devices", "0,1", "--device", "cuda:2"), "expected one device or several, given device cuda:2"),
    ],
)
def test_devices_that_are_wrong(
    options: tuple[str, ...], message: str, model: Path, images: Path, tmp_path: Path
) -> None:
    result = invoke(model, images, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()) and not (tmp_path / "out").exists()


def test_some_inputs_failed(model: Path, images: Path, tmp_path: Path) -> None:
    (images / "03.png").write_bytes(b"")
    (images / "04.png").write_text("this is not an image")
    Image.new("L", (9, 8)).save(images / "05.png")
    for i in range(6, 10):
        (images / f"{i:02d}.png").write_bytes((images / f"{i:02d}.png").read_bytes()[:40])
    result = invoke(model, images, "-o", tmp_path / "out")
    assert result.exit_code == 4
    assert "13 predicted, 7 failed" in result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 6 and all(line.startswith("failed: ") for line in lines)
    assert "03.png is empty (0 bytes)" in lines[0] and lines[0].count("03.png") == 1
    assert lines[-1] == "failed: and 2 more, see the status files"
    ledger = table(tmp_path / "out" / "ledger-00000.csv")
    assert [row["status"] for row in ledger] == ["ok"] * 3 + ["failed"] * 7 + ["ok"] * 10
    again = invoke(model, images, "-o", tmp_path / "out", "--resume")
    assert again.exit_code == 4, "a resumed job that has nothing to do still has failures"
    assert "20 inputs (20 of them before)" in again.stdout


def test_wrong_input_is_one_line(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.onnx").write_bytes(b"not an onnx file")
    out = tmp_path / "out"
    assert_one_line(invoke(tmp_path / "none.onnx", images, "-o", out), 1, "none.onnx")
    assert_one_line(invoke(tmp_path / "broken.onnx", images, "-o", out), 1, "broken.onnx")
    assert_one_line(invoke(model, tmp_path / "none.png", "-o", out), 1, "no such file or folder", "none.png")
    assert_one_line(invoke(model, tmp_path / "empty", "-o", out), 1, "no inputs in the folder")
    assert_one_line(invoke(model, f"{images}/*.gif", "-o", out), 1, "no file matches")
    assert_one_line(invoke(model, f"@{tmp_path}/none.txt", "-o", out), 1, "cannot read the list")
    assert_one_line(invoke(model, "-", "-o", out, input=b""), 1, "no inputs in -")
    assert_one_line(invoke(model, images, "-o", out, "--device", "gpu"), 2, "--device")
    assert_one_line(invoke(model, images, "-o", out, "--format", "xml"), 2, "--format")
    assert_one_line(invoke(model, images, "-o", out, "--preprocess", "rgb"), 2, "takes 1 channel,")
    assert_one_line(invoke(model, images, "-o", out, "--preprocess", "size=9x9"), 2, "takes images of 8x8")
    assert_one_line(invoke(model, images, "-o", out, "--backend", "eager"), 2, "eager")
    assert_one_line(invoke(model, images), 2, "-o")
    assert_one_line(invoke(model, "-o", out), 2, "INPUT")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    labels = ("--labels", tmp_path / "labels.txt")
    assert_one_line(invoke(model, images, "-o", out, *labels), 2, "2 labels given for the 3 classes")
    assert not out.exists(), "nothing was written"


def test_the_output_folder_must_be_empty_and_writable(model: Path, images: Path, tmp_path: Path) -> None:
    assert_one_line(invoke(model, images, "-o", images), 1, "is not empty", "--resume")
    assert_one_line(invoke(model, images, "-o", images, "--resume"), 1, "no job to resume")
    (tmp_path / "file").touch()
    assert_one_line(invoke(model, images, "-o", tmp_path / "file" / "out"), 1, "cannot create the output folder")
    assert_one_line(invoke(model, images, "-o", "/proc/stn-infer-out"), 1, "cannot create the output folder /proc/")


def test_another_job_is_not_resumed(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke(model, images, "-o", out).exit_code == 0
    assert_one_line(invoke(model, images, "-o", out, "--resume", "--format", "jsonl"), 1, "format was", '"jsonl"')
    assert_one_line(invoke(model, images / "01.png", "-o", out, "--resume"), 1, "samples was 20, now 1")


def many(tmp_path: Path, rows: int = ROWS) -> Path:
    path = tmp_path / "many.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (rows, 8, 8), dtype=np.uint8))
    return path


def test_ctrl_c_and_resume_give_the_same_files(model: Path, tmp_path: Path) -> None:
    rest = ["--batch-size", "1", "--shard-rows", "100"]
    job = [model, many(tmp_path), "-o", tmp_path / "out", *rest]
    command = [*COMMAND, "run", *map(str, job)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "ledger-00001.csv").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.strip() == "error: interrupted"
    ledgers = len(list((tmp_path / "out").glob("ledger-*.csv")))
    assert 2 <= ledgers < ROWS // 100
    assert not list((tmp_path / "out").glob(".*"))

    resumed = invoke(*job, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.stdout.startswith(f"{ROWS} inputs ({100 * ledgers} of them before): {ROWS} predicted")
    whole = invoke(model, tmp_path / "many.npy", "-o", tmp_path / "whole", *rest)
    assert whole.exit_code == 0
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_killed_run_resumes(model: Path, tmp_path: Path) -> None:
    job = [model, many(tmp_path), "-o", tmp_path / "out", "--batch-size", "1", "--shard-rows", "500"]
    process = subprocess.Popen([*COMMAND, "run", *map(str, job)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "ledger-00000.csv").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait(timeout=60)
    (tmp_path / "out" / ".predictions-00007.csv.1.part").write_text("what a kill in the middle of a shard leaves")
    resumed = invoke(*job, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    names = [row["input"] for i in range(ROWS // 500) for row in table(tmp_path / "out" / f"predictions-{i:05d}.csv")]
    assert names == [f"{tmp_path}/many.npy[{i}]" for i in range(ROWS)]
    assert not list((tmp_path / "out").glob(".*"))


def test_no_room_to_write_is_one_line(model: Path, tmp_path: Path) -> None:
    job = [model, many(tmp_path, 1000), "-o", tmp_path / "out"]
    with nothing_larger_than(20_000):  # run.json and a small ledger still fit
        result = invoke(*job)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot write {tmp_path}/out/predictions-00000.csv: File too large")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"], "nothing half-written is left"
    resumed = invoke(*job, "--resume")
    assert resumed.exit_code == 0, resumed.stderr


def test_a_full_disk_is_one_line(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        result = invoke(model, many(tmp_path, 3000), "-o", disk / "out")
        assert_one_line(result, 1, "predictions-00000.csv: No space left on device")
        assert [path.name for path in (disk / "out").iterdir()] == ["run.json"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_progress_bar_on_a_terminal_only(model: Path, images: Path, tmp_path: Path) -> None:
    leader, follower = os.openpty()
    job = [*COMMAND, "run", str(model), str(images), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    result = subprocess.run(job, stdout=subprocess.PIPE, stderr=follower, env=environment, timeout=120)
    os.close(follower)
    drawn = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # a pseudo-terminal reports its end so
            break
        if not block:
            break
        drawn += block
    os.close(leader)
    assert result.returncode == 0
    assert b"20/20" in drawn
    assert result.stdout.startswith(b"20 inputs: 20 predicted")


def test_files_left_out_are_told(model: Path, images: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.mp4"):
        (images / name).write_text("x")
    result = invoke(model, images, "-o", tmp_path / "out")
    assert result.exit_code == 0 and len(table(tmp_path / "out" / "predictions-00000.csv")) == 20
    assert result.stderr == (
        "note: 3 files in the folders are neither images nor arrays by their suffixes (2 .txt, 1 .mp4); name a file "
        "itself to read it\n"
    )
