"""The lines of a report: where, which rule, how often; colors, and names that would act in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import FailOn, LintReport


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
