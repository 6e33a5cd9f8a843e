"""`triton`: a model's folder from a file, and what is refused before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from stn_infer import Budget
from stn_infer.api.metadata import set_metadata
from stn_infer.api.triton import triton
from stn_infer.cli.main import main
from stn_infer.errors import (
    MissingDependencyError,
    ModelError,
    StnInferError,
    UsageError,
    VerificationError,
)
from stn_infer.fusion.fuse import fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.serving import check as check_module
from tests.support.onnx_files import affine_model
from tests.support.served_models import classifier, single_values

TRUSTED = Budget(seconds=0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a model.onnx"
    onnx.save(classifier(), path)
    return path


def refused(file: Path, *arguments: str) -> tuple[str, int]:
    """What the command says, in one line, and its exit code; it leaves nothing."""
    before = sorted(path for path in file.parent.rglob("*"))
    result = CliRunner().invoke(main, ["triton", str(file), "-o", str(file.parent / "models"), *arguments])
    assert result.stdout == "" and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert sorted(path for path in file.parent.rglob("*")) == before
    return result.stderr, result.exit_code


def test_the_command_writes_a_folder_and_says_how_to_start(file: Path) -> None:
    models = file.parent / "models"
    arguments = ["triton", str(file), "-o", str(models), "--trial-seconds", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"wrote {models}/a_model\nstart: tritonserver --model-repository={models}\n"
    files = ["1", "README.md", "config.pbtxt", "labels.txt"]
    assert sorted(os.listdir(models / "a_model")) == files
    assert (models / "a_model/1/model.onnx").read_bytes() == file.read_bytes()
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1 and "has a model 'a_model'; give another --name, or --overwrite" in again.stderr
    more = ["--name", "second", "--served-at", "/srv/models", "--top-k", "2", "--instances", "3"]
    result = CliRunner().invoke(main, [*arguments, *more])
    assert result.exit_code == 0 and result.stdout.endswith("start: tritonserver --model-repository=/srv/models\n")
    config = (models / "second/config.pbtxt").read_text()
    assert "count: 3" in config and 'string_value: "1"' in config and config.count("dims: [2]") == 3


def test_a_relative_repository(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "here").mkdir()
    monkeypatch.chdir(file.parent / "here")
    report = triton(file, ".", budget=TRUSTED)
    assert report.path == file.parent / "here" / "a_model"
    assert f"--model-repository={file.parent}/here" in report.start
    assert os.listdir(file.parent / "here") == ["a_model"] and len(os.listdir(file.parent)) == 2


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--platform", "openvino"], "'openvino' is not one of 'python', 'onnxruntime', 'tensorrt'", 2),
        (["--platform", "tensorrt"], "the platform tensorrt serves an engine: build it on a GPU like the server's", 2),
        (["--engine", "m.engine"], "an engine is for the platform tensorrt, not python", 2),
        (["--platform", "tensorrt", "--engine", "no.engine"], "no.engine: expected a TensorRT engine", 1),
        (["--platform", "tensorrt", "--engine", "m.engine", "--threads", "2"], "threads are for models on a CPU", 2),
        (["--name", "a/b"], "a model's name has up to 128 letters, digits", 2),
        (["--served-at", "models"], "the repository's place on the server is an absolute path, not 'models'", 2),
        (["--instances", "0"], "0 is not in the range x>=1", 2),
        (["-o", "/proc/models"], "cannot", 1),
        (["-o", "/nowhere/models"], "cannot be made: no such folder: /nowhere", 1),
    ],
)
def test_what_is_refused(file: Path, arguments: Sequence[str], message: str, code: int) -> None:
    said, exit_code = refused(file, "--trial-seconds", "0", *arguments)
    assert message in said and exit_code == code


def test_a_file_with_a_fixed_batch(file: Path) -> None:
    onnx.save(classifier(batch=4), file)
    said, code = refused(file, "--trial-seconds", "0")
    assert "the file's batch is fixed to 4; Triton joins requests to batches of any size" in said and code == 2


def test_not_a_model(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])
    assert refused(file)[1] == 1
    with pytest.raises(StnInferError, match="platform is one of python, onnxruntime, tensorrt, not 'caffe'"):
        triton(file, file.parent / "models", platform="caffe")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch": 0}, "max_batch is a whole number of at least 1, not 0"),
        ({"threads": -1}, "threads is a whole number of at least 0, not -1"),
        ({"queue_delay": -1}, "queue_delay is a whole number of at least 0, not -1"),
        ({"queue_delay": 0.5}, "queue_delay is a whole number of at least 0, not 0.5"),
        ({"device": "gpu"}, "the device on the server is cpu or cuda, not 'gpu'"),
        ({"served_at": "/m\udcff"}, r"name the path /m\\udcff/a_model, which is not UTF-8; rename it"),
    ],
)
def test_values_that_the_command_line_does_not_let_through(file: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        triton(file, file.parent / "models", **arguments)
    assert os.listdir(file.parent) == [file.name]


def test_a_repository_that_is_not_utf_8(file: Path) -> None:
    models = file.parent / os.fsdecode(b"m\xff")
    with pytest.raises(UsageError, match=r"/m\\udcff/a_model, which is not UTF-8; rename it"):
        triton(file, models)
    report = triton(file, models, served_at="/models", budget=TRUSTED)
    assert report.path == models / "a_model" and (report.path / "config.pbtxt").is_file()


def test_requests_are_not_joined_where_samples_depend_on_each_other(file: Path) -> None:
    onnx.save(classifier(batch_dependent=("scores",)), file)
    report = triton(file, file.parent / "models", budget=TRUSTED)
    assert report.notes == ("requests are not joined: scores depend on the other samples of a batch",)
    assert "dynamic_batching" not in (report.path / "config.pbtxt").read_text()
    assert "Requests are not joined to batches" in (report.path / "README.md").read_text()


@pytest.mark.parametrize("platform", ["python", "onnxruntime"])
def test_a_fused_model_takes_its_library_along(tmp_path: Path, platform: str) -> None:
    from stn_infer import plugin

    if plugin.info().path is None:
        pytest.skip("the plugin library is not built; stn-infer plugin build")
    fused, _ = fuse(affine_model())
    (tmp_path / "m.onnx").write_bytes(fused.SerializeToString())
    report = triton(tmp_path / "m.onnx", tmp_path / "r", platform=platform, budget=TRUSTED)  # type: ignore[arg-type]
    library = report.path / "libstn_plugins.so"
    assert library.read_bytes() == plugin.library_path().read_bytes()
    named = f'op_library_filename: ["{library}"]' in (report.path / "config.pbtxt").read_text()
    assert named == (platform == "onnxruntime")


def test_without_the_library_plain_operators_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_PLUGIN_LIBRARY", str(tmp_path / "none.so"))
    fused, _ = fuse(affine_model())
    (tmp_path / "m.onnx").write_bytes(fused.SerializeToString())
    report = triton(tmp_path / "m.onnx", tmp_path / "r", platform="onnxruntime", budget=TRUSTED)
    assert report.notes[0].startswith("plain operators run the spatial transformers: the plugin library is not built")
    assert "model_operations" not in (report.path / "config.pbtxt").read_text()
    assert not list(report.path.glob("*.so"))


def test_preprocessing_that_is_left_to_the_client_is_a_note(tmp_path: Path) -> None:
    model = affine_model()
    set_metadata(model, ModelMetadata(preprocess=Preprocess()))
    onnx.save(model, tmp_path / "m.onnx")
    report = triton(tmp_path / "m.onnx", tmp_path / "r", budget=TRUSTED)
    assert report.notes[-1].startswith("clients send preprocessed inputs; a file of `export --embed-preprocess` takes")


def test_an_engine_of_another_tool_is_served_as_it_is(file: Path) -> None:
    engine = file.parent / "m.plan"
    engine.write_bytes(b"plan")
    report = triton(file, file.parent / "r", platform="tensorrt", engine=engine, max_batch=8, budget=TRUSTED)
    assert (report.path / "1/model.plan").read_bytes() == b"plan"
    assert report.notes == ()
    config = (report.path / "config.pbtxt").read_text()
    assert "max_batch_size: 8" in config and "kind: KIND_GPU" in config and "parameters" not in config


def test_an_engine_without_a_sidecar_has_an_unknown_profile(file: Path) -> None:
    engine = file.parent / "m.plan"
    engine.write_bytes(b"ftrt")
    report = triton(file, file.parent / "r", platform="tensorrt", engine=engine, budget=TRUSTED)
    assert report.notes == (f"{engine} has no sidecar with its profile: batches of up to 64 are assumed",)
    assert "max_batch_size: 64" in (report.path / "config.pbtxt").read_text()


def test_what_is_not_an_engine_of_tensorrt_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match=r"a model\.onnx is an ONNX file, not a TensorRT engine"):
        triton(file, file.parent / "r", platform="tensorrt", engine=file, budget=TRUSTED)
    engine = file.parent / "m.engine"
    engine.write_bytes(b"vtrt")
    with pytest.raises(ModelError, match=r"m\.engine is a tensorrt-rtx engine, which Triton does not run"):
        triton(file, file.parent / "r", platform="tensorrt", engine=engine, budget=TRUSTED)
    assert not (file.parent / "r").exists()


def test_check_without_a_server_writes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_TRITON", str(file.parent))
    with pytest.raises(MissingDependencyError, match="which is not the tritonserver program"):
        triton(file, file.parent / "models", check=True, budget=TRUSTED)
    assert not (file.parent / "models").exists()


@pytest.mark.slow
def test_a_real_server_takes_one_value_per_sample(file: Path) -> None:
    onnx.save(single_values(), file)
    try:
        report = triton(file, file.parent / "models", check=True, max_batch=5, budget=TRUSTED)
    except MissingDependencyError as error:
        pytest.skip(f"a real server is needed: {error}")
    assert report.checked is not None and report.checked.max_error == 0


@pytest.mark.slow
def test_check_asks_a_real_server(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        report = triton(file, file.parent / "models", check=True, max_batch=5, budget=TRUSTED)
    except MissingDependencyError as error:
        pytest.skip(f"a real server is needed: {error}")
    assert report.checked is not None and report.checked.batches == (1, 3, 5) and report.checked.max_error == 0
    assert "answers to batches of 1, 3, 5 equal run's to the last bit" in str(report)
    shutil.rmtree(report.path)
    with pytest.raises(ModelError, match=r"tritonserver does not serve a_model: .*unable to find backend library"):
        triton(file, file.parent / "models", check=True, platform="onnxruntime", budget=TRUSTED)
    assert os.listdir(file.parent / "models") == []
    monkeypatch.setattr(check_module, "TOLERANCE", -1.0)
    with pytest.raises(VerificationError, match=r"the server's output '.*' differs from run's by 0 of its scale"):
        triton(file, file.parent / "models", check=True, budget=TRUSTED)
    assert os.listdir(file.parent / "models") == []
