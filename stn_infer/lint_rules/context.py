"""What a rule looks at, and what it finds; a rule is a function from the first to the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from stn_infer.errors import ModelError
from stn_infer.fusion.fuse import Finding
from stn_infer.fusion.samplers import UNKNOWN, Facts, SamplerNode, TensorFacts, find_samplers, infer_facts
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import opset_of
from stn_infer.repairs.passes import checker_problem, run_passes
from stn_infer.repairs.result import Repair

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class LintFinding:
    """One thing that will be slow or wrong, or that is worth knowing.

    Attributes:
        code: what kind of finding it is; stable between releases.
        severity: ``error``: a runtime gives wrong values or can't run it; ``warning``: slow, imprecise, or refused by
            some runtime; ``info``: good to know.
        node: the node's name (or its output's); "" where it is about the whole file.
        tensor: the tensor it is about; "" where there is none.
        message: what, why it matters, what to do.
        fixable: whether ``stn-infer optimize`` fixes it.
    """

    code: str
    severity: Severity
    node: str
    tensor: str
    message: str
    fixable: bool = False


@dataclass(frozen=True)
class LintContext:
    """What rules look at.

    Attributes:
        model: the file, its large weights detached.
        weights: the file with its weights, to look at these alone.
        folder: where external data lie.
        opset: of the default domain.
        samplers: all of them.
        facts: types and shapes, by tensor.
        findings: what the fusion would make of each sampler.
        repairs: what ``optimize`` would fix, and what it couldn't.
        not_fused: why the fusion could not be run; "" where it could.
        invalid: why onnx's checker refuses the file as it will be repaired; "" where it doesn't.
        load_error: why onnxruntime refuses that; "" where it doesn't.
    """

    model: onnx.ModelProto
    weights: onnx.ModelProto
    folder: Path
    opset: int
    samplers: tuple[SamplerNode, ...]
    facts: Facts
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]
    not_fused: str
    invalid: str
    load_error: str

    def fact(self, tensor: str) -> TensorFacts:
        """What is known of a tensor."""
        return self.facts.get(tensor, UNKNOWN)

    def fixable(self, code: str) -> bool:
        """Whether ``optimize`` fixes findings of this code here."""
        return any(entry.code == code and entry.done for entry in self.repairs)

    def unfixable(self, code: str) -> str:
        """Why not, as a clause to add to a message; "" where it does, or has nothing to say."""
        reasons = [entry.message for entry in self.repairs if entry.code == code and not entry.done]
        return f" (not repaired: {reasons[0]})" if reasons else ""

    def pass_finding(self, sampler: SamplerNode) -> Finding | None:
        """What the fusion would make of a sampler."""
        return next((finding for finding in self.findings if finding.node == sampler.name), None)


LintRule = Callable[[LintContext], Iterator[LintFinding]]


def examine(model: onnx.ModelProto, weights: onnx.ModelProto, folder: Path) -> LintContext:
    """Find out everything that the rules ask for: a dry run of what ``optimize`` does.

    Args:
        model: its large weights detached.
        weights: the file as it was read, external data in ``folder``.
    """
    rewritten = run_passes(model)
    return LintContext(
        model,
        weights,
        folder,
        opset_of(model),
        find_samplers(model),
        infer_facts(model),
        rewritten.findings,
        rewritten.repairs,
        rewritten.not_fused,
        checker_problem(rewritten.repaired),
        _load_error(rewritten.repaired),
    )


def _load_error(model: onnx.ModelProto) -> str:
    try:
        open_session(Stored(model))
    except ModelError as error:
        return str(error)
    return ""


def apply_rules(context: LintContext, rules: tuple[LintRule, ...]) -> tuple[LintFinding, ...]:
    """The rules' findings, the gravest first."""
    found = [finding for rule in rules for finding in rule(context)]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
