"""``--json`` of every command prints the fields that docs/scripting.md lists, as one document."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from stn_infer.api.best import BestReport
from stn_infer.api.engines.build import BuildReport
from stn_infer.api.export import ExportReport
from stn_infer.api.show import ShowReport
from stn_infer.benchmarking.harness import session
from stn_infer.benchmarking.request import Method
from stn_infer.cli.main import main
from stn_infer.pictures.look import Look
from stn_infer.predictions import Candidate
from tests.cli.test_help import ALL
from tests.support.benchmarking_sim import Simulated, Simulation, noisy
from tests.support.onnx_files import affine_model
from tests.support.paths import ROOT


def documented() -> dict[str, list[str]]:
    """The fields of each command, or of one of its forms, by the table."""
    rows = re.findall(r"^\| (`[^|]+) \| ([\w ,;]+) \|", (ROOT / "docs/scripting.md").read_text(), re.MULTILINE)
    return {form: re.findall(r"\w+", names) for forms, names in rows for form in re.findall(r"`(.+?)`", forms)}


FIELDS = documented()


def printed(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return found


def test_the_table_has_every_command() -> None:
    forms = re.findall(r"`(.+?)`", (ROOT / "docs/scripting.md").read_text())
    leaves = {name for name, command in ALL.items() if not isinstance(command, click.Group)}
    assert leaves <= set(forms)


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ("models", []),
        ("models --conventions", []),
        ("lint --explain", ["E009"]),
        ("bench --list-variants", []),
        ("plugin info", []),
        ("cache list", ["--cache", "cache"]),
        ("cache clear", ["--cache", "cache"]),
    ],
)
def test_without_a_model(form: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(printed(*form.split(), *more)) == FIELDS[form]


def test_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(affine_model(opset=20, mode="linear"), "model.onnx")
    np.save("inputs.npy", np.random.default_rng(0).random((3, 1, 8, 8), np.float32))
    found = printed("lint", "model.onnx", code=1)
    assert list(found) == FIELDS["lint"] and found["findings"]
    found = printed("lint", "model.onnx", "--format", "html", "-o", "report.html", code=1)
    assert found["path"] == "model.onnx" and Path("report.html").read_text().startswith("<!DOCTYPE html>")
    found = printed("optimize", "model.onnx", "-o", "fused.onnx")
    assert list(found) == FIELDS["optimize"]
    assert found["path"] == "fused.onnx" and found["findings"][0]["fused"] and found["comparison"]["outputs"]
    found = printed("metadata", "fused.onnx")
    assert sorted(found) == sorted(FIELDS["metadata"])
    found = printed("run", "fused.onnx", "inputs.npy", "-o", "out", "--format", "npz")
    assert list(found) == FIELDS["run"] and (found["ok"], found["output"]) == (3, "out")
    found = printed("triton", "fused.onnx", "-o", "models")
    assert list(found) == FIELDS["triton"] and (Path(found["path"]).name, found["checked"]) == ("fused", None)
    found = printed("verify", "fused.onnx", "--backend", "ort")
    assert list(found) == FIELDS["verify"] and found["passed"] is True


def test_reports_of_what_takes_long() -> None:
    assert [field.name for field in fields(ExportReport)] == FIELDS["export"]
    assert [field.name for field in fields(BestReport)] == FIELDS["best"]
    report = BuildReport(b"x" * 9, None, True, "none was there", path=Path("a.engine"))  # type: ignore[arg-type]
    assert json.loads(report.to_json()) == {
        "path": "a.engine",
        "sidecar": None,
        "built": True,
        "reason": "none was there",
        "notes": [],
        "warnings": [],
    }
    assert sorted(json.loads(report.to_json())) == sorted(FIELDS["build"])
    shown = ShowReport(Path("a.png"), (Look("1.png", "seven", (), (Candidate(7, "seven", 0.75),)),))
    assert json.loads(shown.to_json()) == {
        "path": "a.png",
        "looks": [
            {
                "name": "1.png",
                "prediction": "seven",
                "candidates": [{"prediction": 7, "label": "seven", "confidence": 0.75}],
                "truth": None,
                "right": None,
                "error": "",
            }
        ],
        "sampled_of": None,
        "seed": None,
        "notes": [],
    }
    assert list(json.loads(shown.to_json())) == FIELDS["show"]


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = Simulation({"ort": Simulated(noisy(1.0))}).go(Method(rounds=6, seconds=0.1, samples=66, turns=2))
    monkeypatch.chdir(tmp_path)
    Path("result.json").write_text(result.to_json())
    monkeypatch.setattr(session, "run_request", lambda *given, **named: result)
    assert printed("bench", "cnn") == json.loads(result.to_json())
    assert list(printed("bench", "compare", "result.json", "result.json")) == FIELDS["bench compare"]
    found = printed("bench", "report", "result.json", "-o", "report")
    assert list(found) == FIELDS["bench report"] and "report/report.html" in found["paths"]
