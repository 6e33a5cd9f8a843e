"""`best`: files, the choice and what is stored, on given measurements; refusals; and the whole on a real model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from stn_infer.api import bench as bench_module
from stn_infer.api import best as best_module
from stn_infer.api import open as open_module
from stn_infer.api import run as run_module
from stn_infer.api.best import best
from stn_infer.api.fingerprint import fingerprint
from stn_infer.api.metadata import set_metadata
from stn_infer.api.run import run
from stn_infer.api.source import OnnxModel
from stn_infer.backends.ort import OrtBackend
from stn_infer.benchmarking.choice import Setting
from stn_infer.benchmarking.record import Throughput
from stn_infer.benchmarking.result import BenchResult
from stn_infer.benchmarking.stored import find, folder, store
from stn_infer.budget import Budget
from stn_infer.cli.main import main
from stn_infer.errors import AssumptionWarning, ModelError, UsageError
from stn_infer.fusion.fuse import fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.pipeline.inference import run_job
from stn_infer.pipeline.plan import RunOptions
from tests.support.measured import result, row
from tests.support.onnx_files import affine_model

TRUSTED = Budget(seconds=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the benchmark was asked for; its answers are given: two callers in ort are fastest."""
    calls: list[dict[str, Any]] = []

    def bench(path: Path, **named: Any) -> BenchResult:
        graph = onnx.load(path)
        calls.append(named | {"content": path.read_bytes(), "graph": graph})
        together = Throughput(2, 150, 0.5) if named["threads"] == 1 else None
        return result(
            named["threads"],
            row("ort-fused", 16, [4.0] * 3, error=2e-7, together=together),
            row("openvino", 16, [5.0] * 3, error=3e-7),
        )

    monkeypatch.setattr(bench_module, "bench", bench)
    monkeypatch.setattr(best_module, "_threads", lambda given, device: given or (2, 1))
    return calls


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    path = tmp_path / "fused.onnx"
    model, _ = fuse(affine_model())
    set_metadata(model, ModelMetadata(precision="fp16"))
    onnx.save(model, path)
    return path


def sha256(path: Path) -> str:
    return fingerprint(OnnxModel(path))


def test_a_fused_file_is_measured_as_it_is(fused: Path, asked: list[dict[str, Any]]) -> None:
    output = fused.with_name("out.onnx")
    report = best(fused, output, batch_sizes=(16,), time_limit=1000, budget=TRUSTED)
    assert output.read_bytes() == fused.read_bytes()
    assert [(call["threads"], call["batch_sizes"]) for call in asked] == [(2, (16,)), (1, (16,))]
    assert all(call["content"] == fused.read_bytes() and call["method"].separate for call in asked)
    assert 0 < asked[0]["time_limit"] <= 500 < asked[1]["time_limit"] <= 1000
    chosen = report.chosen
    assert (chosen.precision, chosen.backend, chosen.threads, chosen.callers) == ("fp16", "ort", 1, 2)
    assert (chosen.throughput, chosen.error) == (4800.0, 2e-7)
    assert report.settings[0] == chosen and len(report.settings) == 4 and report.refused == ()
    assert report.command == f"stn-infer run {output} INPUT -o predictions --backend auto"
    assert sorted(path.name for path in fused.parent.iterdir()) == ["cache", "fused.onnx", "out.onnx"]
    assert find(sha256(output), "cpu") == chosen


def test_the_table_has_80_columns(fused: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fused.parent)
    arguments = ["best", "fused.onnx", "-o", "out.onnx", "--trial-seconds", "0", "--latency-ms", "4"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "   precision  runtime       batch threads callers  ms/batch  samples/s    error",
        "-> fp16       ort              16       1       2         4       4800  2.0e-07",
        "   fp16       ort              16       2       1         4       4000  2.0e-07",
    ]
    assert max(map(len, lines[:5])) <= 80
    assert lines[-1] == "run it: stn-infer run out.onnx INPUT -o predictions --backend auto"


