from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stn_infer.activation import Scores
from stn_infer.errors import OutputError
from stn_infer.pipeline.job import Folder, Job, LedgerRow, read_ledger, status_lines
from stn_infer.preprocess.rule import Preprocess

JOB = Job(
    model="model.onnx",
    model_sha256="abc",
    samples=5,
    inputs_sha256="def",
    inputs_stat_sha256="123",
    inputs_content_sha256="",
    backend="ort",
    device="cpu",
    batch_size=64,
    format="csv",
    shard_rows=2,
    preprocess=Preprocess(size=(8, 9)),
    labels=("a", "ü"),
    scores=Scores("sigmoid"),
    top_k=3,
    threshold=None,
    outputs=("scores",),
    stored=("scores",),
    runtime="onnxruntime 1.31",
    libraries="NumPy 2.4, Pillow 13.0",
    plugin="1.0 0123456789abcdef",
    cpu="x86_64 avx avx2",
)


def test_a_new_folder_gets_a_manifest(tmp_path: Path) -> None:
    with Folder.open(tmp_path / "deep" / "out", JOB, resume=False) as folder:
        assert sorted(path.name for path in folder.path.iterdir()) == ["run.json", "run.lock"]
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
    manifest = json.loads((folder.path / "run.json").read_text(encoding="utf-8"))
    assert manifest["model_sha256"] == "abc"
    assert manifest["preprocess"]["size"] == [8, 9]
    assert manifest["labels"] == ["a", "ü"]
    assert manifest["schema_version"] == 5


def test_a_folder_that_is_not_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputError, match="not empty; give a new folder, --resume"):
        Folder.open(tmp_path, JOB, resume=False)
    with pytest.raises(OutputError, match="no job to resume"):
        Folder.open(tmp_path, JOB, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resuming_in_a_new_folder_starts(tmp_path: Path) -> None:
    with Folder.open(tmp_path / "new", JOB, resume=True) as folder:
        assert not folder.is_done(0)


def test_a_job_resumes_on_another_device_and_with_another_batch_size(tmp_path: Path) -> None:
    Folder.open(tmp_path, JOB, resume=False).close()
    (tmp_path / ".predictions-00000.csv.77.part").write_text("half")
    Folder.open(tmp_path, replace(JOB, device="cuda:0", batch_size=1, cpu="aarch64"), resume=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"], "what a killed run left is gone"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_sha256": "xyz"}, "the model's graph, weights or code differ"),
        ({"samples": 6}, "samples was 5, now 6"),
        ({"inputs_sha256": "xyz"}, "the inputs' names differ"),
        ({"inputs_stat_sha256": "xyz"}, "the inputs' sizes or modification times differ"),
        ({"inputs_content_sha256": "xyz"}, "the inputs' contents differ"),
        ({"backend": "eager"}, 'backend was "ort", now "eager"'),
        ({"format": "npz"}, "format was "),
        ({"shard_rows": 3}, "shard_rows was 2, now 3"),
        ({"preprocess": Preprocess()}, "preprocess was "),
        ({"preprocess": None}, "preprocess was "),
        ({"labels": None}, "labels was "),
        ({"outputs": ("scores", "theta")}, "outputs was "),
        ({"stn_infer_version": "9"}, 'stn_infer_version was ".*", now "9"'),
        ({"runtime": "onnxruntime 1.32"}, 'runtime was "onnxruntime 1.31", now "onnxruntime 1.32"'),
        ({"libraries": "NumPy 2.4, Pillow 13.1"}, 'libraries was "NumPy 2.4, Pillow 13.0", now '),
        ({"plugin": ""}, "the plugin library differs"),
        ({"cpu": "x86_64 avx"}, "this CPU has other features, so that its results may differ in the last bits"),
    ],
)
def test_another_job_is_rejected_in_one_line(tmp_path: Path, change: dict[str, object], named: str) -> None:
    Folder.open(tmp_path, JOB, resume=False).close()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(OutputError, match=f"cannot resume another job: {named}") as caught:
        Folder.open(tmp_path, replace(JOB, **change), resume=True)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_modification_times_are_ignored_if_contents_are_compared(tmp_path: Path) -> None:
    job = replace(JOB, inputs_content_sha256="c")
    Folder.open(tmp_path, job, resume=False).close()
    Folder.open(tmp_path, replace(job, inputs_stat_sha256="touched"), resume=True).close()
    with pytest.raises(OutputError, match="the inputs' contents differ"):
        Folder.open(tmp_path, replace(job, inputs_content_sha256="d"), resume=True)


