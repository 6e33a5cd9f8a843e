"""``stn-infer optimize``: its output, options and exit codes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from stn_infer.cli.main import main
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.proto.traversal import opset_of
from tests.support.onnx_files import affine_model, flow_model


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["optimize", *map(str, arguments)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    path.write_bytes(affine_model(opset=20, mode="linear").SerializeToString())
    return path


def test_it_reports_its_changes(model: Path, tmp_path: Path) -> None:
    result = call(model, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("sample: fused GridSample into stn::SpatialTransformer (affine, ")
    assert lines[1].startswith("repaired: opset-20-trap: lowered opset 20 to 19")
    assert lines[2].startswith("verified against the original in onnxruntime: max relative output error ")
    assert lines[3].startswith(f"wrote {tmp_path / 'out.onnx'} (") and lines[3].endswith(
        "opset 19, was 20); 1 of 1 samplers fused"
    )
    written = onnx.load(tmp_path / "out.onnx")
    assert len(spatial_nodes(written)) == 1


def test_no_fix_keeps_the_opset(model: Path, tmp_path: Path) -> None:
    result = call(model, "-o", tmp_path / "out.onnx", "--no-fix")
    assert result.exit_code == 0 and "repaired" not in result.output
    assert opset_of(onnx.load(tmp_path / "out.onnx")) == 20


def test_functions_can_be_inlined(model: Path, tmp_path: Path) -> None:
    result = call(model, "-o", tmp_path / "out.onnx", "--functions", "inline")
    assert result.exit_code == 0 and "note: written with plain operators" in result.output
    written = onnx.load(tmp_path / "out.onnx")
    assert not written.functions and "GridSample" in {node.op_type for node in written.graph.node}
    result = call(model, "-o", tmp_path / "out.onnx", "--functions", "drop")
    assert result.exit_code == 2 and "'drop' is not one of 'keep', 'inline'" in result.output


def test_a_wrong_rewrite_is_exit_code_3(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.fusion.fuse import fuse

    def wrong(given: onnx.ModelProto) -> object:
        fused, findings = fuse(given)
        (node,) = (node for node in fused.graph.node if node.op_type == "SpatialTransformer")
        (mode,) = (attribute for attribute in node.attribute if attribute.name == "padding_mode")
        mode.s = b"border"
        return fused, findings

    monkeypatch.setattr("stn_infer.repairs.passes.fuse", wrong)
    result = call(model, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {model}: output 'y' is off by ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_input_shape_in_the_wrong_form(model: Path, tmp_path: Path) -> None:
    result = call(model, "-o", tmp_path / "out.onnx", "--input-shape", "x=1,two,3")
    assert result.exit_code == 2 and "--input-shape takes NAME=2,3,64,64" in result.stderr


def test_the_only_input_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(flow_model().SerializeToString())
    assert call(path, "-o", tmp_path / "out.onnx", "--input-shape", "2,1,8,8").exit_code == 0


def test_a_missing_file(tmp_path: Path) -> None:
    result = call(tmp_path / "none.onnx", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1 and "does not exist" in result.stderr
