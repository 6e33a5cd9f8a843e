"""``stn-infer lint``: lines or JSON, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from click.testing import CliRunner, Result

from stn_infer.cli.main import main
from tests.support.onnx_files import affine_model


def call(model: onnx.ModelProto, folder: Path, *options: str) -> Result:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return CliRunner().invoke(main, ["lint", str(path), *options])


def test_an_error_is_exit_code_1(tmp_path: Path) -> None:
    result = call(affine_model(opset=20, mode="linear"), tmp_path)
    assert result.exit_code == 1 and result.stderr == ""
    assert result.output.startswith("error: opset-20-trap [*]: sample: ")
    assert result.output.splitlines()[-1].endswith("(opset 20): 1 error, 2 warning, 2 info; 3 [*] fixable by optimize")


def test_warnings_only_are_exit_code_0(tmp_path: Path) -> None:
    result = call(affine_model(), tmp_path)
    assert result.exit_code == 0
    assert "warning: fusable-grid [*]: sample: " in result.output


def test_json(tmp_path: Path) -> None:
    result = call(affine_model(opset=20, mode="linear"), tmp_path, "--json")
    assert result.exit_code == 1
    content = json.loads(result.output)
    assert content["counts"] == {"error": 1, "warning": 2, "info": 2}
    assert content["findings"][0]["code"] == "opset-20-trap"


def test_the_help_states_the_exit_code() -> None:
    result = CliRunner().invoke(main, ["lint", "--help"])
    assert "Exit code 1 where a finding is an error" in " ".join(result.output.split())
