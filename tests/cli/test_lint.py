"""``stn-infer lint``: lines or JSON, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from stn_infer.cli.main import main
from tests.support.onnx_files import affine_model, sampler_model


def call(model: onnx.ModelProto, folder: Path, *options: str) -> Result:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return CliRunner().invoke(main, ["lint", str(path), *options])


def test_an_error_is_exit_code_1(tmp_path: Path) -> None:
    result = call(affine_model(opset=20, mode="linear"), tmp_path)
    assert result.exit_code == 1 and result.stderr == ""
    assert f"{tmp_path}/model.onnx: node sample: error[E009] [*]: mode 'linear'" in result.output.splitlines()[0]
    last = "(opset 20): 1 error, 2 warnings, 2 infos; 3 [*] fixable by optimize"
    assert result.output.splitlines()[-1].endswith(last) and "\x1b" not in result.output


@pytest.mark.parametrize(
    ("options", "code"), [((), 0), (("--fail-on", "warning"), 1), (("--fail-on", "warning", "--fail-on", "never"), 0)]
)
def test_warnings_fail_where_they_are_asked_to(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    result = call(affine_model(), tmp_path, *options)
    assert result.exit_code == code
    assert "node sample: warning[W007] [*]: " in result.output


def test_json(tmp_path: Path) -> None:
    result = call(affine_model(opset=20, mode="linear"), tmp_path, "--json", "--fail-on", "never")
    assert result.exit_code == 0
    content = json.loads(result.output)
    assert content["counts"] == {"error": 1, "warning": 2, "info": 2}
    assert content["findings"][0]["code"] == "opset-20-trap" and content["findings"][0]["rule"] == "E009"


@pytest.mark.parametrize(
    ("targets", "options", "code"),
    [
        (("tensorrt==10.3",), (), 0),
        (("tensorrt==10.3",), ("--fail-on", "not-judged"), 1),
        (("tensorrt==8.6",), (), 1),
        (("tensorrt==8.6",), ("--fail-on", "never"), 0),
        (("tensorrt==10.3", "onnxruntime"), ("--fail-on", "error"), 0),
    ],
)
def test_targets(targets: tuple[str, ...], options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    result = call(sampler_model(), tmp_path, *(word for name in targets for word in ("--target", name)), *options)
    outcomes = {"tensorrt==10.3": "not judged", "tensorrt==8.6": "refused", "onnxruntime": "supported"}
    assert result.exit_code == code, result.output
    *_, last = result.output.splitlines()
    assert "; targets: " in last and all(f" 1 {outcomes[name]}" in last for name in targets)
    for name in targets:
        assert f"model.onnx: target {name}: {outcomes[name]} (" in result.output
    if "tensorrt==8.6" in targets:
        assert "node sampler: error[E010]: tensorrt==8.6: stn::Sampler is a model-local function" in result.output
        assert "; not judged after optimize --functions inline)" in result.output


def test_verdicts_in_json(tmp_path: Path) -> None:
    content = json.loads(call(sampler_model(), tmp_path, "--json", "--target", "tensorrt==8.6").output)
    (verdict,) = content["targets"]
    assert list(verdict) == ["target", "outcome", "judge", "unjudged", "improved_by", "outcome_after"]
    assert (verdict["target"], verdict["outcome"]) == ("tensorrt==8.6", "refused")
    (refusal,) = (finding for finding in content["findings"] if finding["rule"] == "E010")
    assert refusal["target"] == "tensorrt==8.6" and refusal["node"] == "sampler"


@pytest.mark.parametrize(
    ("format", "start"),
    [("html", "<!DOCTYPE html>"), ("sarif", '{\n  "$schema"'), ("json", '{\n "schema": 1'), ("text", "")],
)
def test_reports_are_written(format: str, start: str, tmp_path: Path) -> None:
    path = tmp_path / "report"
    result = call(affine_model(), tmp_path, "--format", format, "-o", str(path))
    assert result.exit_code == 0, result.output
    content = path.read_text()
    assert (content.startswith(start) and "fusable-grid" in content) or "warning[W007] [*]" in content
    summary, wrote = result.output.splitlines()
    assert summary.endswith("fixable by optimize") and wrote == f"wrote {path} ({format})"


def test_a_report_goes_to_standard_output_without_a_file(tmp_path: Path) -> None:
    result = call(affine_model(), tmp_path, "--format", "sarif")
    assert json.loads(result.output)["version"] == "2.1.0"


def test_a_report_that_cannot_be_written_or_chosen_is_one_line(tmp_path: Path) -> None:
    result = call(affine_model(), tmp_path, "-o", str(tmp_path / "none" / "report.html"))
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    result = call(affine_model(), tmp_path, "-o", str(tmp_path / "model.onnx"))
    assert result.exit_code == 1 and "is what this command reads; name another file" in result.stderr
    result = call(affine_model(), tmp_path, "--json", "--format", "html")
    assert result.exit_code == 2
    assert result.stderr == "error: --json and --format html exclude each other without --output; give one of them\n"


@pytest.mark.parametrize("rule", ["E009", "e009", "opset-20-trap"])
def test_explain_needs_no_file(rule: str) -> None:
    result = CliRunner().invoke(main, ["lint", "--explain", rule])
    assert result.exit_code == 0 and result.stderr == ""
    assert result.output.startswith("error[E009] opset-20-trap: ")
    assert "For whom: users of TensorRT up to 11.1." in result.output and "What to do: optimize" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_what_is_missing_or_unknown_is_one_line() -> None:
    for arguments, message in (
        (["--explain", "E999"], "error: no such rule: 'E999'; the rules are E001 to E0"),
        (["--explain", "tf-32"], "error: no such rule: 'tf-32'; did you mean 'tf32'?"),
        (["x.onnx", "--target", "trt"], "error: no such target: 'trt'; the targets are tensorrt==8.6, "),
        ([], "error: lint takes an ONNX file: stn-infer lint model.onnx (or --explain RULE)"),
    ):
        result = CliRunner().invoke(main, ["lint", *arguments])
        assert result.exit_code == 2 and result.stderr.startswith(message), result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_the_help_states_the_exit_codes() -> None:
    result = CliRunner().invoke(main, ["lint", "--help"])
    assert "Exit code 0: the file passes. 1: it fails by --fail-on" in " ".join(result.output.split())
