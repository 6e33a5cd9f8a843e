"""A lint rule's input and output: a rule is a function from a LintContext to LintFindings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from stn_infer.errors import ModelError
from stn_infer.fusion.fuse import Finding
from stn_infer.fusion.samplers import UNKNOWN, Facts, SamplerNode, TensorFacts, find_samplers, infer_facts
from stn_infer.lint_rules.catalog import SEVERITIES, Severity, rule_of
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import opset_of
from stn_infer.repairs.passes import checker_problem, run_passes
from stn_infer.repairs.result import Repair


@dataclass(frozen=True)
class LintFinding:
    """One lint finding.

    Attributes:
        code: the kind of finding; stable between releases.
        severity: ``error``: a runtime gives wrong values or can't run the file; ``warning``: slow, imprecise, or
            rejected by a runtime; ``info``: other information.
        node: the node's name (or its output's); "" if the finding concerns the whole file.
        tensor: the tensor concerned; "" if there is none.
        message: the problem, its effect, and the remedy.
        fixable: whether ``stn-infer optimize`` fixes it.
        source: the line of the model's source that the node comes from, such as ``net.py:7``; "" if the file does not
            say it.
        target: the target that the finding concerns; "" if it concerns none in particular.
    """

    code: str
    severity: Severity
    node: str
    tensor: str
    message: str
    fixable: bool = False
    source: str = ""
    target: str = ""

    @property
    def rule(self) -> str:
        """The number of its rule, such as ``E009``; stable between releases."""
        return rule_of(self.code).number


@dataclass(frozen=True)
class LintContext:
    """The input of the rules.

    Attributes:
        model: the file, with large weights detached.
        weights: the file with its weights, for rules about weights.
        folder: the folder of external data.
        opset: the version of the default domain.
        samplers: all samplers in the file.
        facts: types and shapes, by tensor.
        findings: the fusion's result for each sampler.
        repairs: what ``optimize`` would fix, and what it could not fix.
        optimized: the file that ``optimize`` would write, with large weights detached.
        not_fused: why the fusion could not run; "" if it could.
        invalid: why onnx's checker rejects the repaired file; "" if it accepts it.
        load_error: why onnxruntime rejects the repaired file, or the file itself if there was nothing to repair; "" if
            it accepts it.
    """

    model: onnx.ModelProto
    weights: onnx.ModelProto
    folder: Path
    opset: int
    samplers: tuple[SamplerNode, ...]
    facts: Facts
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]
    optimized: onnx.ModelProto
    not_fused: str
    invalid: str
    load_error: str

    def fact(self, tensor: str) -> TensorFacts:
        """What is known about a tensor."""
        return self.facts.get(tensor, UNKNOWN)

    def fixable(self, code: str) -> bool:
        """Whether ``optimize`` fixes findings with this code in this file."""
        return any(entry.code == code and entry.done for entry in self.repairs)

    def unfixable(self, code: str) -> str:
        """Why ``optimize`` cannot fix findings with this code, as a clause for a message; "" if there is no reason."""
        reasons = [entry.message for entry in self.repairs if entry.code == code and not entry.done]
        return f" (not fixable: {reasons[0]})" if reasons else ""

    def pass_finding(self, sampler: SamplerNode) -> Finding | None:
        """The fusion's result for a sampler."""
        return next((finding for finding in self.findings if finding.node == sampler.name), None)


LintRule = Callable[[LintContext], Iterator[LintFinding]]


def examine(
    model: onnx.ModelProto, weights: onnx.ModelProto, folder: Path, rejection: Callable[[], str]
) -> LintContext:
    """Builds the rules' context, with a dry run of ``optimize``.

    Args:
        model: the file, with large weights detached.
        weights: the file as read, with external data in ``folder``.
        folder: the folder of external data.
        rejection: returns why onnxruntime rejects the file; "" if it accepts it.
    """
    rewritten = run_passes(model)
    unchanged = rewritten.repaired is model
    return LintContext(
        model,
        weights,
        folder,
        opset_of(model),
        find_samplers(model),
        infer_facts(model),
        rewritten.findings,
        rewritten.repairs,
        rewritten.model,
        rewritten.not_fused,
        checker_problem(rewritten.repaired),
        rejection() if unchanged else rejection_of(Stored(rewritten.repaired)),
    )


def rejection_of(model: Stored) -> str:
    """Why onnxruntime rejects a model; "" if it accepts it."""
    try:
        open_session(model, label="the file")
    except ModelError as error:
        return str(error)
    return ""


def findings_of(context: LintContext, rules: tuple[LintRule, ...]) -> tuple[LintFinding, ...]:
    """Returns the findings of all rules."""
    return tuple(finding for rule in rules for finding in rule(context))


def by_severity(findings: Iterable[LintFinding]) -> tuple[LintFinding, ...]:
    """Returns the most severe findings first, otherwise in the order given."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
