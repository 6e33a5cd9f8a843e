"""``lint``: report what in an ONNX file is wrong, unsupported or slow in some runtime, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stn_infer.api.source import names_the_file, onnx_path
from stn_infer.budget import Budget
from stn_infer.errors import StnInferError
from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import LintReport

if TYPE_CHECKING:
    from stn_infer.proto.session import Stored

__all__ = ["LintFinding", "LintReport", "explain", "lint", "render"]

Format = Literal["text", "json", "html", "sarif"]

_MOST_WEIGHTS = 1 << 30  # bytes; a larger model is not run, since a run needs as much memory


def explain(rule: str) -> str:
    """What a rule of lint means, whom it concerns, and the remedy.

    Args:
        rule: its number, such as ``E009``, or its name.

    Raises:
        UsageError: there is no such rule.
    """
    from stn_infer.lint_rules.catalog import find_rule

    return find_rule(rule).explain()


def render(report: LintReport, format: Format) -> str:
    """A report as a file: ``text`` (all findings), ``json``, ``html`` (one page of its own) or ``sarif`` (2.1.0)."""
    from stn_infer.lint_rules.sarif import to_sarif
    from stn_infer.lint_rules.web_page import to_html

    if format == "html":
        return to_html(report)
    if format == "sarif":
        return to_sarif(report)
    return report.to_json() if format == "json" else report.to_text(most=None)


@names_the_file
def lint(model: str | Path, *, targets: Iterable[str] = (), budget: Budget | None = None) -> LintReport:
    """Examine an ONNX file, which is not changed.

    Args:
        model: an ONNX file; external data are read from its folder.
        targets: runtimes to judge the file for: ``tensorrt==VERSION``, ``tensorrt-rtx``, ``onnxruntime``, ``openvino``.
            Installed ones are asked, each in a process of its own; of the others only what is known is said.
        budget: limits for the analysis of an ONNX file that was not seen before, and for each target's parser; None:
            the environment's (:class:`~stn_infer.budget.Budget`).

    Raises:
        ModelError: it is unreadable or damaged, or not an ONNX file, or its analysis exceeds a limit.
        UsageError: a target is not known.
    """
    from stn_infer.api.trusted import try_once
    from stn_infer.lint_rules import file as lint_file
    from stn_infer.lint_rules import operands as lint_operands
    from stn_infer.lint_rules import sampler as lint_sampler
    from stn_infer.lint_rules.context import by_severity, examine, findings_of, rejection_of
    from stn_infer.lint_rules.source_lines import source_lines
    from stn_infer.proto.load import read_graph
    from stn_infer.proto.session import Stored
    from stn_infer.proto.traversal import opset_of
    from stn_infer.repairs.large_weights import SMALL_MODEL, bytes_of_weights, light_copy
    from stn_infer.targets.judge import Subject, judge_targets
    from stn_infer.targets.target import parse_targets

    asked = parse_targets(targets)
    path = onnx_path(model)
    whole = read_graph(path)
    budget = budget or Budget.from_environment()
    verdict = try_once(path, graph=whole, budget=budget)
    stored, light = Stored(whole, path.parent), light_copy(whole, path.parent)
    context = examine(
        light,
        whole,
        path.parent,
        lambda: rejection_of(stored) if verdict is None else verdict.rejection,
    )
    findings = findings_of(context, (*lint_file.RULES, *lint_sampler.RULES, *lint_operands.RULES))
    dependent = _untried(stored) if verdict is None else verdict.batch_dependent
    sources = source_lines(whole)
    complete = bytes_of_weights(whole) < SMALL_MODEL
    subject = Subject(path, light, context.optimized, complete, sources, budget)
    verdicts, refusals = judge_targets(asked, subject)
    found = (replace(finding, source=sources.get(finding.node, "")) for finding in findings)
    every = by_severity((*found, *_batch_dependent(dependent), *refusals))
    return LintReport(path, opset_of(whole), int(whole.ir_version), every, verdicts)


def _batch_dependent(names: Sequence[str]) -> list[LintFinding]:
    """A finding if outputs of a sample changed with the other samples of its batch in the trial."""
    from stn_infer.repairs.dependence import dependence_note

    if not names:
        return []
    message = f"{dependence_note(names)}; normalize each sample on its own, or run one sample at a time"
    return [LintFinding("batch-dependent", "warning", "", names[0], message)]


def _untried(model: Stored) -> tuple[str, ...]:
    """The batch-dependent outputs of a file that is trusted, and therefore was not tried."""
    from stn_infer.repairs.large_weights import bytes_of_weights
    from stn_infer.repairs.trial import batch_dependent

    if bytes_of_weights(model.model) > _MOST_WEIGHTS:
        return ()
    with suppress(StnInferError):
        return tuple(batch_dependent(model))
    return ()
