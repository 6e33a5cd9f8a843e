"""Verdicts and findings: which source judges, and which command changes the outcome."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from stn_infer.budget import Budget
from stn_infer.lint_rules.report import Outcome
from stn_infer.repairs.passes import run_passes
from stn_infer.targets import judge
from stn_infer.targets.judge import Subject, judge_targets
from stn_infer.targets.judgment import Judgment, Reason
from stn_infer.targets.target import Target
from tests.support.onnx_files import affine_grid_model, affine_model, sampler_model

OPENVINO = Target("openvino", "", "2026.4.1")
REFUSED = Judgment("OpenVINO 2026.4.1", (Reason("no conversion rule for stn.Sampler", "sampler"),))
Ask = Callable[..., Judgment]


def subject(model: onnx.ModelProto, complete: bool = True, sources: dict[str, str] | None = None) -> Subject:
    return Subject(Path("model.onnx"), model, run_passes(model).model, complete, sources or {}, Budget())


def answers(monkeypatch: pytest.MonkeyPatch, ask: Callable[[onnx.ModelProto | None], Judgment]) -> list[Path | bytes]:
    """The parser's answers, by the model that it is asked about (None: the file); what it was asked about."""
    asked: list[Path | bytes] = []

    def ask_parser(target: Target, model: Path | bytes, name: str, budget: Budget) -> Judgment:
        asked.append(model)
        return ask(None if isinstance(model, Path) else onnx.load_from_string(model))

    monkeypatch.setattr(judge, "ask_parser", ask_parser)
    return asked


def test_the_command_that_helps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser takes nothing with functions, so the first candidate that it takes is the second one."""
    asked = answers(
        monkeypatch,
        lambda model: REFUSED if model is None or model.functions else Judgment("OpenVINO 2026.4.1"),
    )
    (verdict,), (finding,) = judge_targets([OPENVINO], subject(affine_model(), sources={"sampler": "net.py:3"}))
    assert (verdict.outcome, verdict.improved_by, verdict.outcome_after) == (
        "refused",
        "optimize --functions inline",
        "supported",
    )
    assert (finding.code, finding.severity, finding.node, finding.source) == (
        *("target-refused", "error", "sampler", "net.py:3"),
    )
    assert finding.message == "no conversion rule for stn.Sampler; optimize --functions inline fixes it"
    assert not finding.fixable and finding.target == "openvino"
    assert asked[0] == Path("model.onnx") and len(asked) == 3


@pytest.mark.parametrize(("changed", "command"), [("supported", "optimize"), ("refused", "")])
def test_what_optimize_writes_is_asked_about(changed: Outcome, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Judgment("OpenVINO 2026.4.1")
    answers(monkeypatch, lambda model: REFUSED if model is None or changed == "refused" else taken)
    (verdict,), (finding,) = judge_targets([OPENVINO], subject(affine_grid_model()))
    assert verdict.improved_by == command and finding.fixable is bool(command)
    assert finding.message.endswith("; optimize fixes it") is bool(command)


def test_a_file_that_is_taken_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, lambda model: Judgment("OpenVINO 2026.4.1"))
    (verdict,), findings = judge_targets([OPENVINO], subject(affine_model()))
    assert (verdict.outcome, verdict.outcome_after, len(asked), findings) == ("supported", None, 1, ())


def test_large_models_are_not_sent_without_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, lambda model: REFUSED)
    (verdict,), (finding,) = judge_targets([OPENVINO], subject(sampler_model(), complete=False))
    assert asked == [Path("model.onnx")]
    assert verdict.outcome_after == "not judged"  # by what is known: the inlined file has no function
    assert not finding.fixable and "fixes it" not in finding.message


def test_a_limit_leaves_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda model: Judgment("OpenVINO 2026.4.1", note="its analysis takes more than 60 s"))
    (verdict,), (finding,) = judge_targets([OPENVINO], subject(affine_model()))
    assert verdict.outcome == "not judged" and verdict.unjudged == ("its analysis takes more than 60 s",)
    assert finding.message == "not judged: its analysis takes more than 60 s" and finding.severity == "info"
    (verdict,), _ = judge_targets([OPENVINO], subject(sampler_model()))
    assert verdict.outcome == "refused" and verdict.judge == (
        "what is known of openvino, whose installed parser could not judge it"
    )


def test_what_is_not_judged_is_listed() -> None:
    (verdict,), (finding,) = judge_targets([Target("tensorrt", "10.3", "")], subject(affine_model()))
    assert verdict.outcome == "not judged" and len(verdict.unjudged) == 7
    assert finding.message.startswith("not judged: Reshape (2 nodes), ") and finding.code == "target-not-judged"
    model = affine_model()
    model.opset_import.append(onnx.helper.make_opsetid("their", 1))
    for index in range(9):
        model.graph.node[-1].output[0] = f"t{index}"
        model.graph.node.append(onnx.helper.make_node(f"Op{index}", [f"t{index}"], ["y"], domain="their"))
    (verdict,), (finding,) = judge_targets([Target("tensorrt", "10.3", "")], subject(model))
    assert len(verdict.unjudged) == 16 and finding.message.endswith(" and 8 more operators")


def test_known_facts_judge_what_optimize_writes() -> None:
    (verdict,), findings = judge_targets([Target("tensorrt", "10.8", "")], subject(affine_grid_model()))
    assert (verdict.outcome, verdict.improved_by, verdict.outcome_after) == ("refused", "optimize", "not judged")
    assert [finding.node for finding in findings] == ["affine", "sample"]
    assert all(finding.fixable and finding.message.endswith("; optimize fixes it") for finding in findings)
