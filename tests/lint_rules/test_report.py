"""The lines of a report: where, which rule, how often; colors, and names that would act in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import FailOn, LintReport, TargetVerdict


def finding(node: str = "sample", **fields: str) -> LintFinding:
    return LintFinding("cpu-sampler", "warning", node, "grid", "it may run\non the CPU", **fields)


def report(*findings: LintFinding) -> LintReport:
    return LintReport(Path("model.onnx"), 18, 9, findings)


def test_repeated_findings_are_counted() -> None:
    found = report(*(finding(f"n{index}") for index in range(15)), LintFinding("no-sampler", "info", "", "", "none"))
    lines = found.to_text().splitlines()
    assert lines[2] == "model.onnx: node n2: warning[W006]: it may run on the CPU"
    assert lines[3] == "model.onnx: warning[W006]: and 12 more (--all lists them)"
    assert lines[4] == "model.onnx: info[I010]: none"
    assert lines[5:] == ["model.onnx (opset 18): 0 errors, 15 warnings, 1 info"]
    assert len(found.to_text(most=None).splitlines()) == 17


def test_three_of_a_kind_are_all_printed() -> None:
    assert "more" not in report(*(finding(f"n{index}") for index in range(3))).to_text()


def test_colors_are_of_the_severity_alone() -> None:
    line = report(finding()).to_text(color=True).splitlines()[0]
    assert line == "model.onnx: node sample: \x1b[1;33mwarning[W006]\x1b[0m: it may run on the CPU"


def test_names_do_not_act() -> None:
    hostile = LintFinding("cpu-sampler", "warning", "a\x1b[2J", "", "b\x1b[2J", source="c\x1b[2J:1")
    assert report(hostile).to_text(color=True).count("\x1b") == 2  # of our own color


def test_findings_of_each_target_are_counted_apart_and_verdicts_come_last() -> None:
    refusals = [
        LintFinding("target-refused", "error", f"n{index}", "", "refused", target=target)
        for target in ("openvino", "tensorrt==8.6")
        for index in range(4)
    ]
    verdicts = (
        TargetVerdict("openvino", "refused", "OpenVINO 2026.4.1", improved_by="optimize", outcome_after="supported"),
        TargetVerdict("onnxruntime", "supported", "onnxruntime 1.31.1"),
    )
    lines = LintReport(Path("model.onnx"), 18, 9, tuple(refusals), verdicts).to_text().splitlines()
    assert lines[3] == "model.onnx: error[E010]: openvino: and 1 more (--all lists them)"
    assert lines[4] == "model.onnx: node n0: error[E010]: tensorrt==8.6: refused"
    assert lines[-3:] == [
        "model.onnx: target openvino: refused (OpenVINO 2026.4.1; supported after optimize)",
        "model.onnx: target onnxruntime: supported (onnxruntime 1.31.1)",
        "model.onnx (opset 18): 8 errors, 0 warnings, 0 infos; targets: 1 supported, 1 refused",
    ]


def test_a_target_that_is_not_judged_fails_where_it_is_asked_to() -> None:
    found = LintReport(Path("m"), 18, 9, (), (TargetVerdict("tensorrt==8.6", "not judged", "known"),))
    assert not found.fails(["error", "warning"]) and found.fails(["not-judged"])
    assert not found.fails(["not-judged", "never"])


@pytest.mark.parametrize(
    ("severity", "on", "fails"),
    [
        ("error", ("error",), True),
        ("error", ("warning",), True),
        ("error", ("never", "error"), False),
        ("warning", ("error",), False),
        ("warning", ("error", "warning"), True),
        ("info", ("warning",), False),
    ],
)
def test_what_fails(severity: str, on: tuple[FailOn, ...], fails: bool) -> None:
    found = report(LintFinding("custom-sampler", severity, "", "", "a sampler"))  # type: ignore[arg-type]
    assert found.fails(on) is fails