def test_a_plain_file_is_fused_and_keeps_its_precision(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    plain = tmp_path / "plain.onnx"
    onnx.save(affine_model(), plain)
    report = best(plain, tmp_path / "out.onnx", budget=TRUSTED)
    assert any(node.domain == "stn" for node in asked[0]["graph"].graph.node)
    assert {setting.precision for setting in report.settings} == {"fp32"}
    assert report.refused == (("other precisions", "the file does not name the source that it was exported from"),)
    with pytest.raises(ModelError, match="has not measured this file"):
        find(sha256(plain), "cpu")  # its bytes are not those that were measured


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--latency-ms", "3"], "nothing meets --latency-ms 3, so no file was written; nearest: fp16 in ort", 3),
        (["--max-error", "1e-9"], "nothing meets --max-error 1e-09, so no file was written; nearest: fp16 in", 3),
        (["--latency-ms", "0"], "Invalid value for '--latency-ms': 0.0 is not in the range x>0.", 2),
        (["--max-error", "nan"], "Invalid value for '--max-error': nan is not a finite number.", 2),
        (["--time-limit", "-1"], "Invalid value for '--time-limit': -1.0 is not in the range x>0.", 2),
        (["--batch-sizes", "0,4"], "batch sizes are whole numbers of at least 1, given 0, 4", 2),
        (["--batch-sizes", "x"], "--batch-sizes takes integers separated by commas, such as 1,64; got 'x'", 2),
        (["--threads", "0"], "numbers of threads are at least 1, given 0", 2),
        (["--weights", "w.safetensors"], "fused.onnx contains its weights; omit --weights", 2),
        (["--input-shape", "1,9,9"], "9", 2),
        (["--device", "tpu"], "--device is cpu, cuda or cuda:N, not 'tpu'", 2),
        (["--inputs", "missing/"], "missing", 1),
        (["-o", "missing/out.onnx"], "missing", 1),
    ],
)
def test_what_is_refused_in_one_line(
    fused: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
    code: int,
) -> None:
    monkeypatch.chdir(fused.parent)
    done = CliRunner().invoke(main, ["best", "fused.onnx", "-o", "out.onnx", "--trial-seconds", "0", *arguments])
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
    assert not Path("out.onnx").exists() and not folder().exists()


