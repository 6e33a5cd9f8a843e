"""``lint``: report what in an ONNX file is wrong, unsupported or slow in some runtime, where, and what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.source import names_the_file, onnx_path
from stn_infer.budget import Budget
from stn_infer.errors import StnInferError
from stn_infer.lint_rules.context import SEVERITIES, LintFinding
from stn_infer.printing import shown

if TYPE_CHECKING:
    from stn_infer.proto.session import Stored

__all__ = ["LintFinding", "LintReport", "lint"]

SCHEMA = 1
_MOST_WEIGHTS = 1 << 30  # bytes; a larger model is not run, since a run needs as much memory


@dataclass(frozen=True)
class LintReport:
    """The findings of ``lint``.

    Attributes:
        path: the file.
        opset: of the file's default domain.
        ir_version: of the file.
        findings: the most severe first.
    """

    path: Path
    opset: int
    ir_version: int
    findings: tuple[LintFinding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each severity, zeros included."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def to_json(self) -> str:
        """One JSON object: ``schema`` (1), ``path``, ``opset``, ``ir_version``, ``counts``, ``findings``."""
        content = {
            "schema": SCHEMA,
            "path": str(self.path),
            "opset": self.opset,
            "ir_version": self.ir_version,
            "counts": self.counts,
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(content, indent=2)  # in ASCII: names can do nothing to a terminal

    def to_text(self) -> str:
        """One line per finding, and a line of counts."""
        lines = []
        for finding in self.findings:
            where = f" {finding.node}:" if finding.node else ""
            mark = " [*]" if finding.fixable else ""
            lines.append(f"{finding.severity}: {finding.code}{mark}:{where} {' '.join(finding.message.split())}")
        counted = ", ".join(f"{count} {severity}" for severity, count in self.counts.items())
        fixable = sum(finding.fixable for finding in self.findings)
        lines.append(
            f"{self.path} (opset {self.opset}): {counted}" + (f"; {fixable} [*] fixable by optimize" if fixable else "")
        )
        return "\n".join(map(shown, lines))


@names_the_file
def lint(model: str | Path, *, budget: Budget | None = None) -> LintReport:
    """Examine an ONNX file, which is not changed.

    Args:
        model: an ONNX file; external data are read from its folder.
        budget: limits for the analysis of an ONNX file that was not seen before; None: the environment's
            (:class:`~stn_infer.budget.Budget`).

    Raises:
        ModelError: it is unreadable or damaged, or not an ONNX file, or its analysis exceeds a limit.
    """
    from stn_infer.api.trusted import try_once
    from stn_infer.lint_rules import file as lint_file
    from stn_infer.lint_rules import sampler as lint_sampler
    from stn_infer.lint_rules.context import apply_rules, examine, rejection_of
    from stn_infer.proto.load import read_graph
    from stn_infer.proto.session import Stored
    from stn_infer.proto.traversal import opset_of
    from stn_infer.repairs.large_weights import light_copy

    path = onnx_path(model)
    whole = read_graph(path)
    verdict = try_once(path, graph=whole, budget=budget)
    opset = opset_of(whole)
    stored, light = Stored(whole, path.parent), light_copy(whole, path.parent)
    context = examine(
        light,
        whole,
        path.parent,
        lambda: rejection_of(stored) if verdict is None else verdict.rejection,
    )
    findings = apply_rules(context, (*lint_file.RULES, *lint_sampler.RULES))
    dependent = _untried(stored) if verdict is None else verdict.batch_dependent
    findings = (*findings, *_batch_dependent(dependent))
    return LintReport(path, opset, int(whole.ir_version), findings)


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