def test_a_job_that_is_refused_takes_no_lock(tmp_path: Path) -> None:
    with Folder.open(tmp_path, JOB, resume=False):
        with pytest.raises(OutputError, match="the model's graph, weights or code differ"):
            Folder.open(tmp_path, replace(JOB, model_sha256="xyz"), resume=True)
        with pytest.raises(OutputError, match="another job is working in"):
            Folder.open(tmp_path, JOB, resume=True)


def test_a_job_of_another_schema_is_rejected(tmp_path: Path) -> None:
    Folder.open(tmp_path, JOB, resume=False).close()
    manifest = json.loads((tmp_path / "run.json").read_text())
    older = {key: value for key, value in manifest.items() if key not in ("runtime", "libraries")}
    (tmp_path / "run.json").write_text(json.dumps({**older, "schema_version": 2, "stn_infer_version": "0.1"}))
    with pytest.raises(OutputError, match=r"was written by another version of stn-infer \(0\.1, this is "):
        Folder.open(tmp_path, JOB, resume=True)


@pytest.mark.parametrize("leftover", [".run.json.abc.part", "run.lock"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_its_first_file_leaves_no_job(tmp_path: Path, leftover: str, resume: bool) -> None:
    (tmp_path / leftover).write_text("{")
    with Folder.open(tmp_path, JOB, resume):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError, match=r"run\.json is damaged"):
        Folder.open(tmp_path, JOB, resume=True)


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot create the output folder"):
        Folder.open(tmp_path / "file" / "out", JOB, resume=False)
    with pytest.raises(OutputError, match="cannot create the output folder"):
        Folder.open(tmp_path / "file", JOB, resume=False)


def test_status_files_round_trip(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path, JOB, resume=False)
    folder.close()
    names = ['a "b", c.png', "line\nbreak.png", "ünï.png"]
    lines = [status_lines(names[:2], {1: 'said "no", twice'}, 1, 0), status_lines(names[2:], {}, 1, 1)]
    folder.write_ledger(1, lines)
    assert list(read_ledger(tmp_path / folder.ledger(1))) == [
        LedgerRow(names[0], "ok", "", 1, 0),
        LedgerRow(names[1], "failed", 'said "no", twice', 1, None),
        LedgerRow(names[2], "ok", "", 1, 1),
    ]
    assert not folder.is_done(1), "predictions are missing"
    (tmp_path / folder.predictions(1)).touch()
    assert folder.is_done(1)


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"input,status,error,shard,row\nx,ok\n", b"\xff\xfe"])
def test_a_file_that_is_not_a_status_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger-00000.csv").write_bytes(content)
    with pytest.raises(OutputError, match="ledger"):
        list(read_ledger(tmp_path / "ledger-00000.csv"))


@pytest.mark.parametrize(
    "lines",
    [
        "in/a,ok,,0,0\n",  # one input is missing
        "in/a,ok,,0,0\nin/b,ok,,0,1\nin/c,ok,,0,2\n",
        "in/a,ok,,0,0\nin/b,ok,,1,1\n",  # of another shard
        "in/a,ok,,0,0\nin/b,ok,,0,0\n",  # two inputs in one row
        "in/a,ok,,0,0\nin/b,failed,,0,\n",  # without a reason
        "in/a,ok,,0,0\nin/b,ok,broken,0,\n",
    ],
)
def test_a_status_file_that_does_not_account_for_every_input(tmp_path: Path, lines: str) -> None:
    """It is not counted on: the totals of the resumed job would be wrong."""
    with Folder.open(tmp_path, JOB, resume=False) as folder:
        (tmp_path / folder.ledger(0)).write_text("input,status,error,shard,row\n" + lines)
        with pytest.raises(OutputError, match=r"ledger-00000\.csv is damaged; expected one row for each of 2 inputs"):
            folder.read_done(0)
        (tmp_path / folder.ledger(2)).write_text("input,status,error,shard,row\nin/e,ok,,2,0\n")
        assert [row.input for row in folder.read_done(2)] == ["in/e"], "the last shard is shorter"