@pytest.mark.parametrize("bound", ["latency_ms", "max_error", "time_limit"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_is_a_number_above_zero(bound: str, value: float) -> None:
    bounds: dict[str, Any] = {bound: value}
    with pytest.raises(UsageError, match=rf"^--{bound.replace('_', '-')} is a number above 0, not {value:g}$"):
        best("fused.onnx", "out.onnx", **bounds)


def test_no_runtime_takes_it(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("ort", 1, [], status="unavailable", reason="it has no such operator")]
    monkeypatch.setattr(bench_module, "bench", lambda path, **named: result(1, *rows))
    with pytest.raises(ModelError, match=r"nothing could be timed.*fp16 in ort, batch 1: it has no such operator"):
        best(fused, fused.with_name("out.onnx"), threads=(1,), budget=TRUSTED)
    assert not fused.with_name("out.onnx").exists()


def test_external_data_are_not_replaced(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    model = affine_model()
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(UsageError, match=r"writing .*out\.onnx would replace data that .*model\.onnx refers to"):
        best(tmp_path / "model.onnx", tmp_path / "out.onnx", budget=TRUSTED)
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    best(tmp_path / "model.onnx", tmp_path / "other.onnx", budget=TRUSTED)
    onnx.checker.check_model(str(tmp_path / "other.onnx"))
    assert find(sha256(tmp_path / "other.onnx"), "cpu").backend == "ort"


SETTING = Setting(
    precision="fp16",
    backend="openvino",
    batch_size=7,
    threads=2,
    callers=1,
    median_ms=1.0,
    throughput=7000.0,
    error=0.0,
)


@pytest.mark.parametrize(
    ("given", "opened", "batch_size", "workers", "callers"),
    [
        ({"backend": "auto"}, ("openvino", "cpu", 2), 7, None, 1),
        ({"backend": "auto", "batch_size": 3}, ("openvino", "cpu", 2), 3, None, 1),
        ({"backend": "auto", "workers": 4}, ("openvino", "cpu", 1), 7, 4, None),
        ({"backend": "ort"}, ("ort", "cpu", 1), 64, None, None),
        ({}, ("ort", "cpu", 1), 64, None, None),
    ],
)
def test_run_takes_what_was_found(
    fused: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    opened: tuple[Any, ...],
    batch_size: int,
    workers: int | None,
    callers: int | None,
) -> None:
    store(sha256(fused), "cpu", SETTING)
    np.save(fused.with_name("inputs.npy"), np.zeros((8, 1, 8, 8), np.float32))
    seen: list[Any] = []

    def open_backend(model: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(arguments)
        return OrtBackend(Path(model), threads=1)

    def job(runner: Any, sources: Any, output: Any, options: RunOptions, **named: Any) -> Any:
        seen.append((options.batch_size, options.workers, options.callers))
        return run_job(runner, sources, output, options, **named)

    monkeypatch.setattr(open_module, "open_backend", open_backend)
    monkeypatch.setattr(run_module, "run_job", job)
    output = fused.with_name("job")
    with warnings.catch_warnings():
        warnings.simplefilter("error", AssumptionWarning)
        run(fused, [fused.with_name("inputs.npy")], output, format="npz", budget=TRUSTED, **given)
    assert seen == [opened, (batch_size, workers, callers)]


@pytest.mark.parametrize("kind", ["nothing", "damaged"])
def test_run_without_a_choice_says_so_and_runs_in_ort(
    kind: str, fused: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fused.parent)
    np.save("inputs.npy", np.zeros((2, 1, 8, 8), np.float32))
    if kind == "damaged":
        best("fused.onnx", "out.onnx", budget=TRUSTED)
        next(folder().iterdir()).write_text("{")
    done = CliRunner().invoke(
        main,
        [
            "run",
            "fused.onnx",
            "inputs.npy",
            "-o",
            "job",
            "--format",
            "npz",
            "--backend",
            "auto",
            "--trial-seconds",
            "0",
        ],
    )
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("warning: --backend auto runs the model in ort: ")
    reason = "is damaged" if kind == "damaged" else "`stn-infer best` has not measured this file on cpu here"
    assert reason in done.stderr.splitlines()[0]


def test_auto_is_not_for_engines_and_clusters(tmp_path: Path, fused: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"ftrt" + bytes(60))
    with pytest.raises(UsageError, match="an engine runs in its own runtime: give --backend tensorrt"):
        run(engine, ["inputs.npy"], tmp_path / "job", backend="auto")
    with pytest.raises(UsageError, match="--backend auto is what was measured on this machine; on a cluster name"):
        run(fused, ["inputs.npy"], tmp_path / "job", backend="auto", ray="local")


@pytest.mark.slow
def test_of_a_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).random((24, 1, 28, 28), np.float32)
    np.save("inputs.npy", images)
    arguments = ["--batch-sizes", "8", "--threads", "1", "--max-error", "0.1", "--time-limit", "600"]
    done = CliRunner().invoke(
        main, ["best", "tutorial-stn-r", "-o", "out.onnx", "--inputs", "inputs.npy", "--json", *arguments]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {setting["precision"] for setting in report["settings"]} == {"fp32", "fp16", "int8"}, report["refused"]
    errors = {setting["precision"]: setting["error"] for setting in report["settings"]}
    assert errors["fp32"] < 1e-5 < errors["fp16"] < 1e-2 and errors["fp16"] < errors["int8"] < 0.1
    chosen = report["chosen"]
    written = OnnxModel(Path("out.onnx")).read()
    assert {entry.key: entry.value for entry in written.metadata_props}.get("stn_infer.precision", "fp32") == chosen[
        "precision"
    ]
    done = CliRunner().invoke(
        main, ["run", "out.onnx", "inputs.npy", "-o", "job", "--format", "npz", "--backend", "auto"]
    )
    assert done.exit_code == 0 and "--backend auto" not in done.stderr, done.output
    arguments = ["run", "tutorial-stn-r", "inputs.npy", "-o", "plain", "--format", "npz", "--backend", "auto"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0 and "stores choices for the ONNX files that it measures, not for sources" in done.stderr
    with np.load(next(Path("job").glob("*.npz"))) as mine, np.load(next(Path("plain").glob("*.npz"))) as plain:
        name = next(name for name in plain.files if plain[name].dtype == np.float32 and plain[name].ndim == 2)
        scale = np.abs(plain[name]).max()
        assert np.abs(mine[name] - plain[name]).max() / scale <= chosen["error"] + 1e-5
