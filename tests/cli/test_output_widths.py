"""Tables of every command in 80 columns: no line is wider, and nothing is cut off."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from stn_infer.api.evaluate import Change, Comparison, Evaluation
from stn_infer.benchmarking.report.terminal import render
from stn_infer.benchmarking.request import Method
from stn_infer.cli import eval as eval_command
from stn_infer.cli import verify as verify_command
from stn_infer.cli.main import main
from stn_infer.models import NETWORKS, SHIPPED
from stn_infer.pipeline.scores import Classification
from stn_infer.verification.report import BackendReport, Verification
from tests.support.benchmarking_sim import Simulated, Simulation, noisy


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def fitting(text: str) -> str:
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert wide == [] and "…" not in text
    return " ".join(text.split())


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return fitting(done.stdout)


def test_models() -> None:
    text = printed("models")
    for name in (*SHIPPED, *NETWORKS, "error", "this seed", "baseline (no STN)"):
        assert name in text
    assert "left out to fit 80 columns: test images; --json has all" in text
    text = printed("models", "--conventions")
    for row in json.loads(CliRunner().invoke(main, ["models", "--conventions", "--json"]).stdout)["conventions"]:
        assert row["name"] in text and row["description"] in text


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "the package 'openvino' is not installed; " * 4
    reports = (BackendReport("ort-rounded", "unavailable", (reason,)), BackendReport("openvino-fused", "failed"))
    verify_command._print(Verification("float64", "eager", 1e-5, reports, "3 random"))
    text = fitting(capsys.readouterr().out)
    assert "openvino-fused" in text and reason.strip() in text


def evaluation(model: str, labels: tuple[str, ...]) -> Evaluation:
    count = len(labels)
    found = Classification.of(
        [i % count for i in range(40)], [((i * 3) % count,) for i in range(40)], labels, top_k=None
    )
    return Evaluation(40, 40, 0, (), "openvino", "fp32", found, model=model)


def test_eval(capsys: pytest.CaptureFixture[str]) -> None:
    eval_command._print(evaluation("m.onnx", tuple("0123456789")))
    text = fitting(capsys.readouterr().out)
    assert "rows: true class, columns: predicted class" in text
    eval_command._print(evaluation("m.onnx", tuple(f"a class with a long name {i}" for i in range(10))))
    text = fitting(capsys.readouterr().out)
    assert "a class with a long name 9" in text and "--json has the confusion matrix" in text
    names = ("a-rather-long-name-of-a-model.fp32.onnx", "a-rather-long-name-of-a-model.int8.onnx")
    both = tuple(evaluation(name, ("a", "b")) for name in names)
    eval_command._compare(Comparison(both, (None, Change(39, 1, 0))))
    text = fitting(capsys.readouterr().out)
    assert all(word in text for word in ("accuracy", "same", "lost", "gained", "openvino")) and "int8.onnx" in text


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"eager": 2.0, "benchmarks.peers.kornia_warps:homography_warp": 1.0, "ort-fused": 0.5}
    result = Simulation({name: Simulated(noisy(time)) for name, time in variants.items()}).go(
        Method(rounds=6, seconds=0.1, samples=66, turns=2)
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(render(result))
    text = fitting(console.file.getvalue())  # type: ignore[attr-defined]
    assert all(word in text for word in ("median ms", "speedup over", "ort-fused", "left out to fit 80 columns"))
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(result.to_json())
    text = printed("bench", "compare", "a.json", "a.json")
    assert all(word in text for word in ("time B / A", "verdict", "same", "ort-fused"))
