"""Real parsers, asked about small files: what they take, and why they refuse the others, with the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from stn_infer.budget import Budget
from stn_infer.fusion.fuse import fuse
from stn_infer.repairs.inlined import inlined
from stn_infer.targets.judgment import Judgment, Reason
from stn_infer.targets.parsers import ask_parser, judge_here
from stn_infer.targets.target import Runtime, Target
from tests.support.onnx_files import F16, affine_grid_model, affine_model, flow_model, sampler_model
from tests.support.tensorrt_parts import module_or_skip
from tests.targets.test_known import in_branch, sample


def here(runtime: Runtime, model: onnx.ModelProto) -> Judgment:
    if runtime == "openvino":
        module_or_skip("openvino", "openvino")
    elif runtime == "tensorrt-rtx":
        module_or_skip("tensorrt_rtx", "tensorrt-rtx")
    return judge_here(runtime, None, model.SerializeToString(), "the parser")


RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino", "tensorrt-rtx")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_plain_operators_are_taken_by_all(runtime: Runtime) -> None:
    for model in (affine_model(), inlined(fuse(affine_model())[0])):
        assert here(runtime, model) == Judgment("the parser")


def test_functions_are_taken_where_the_importer_knows_them() -> None:
    fused = fuse(affine_model())[0]
    assert here("onnxruntime", fused).outcome == here("tensorrt-rtx", fused).outcome == "supported"
    assert here("openvino", fused).reasons == (Reason("no conversion rule for stn.SpatialTransformer", "sample"),)


# runtime, model, the node, a piece of the reason, where
CASES: list[tuple[Runtime, Any, str, str, str]] = [
    ("onnxruntime", lambda: affine_model(sampler="FlowWarp", domain="their"), "sample", "not a registered", ""),
    ("onnxruntime", lambda: affine_model(opset=28, ir_version=10), "", "Current official support", ""),
    ("onnxruntime", lambda: affine_model(ir_version=14), "", "Unsupported model IR version: 14", ""),
    ("onnxruntime", lambda: affine_model(opset=20, mode="bilinear"), "", "bilinear", ""),
    ("openvino", lambda: sample((3, 4, 5)), "sample", "only supported for 4D input tensors", ""),
    ("openvino", lambda: affine_model(sampler="FlowWarp", domain="their"), "sample", "rule for their.FlowWarp", ""),
    ("tensorrt-rtx", affine_grid_model, "affine", "AffineGrid has no importer", ""),
    ("tensorrt-rtx", lambda: flow_model(grid=F16), "sample", "`input` and `grid` must be of same type", ""),
    ("tensorrt-rtx", lambda: affine_model(sampler="FlowWarp", domain="their"), "sample", "Plugin not found", ""),
    ("tensorrt-rtx", in_branch, "grid_then_branch", "AffineGrid has no importer", "choice (If) / "),
    ("tensorrt-rtx", lambda: in_branch("their"), "inner", "AffineGrid has no importer", "choice (If) / "),
]


@pytest.mark.parametrize(("runtime", "make_model", "node", "piece", "where"), CASES)
def test_what_is_refused(runtime: Runtime, make_model: Any, node: str, piece: str, where: str) -> None:
    judgment = here(runtime, make_model())
    assert judgment.outcome == "refused"
    reason = judgment.reasons[0]
    assert reason.node == node and piece in reason.text and reason.within.startswith(where), reason
    assert "\n" not in reason.text and ".cpp" not in reason.text and "/_src/" not in reason.text


def test_every_reason_of_a_parser_is_told() -> None:
    model = affine_grid_model()
    again = onnx.NodeProto()
    again.CopyFrom(model.graph.node[3])
    again.name, again.output[0] = "again", "other"
    model.graph.node.insert(4, again)
    assert {reason.node for reason in here("tensorrt-rtx", model).reasons} == {"affine", "again"}


def test_a_node_without_a_name_has_that_of_its_output() -> None:
    model = affine_grid_model()
    model.graph.node[3].name = ""
    assert here("tensorrt-rtx", model).reasons[0].node == "grid"


def test_nearest_sampling_that_was_asked_for_is_no_misreading() -> None:
    for opset in (18, 20):
        assert here("tensorrt-rtx", affine_model(opset=opset, mode="nearest")).outcome == "supported"


@pytest.fixture
def target() -> Target:
    return Target("onnxruntime", "", "1.31.1")


def test_the_child_answers_as_this_process_does(target: Target, tmp_path: Path) -> None:
    """Of a file with external data, which only its path leads to."""
    path = tmp_path / "model.onnx"
    onnx.save(affine_model(ir_version=14), path, save_as_external_data=True, size_threshold=100)
    judgment = ask_parser(target, path, str(path), Budget())
    assert judgment.judge == "onnxruntime 1.31.1"
    assert [reason.text for reason in judgment.reasons] == [
        "Unsupported model IR version: 14, max supported IR version: 13"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_external_data_are_read(runtime: Runtime, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.bin"):
        onnx.save(affine_model(), tmp_path / name, save_as_external_data=True, size_threshold=100)
        judgment = ask_parser(Target(runtime, "", "1.0"), tmp_path / name, "model", Budget(seconds=0))
        assert judgment.outcome == "supported", judgment


def test_a_crash_is_a_reason(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    judgment = ask_parser(target, affine_model().SerializeToString(), "model.onnx", Budget())
    assert judgment.reasons == (Reason("its parser crashes on the file (SIGABRT)"),)


def test_a_limit_is_no_judgment(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    judgment = ask_parser(target, affine_model().SerializeToString(), "model.onnx", Budget(seconds=7))
    assert judgment.outcome == "not judged" and judgment.reasons == ()
    assert judgment.note.startswith("its analysis takes more than 7 s of CPU time")


def test_a_runtime_that_cannot_be_used_is_no_judgment(monkeypatch: pytest.MonkeyPatch) -> None:
    judgment = judge_here("tensorrt", None, sampler_model().SerializeToString(), "TensorRT 11.4")
    assert judgment.outcome == "not judged" and judgment.note.startswith("TensorRT cannot be imported")
