"""`lint`: each finding has the right code, node and tensor, and is marked as fixable if optimize fixes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.api.lint import LintFinding, LintReport, lint
from stn_infer.api.optimize import optimize
from stn_infer.lint_rules.sampler import _identity_error
from tests.support.onnx_files import F16, F32, affine_grid_model, affine_model, constant, flow_model, half_model, make


def examined(model: onnx.ModelProto, folder: Path) -> LintReport:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return lint(path)


def find(report: LintReport, code: str) -> LintFinding:
    found = [finding for finding in report.findings if finding.code == code]
    assert found, f"no {code} among {[finding.code for finding in report.findings]}"
    return found[0]


def half_grid_model(width: int, kind: int) -> onnx.ModelProto:
    """A flow field with a half-precision grid; its error depends only on the image width."""
    nodes = [
        helper.make_node("Cast", ["flow"], ["grid"], to=kind),
        helper.make_node("Cast", ["x"], ["image"], to=kind),
        helper.make_node("GridSample", ["image", "grid"], ["z"], name="sample"),
        helper.make_node("Cast", ["z"], ["y"], to=F32),
    ]
    inputs: dict[str, Any] = {"x": (F32, ["n", 1, 4, width]), "flow": (F32, ["n", 4, 4, 2])}
    return make(nodes, inputs, {"y": (F32, ["n", 1, 4, 4])}, [], opset=22 if kind == TensorProto.BFLOAT16 else 18)


def two_samplers() -> onnx.ModelProto:
    """One linear grid and one clamped grid."""
    model = affine_model()
    model.graph.node[-1].output[0] = "first"
    model.graph.node.extend(
        [
            helper.make_node("Clip", ["grid", "low", "high"], ["clamped"], name="clamp"),
            helper.make_node("GridSample", ["first", "clamped"], ["y"], name="second", mode="bilinear"),
        ]
    )
    model.graph.initializer.extend([constant(-10, "low", np.float32), constant(10, "high", np.float32)])
    return model


def bad_weights(value: float) -> onnx.ModelProto:
    model = affine_model()
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "fc_w")
    values = np.array(numpy_helper.to_array(tensor))
    values[2, 3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, "fc_w"))
    return model


def listed_weights() -> onnx.ModelProto:
    model = affine_model(opset=16, ir_version=3)
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    return model


def cubic_volume() -> onnx.ModelProto:
    nodes = [helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample", mode="cubic")]
    inputs: dict[str, Any] = {"x": (F32, ["n", 1, 4, 4, 4]), "grid": (F32, ["n", 2, 2, 2, 3])}
    return make(nodes, inputs, {"y": (F32, ["n", 1, 2, 2, 2])}, [], opset=20)


def newer_operator() -> onnx.ModelProto:
    model = affine_model(opset=20, mode="linear")
    model.graph.node[-1].output[0] = "sampled"
    model.graph.node.append(helper.make_node("Gelu", ["sampled"], ["y"], name="gelu"))
    return model


MM = {"interpolation_mode": 2, "padding_mode": 0, "align_corners": 0}
# model, code, severity, node, tensor, a piece of the message, fixable
CASES: list[tuple[Any, str, str, str, str, str, bool]] = [
    (lambda: affine_model(opset=20, mode="linear"), "opset-20-trap", "error", "sample", "grid", "NEAREST", True),
    (newer_operator, "opset-20-trap", "error", "sample", "grid", "Gelu (node 'gelu') does not exist", False),
    (affine_grid_model, "affine-grid", "warning", "affine", "grid", "no importer in any TensorRT", True),
    (lambda: affine_grid_model(volume=True), "volume-sampler", "warning", "sample", "grid", "11.2.1", True),
    (lambda: affine_grid_model(volume=True), "cpu-sampler", "warning", "sample", "grid", "none for volumes", True),
    (cubic_volume, "cubic-volume", "error", "sample", "grid", "no runtime", False),
    (lambda: affine_model(mode="bicubic"), "cubic-sampler", "info", "sample", "grid", "16 pixels", False),
    (lambda: flow_model(grid=F16), "mixed-types", "warning", "sample", "grid", "float and the grid float16", True),
    (lambda: flow_model(image=F16), "mixed-types", "warning", "sample", "grid", "float16 and the grid float", True),
    (lambda: flow_model(image=F16), "cpu-sampler", "warning", "sample", "grid", "not for float16", True),
    (lambda: half_grid_model(1024, F16), "half-grid", "warning", "sample", "grid", "0.25 px at width 1024", True),
    (lambda: half_grid_model(1024, TensorProto.BFLOAT16), "half-grid", "warning", "sample", "grid", "2 px", True),
    (lambda: half_grid_model(64, F16), "half-grid", "info", "sample", "grid", "0.016 px at width 64", True),
    (lambda: affine_model(batch=4), "static-batch", "warning", "", "x", "batch size 4", False),
    (affine_model, "static-size", "info", "", "x", "8x8", False),
    (affine_model, "fusable-grid", "warning", "sample", "grid", "6 values per sample", True),
    (affine_model, "tf32", "info", "sample", "grid", "0.0011 px at width 8", False),
    (flow_model, "plain-sampler", "info", "sample", "grid", "optimize writes stn::Sampler at the same grid", True),
    (flow_model, "dense-flow", "info", "sample", "grid", "flow field", False),
    (two_samplers, "grid-not-linear", "info", "second", "clamped", "Clip", False),
    (lambda: affine_model(corners=True), "convention-mix", "info", "sample", "grid", "0.50 px", False),
    (lambda: affine_model(align_corners=1), "convention-mix", "info", "sample", "grid", "0.44 px", False),
    (lambda: affine_model(opset=28, ir_version=10), "opset-too-new", "error", "", "", "up to 26", True),
    (lambda: affine_model(ir_version=14), "ir-too-new", "error", "", "", "up to 13", True),
    (listed_weights, "weights-as-inputs", "warning", "", "w", "constants", True),
    (lambda: bad_weights(float("nan")), "nan-weights", "error", "", "fc_w", "NaN", False),
    (lambda: bad_weights(float("inf")), "infinite-weights", "info", "", "fc_w", "mask", False),
    (
        lambda: affine_model(opset=11, domain="com.microsoft", ir_version=6),
        *("custom-sampler", "warning", "sample", "grid", "com.microsoft::GridSample runs only in onnxruntime", True),
    ),
    (
        lambda: affine_model(opset=11, sampler="grid_sampler", domain="mmdeploy", attributes=MM, ir_version=6),
        *("custom-sampler", "error", "sample", "grid", "mmdeploy::grid_sampler runs only in its own runtime", True),
    ),
    (
        lambda: affine_model(sampler="GridSample3D", attributes=MM),
        *("custom-sampler", "error", "sample", "y", "its kernels have no bicubic mode", False),
    ),
    (
        lambda: affine_model(sampler="FlowWarp", domain="their", attributes={}),
        *("custom-sampler", "error", "sample", "y", "their::FlowWarp is a sampler of its own runtime", False),
    ),
    (lambda: affine_model(opset=12, ir_version=6), "custom-sampler", "error", "sample", "grid", "at opset 12", True),
]


@pytest.mark.parametrize("make_model, code, severity, node, tensor, piece, fixable", CASES)
def test_found(
    make_model: Any, code: str, severity: str, node: str, tensor: str, piece: str, fixable: bool, tmp_path: Path
) -> None:
    finding = find(examined(make_model(), tmp_path), code)
    assert (finding.severity, finding.node, finding.tensor) == (severity, node, tensor)
    assert piece in finding.message and finding.fixable == fixable


def test_an_optimized_file_has_no_error_and_no_warning(tmp_path: Path) -> None:
    optimize(_saved(affine_grid_model(), tmp_path), tmp_path / "out.onnx")
    report = lint(tmp_path / "out.onnx")
    assert report.counts == {"error": 0, "warning": 0, "info": len(report.findings)}
    assert {finding.code for finding in report.findings} == {"static-size", "fused", "tf32"}


@pytest.mark.parametrize("make_model", [case[0] for case in CASES if case[-1]])
def test_fixable_findings_are_gone_after_optimize(make_model: Any, tmp_path: Path) -> None:
    path = _saved(make_model(), tmp_path)
    before = {(finding.code, finding.node) for finding in lint(path).findings if finding.fixable}
    optimize(path, tmp_path / "out.onnx")
    after = {(finding.code, finding.node) for finding in lint(tmp_path / "out.onnx").findings}
    assert before and not before & after


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_equal_conventions_give_no_finding(tmp_path: Path) -> None:
    for model in (affine_model(), affine_model(corners=True, align_corners=1)):
        assert "convention-mix" not in {finding.code for finding in examined(model, tmp_path).findings}


def test_the_identity_error_equals_the_convention_tables() -> None:
    """At width 100 the error is at most half a pixel for either mix."""
    assert _identity_error(100, corners=True) == pytest.approx(0.5)
    assert _identity_error(100, corners=False) == pytest.approx(0.495)


def test_a_file_without_a_sampler(tmp_path: Path) -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [])
    assert [finding.code for finding in examined(model, tmp_path).findings] == ["no-sampler"]


def test_an_unknown_sampler_is_not_no_sampler(tmp_path: Path) -> None:
    codes = {finding.code for finding in examined(affine_model(sampler="FlowWarp", domain="their"), tmp_path).findings}
    assert "custom-sampler" in codes and "no-sampler" not in codes


@pytest.mark.parametrize("op", ["Neg", "GridSample"])
def test_a_call_with_too_many_inputs_is_an_error(op: str, tmp_path: Path) -> None:
    """Also where a repair inlines the function, which drops the input."""
    formal = ["a", "p"][: 1 if op == "Neg" else 2]
    body = [helper.make_node(op, formal, ["z"], **({} if op == "Neg" else {"mode": "linear"}))]
    function = helper.make_function("f", "g", formal, ["z"], body, [helper.make_opsetid("", 20)])
    call = helper.make_node("g", [*["x", "p"][: len(formal)], "x"], ["y"], domain="f")
    image, grid = (F32, ["n", 1, 4, 4]), (F32, ["n", 4, 4, 2])
    model = make([call], {"x": image, "p": grid}, {"y": image}, [], opset=20, domains=("f",), functions=[function])
    onnx.save(model, tmp_path / "model.onnx")
    (found,) = [entry for entry in lint(tmp_path / "model.onnx").findings if entry.code == "does-not-run"]
    assert found.severity == "error" and "cannot exceed number of formal parameters" in found.message


def test_samplers_in_subgraphs_are_examined(tmp_path: Path) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node("GridSample", ["x", "grid"], [name], name=f"in_{name}", mode="linear")],
            name,
            [],
            [helper.make_tensor_value_info(name, F32, None)],
        )
        for name in ("then", "else")
    ]
    node = helper.make_node("If", ["yes"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1])
    inputs: dict[str, Any] = {"x": (F32, [1, 1, 4, 4]), "grid": (F32, [1, 4, 4, 2])}
    model = make([node], inputs, {"y": (F32, [1, 1, 4, 4])}, [constant(True, "yes")], opset=20)
    report = examined(model, tmp_path)
    caught = [finding for finding in report.findings if finding.code == "opset-20-trap"]
    assert {finding.node for finding in caught} == {"in_then", "in_else"}
    assert all("a subgraph of 'choice'" in finding.message and finding.fixable for finding in caught)


def test_external_weights_are_examined(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(bad_weights(float("nan")), path, save_as_external_data=True, location="weights.bin", size_threshold=200)
    assert find(lint(path), "nan-weights").tensor == "fc_w"


def test_json_has_a_fixed_layout(tmp_path: Path) -> None:
    report = examined(affine_model(opset=20, mode="linear"), tmp_path)
    content = json.loads(report.to_json())
    assert list(content) == ["schema", "path", "opset", "ir_version", "counts", "findings", "targets"]
    assert content["schema"] == 1 and content["opset"] == 20 and content["ir_version"] == 9
    assert list(content["counts"]) == ["error", "warning", "info"]
    for finding in content["findings"]:
        fields = ["code", "severity", "node", "tensor", "message", "fixable", "source", "target", "rule"]
        assert list(finding) == fields
    order = ["error", "warning", "info"]
    severities = [order.index(finding["severity"]) for finding in content["findings"]]
    assert severities == sorted(severities)


def test_half_precision_throughout(tmp_path: Path) -> None:
    report = examined(half_model(1024), tmp_path)
    assert "0.25 px at width 1024" in find(report, "half-grid").message


def test_the_source_line_of_a_node(tmp_path: Path) -> None:
    model = affine_model()
    frames = [("/site-packages/torch/nn/module.py", 5), ("/home/me/net.py", 7), ("/x/torch/nn/functional.py", 9)]
    trace = "\n".join(f'File "{file}", line {line}, in forward\n    y = f(x)' for file, line in frames)
    model.graph.node[-1].metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
    report = examined(model, tmp_path)
    assert find(report, "fusable-grid").source == "/home/me/net.py:7"
    assert find(report, "static-size").source == ""
    assert "model.onnx: node sample (/home/me/net.py:7): warning[W007] [*]: " in report.to_text()
