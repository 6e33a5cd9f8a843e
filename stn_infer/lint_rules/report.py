"""The result of lint: its findings, a verdict for each target, and both as JSON and as the lines of a compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from stn_infer.json_text import json_text
from stn_infer.lint_rules.catalog import SEVERITIES, Severity
from stn_infer.lint_rules.context import LintFinding
from stn_infer.printing import shown

SCHEMA = 1
#: Findings of one rule and severity that are printed before the others are counted.
MOST_REPEATED = 3

Outcome = Literal["supported", "refused", "not judged"]
FailOn = Literal["error", "warning", "not-judged", "never"]
FAIL_ON: tuple[FailOn, ...] = get_args(FailOn)
#: The best first.
OUTCOMES: tuple[Outcome, ...] = ("supported", "not judged", "refused")

_COLORS: dict[str, str] = {"error": "1;31", "warning": "1;33", "info": "1;36"} | {
    **{"supported": "1;32", "refused": "1;31", "not judged": "1;33"},
}


@dataclass(frozen=True)
class TargetVerdict:
    """Whether one runtime takes the file, as it is.

    Attributes:
        target: such as ``tensorrt==10.3``.
        outcome: ``supported``, ``refused``, or ``not judged`` if nothing here can say it.
        judge: what says so: an installed parser with its version, or what is known of that version.
        unjudged: the operators of which nothing is known, with their numbers of nodes, or another reason.
        improved_by: the command whose result has a better outcome; "" if none is known.
        outcome_after: that outcome; None if there is none.
    """

    target: str
    outcome: Outcome
    judge: str
    unjudged: tuple[str, ...] = ()
    improved_by: str = ""
    outcome_after: Outcome | None = None


@dataclass(frozen=True)
class LintReport:
    """The findings of ``lint``.

    Attributes:
        path: the file.
        opset: of the file's default domain.
        ir_version: of the file.
        findings: the most severe first.
        targets: a verdict for each target, in the order in which they were given.
    """

    path: Path
    opset: int
    ir_version: int
    findings: tuple[LintFinding, ...]
    targets: tuple[TargetVerdict, ...] = ()

    def __str__(self) -> str:
        return self.to_text()

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each severity, zeros included."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def fails(self, on: Collection[FailOn]) -> bool:
        """Whether the file fails a check.

        Args:
            on: ``error``: a finding is an error, or a target refuses the file. ``warning`` and ``not-judged`` add
                warnings, and targets for which nothing here can judge the file. ``never``: it does not fail.
        """
        if "never" in on:
            return False
        unjudged = any(verdict.outcome == "not judged" for verdict in self.targets)
        return (
            bool(self.counts["error"])
            or ("warning" in on and bool(self.counts["warning"]))
            or ("not-judged" in on and unjudged)
        )

    def to_json(self) -> str:
        """One JSON object.

        ``schema`` (1), ``path``, ``opset``, ``ir_version``, ``counts``, ``findings``, ``targets``; fields may be added
        within a schema, and those that exist keep their meaning.
        """
        content = {
            "schema": SCHEMA,
            "path": str(self.path),
            "opset": self.opset,
            "ir_version": self.ir_version,
            "counts": self.counts,
            "findings": [{**asdict(finding), "rule": finding.rule} for finding in self.findings],
            "targets": [asdict(verdict) for verdict in self.targets],
        }
        return json_text(content)  # in ASCII: names can do nothing to a terminal

    def to_text(self, *, color: bool = False, most: int | None = MOST_REPEATED) -> str:
        """A line per finding and per target, and a summary last.

        Args:
            color: whether to color severities and outcomes for a terminal.
            most: findings of one rule and severity that are printed, before the others are counted; None: all.
        """

        def painted(text: str, kind: str) -> str:
            return f"\x1b[{_COLORS[kind]}m{text}\x1b[0m" if color else text

        lines = []
        file = shown(str(self.path))
        for group in self.groups():
            severity, label = group[0].severity, f"{group[0].severity}[{group[0].rule}]"
            for finding in group[:most]:
                mark = " [*]" if finding.fixable else ""
                lines.append(f"{file}:{place(finding)} {painted(label, severity)}{mark}: {sentence(finding)}")
            if most is not None and len(group) > most:
                target = f"{group[0].target}: " if group[0].target else ""
                more = f"and {len(group) - most} more (--all lists them)"
                lines.append(f"{file}: {painted(label, severity)}: {target}{more}")
        for verdict in self.targets:
            outcome = painted(verdict.outcome, verdict.outcome)
            lines.append(f"{file}: target {verdict.target}: {outcome} ({remark(verdict)})")
        lines.append(shown(self.summary()))
        return "\n".join(lines)

    def groups(self) -> Iterator[list[LintFinding]]:
        """The findings of each rule, severity and target, the most severe first."""
        groups: dict[tuple[Severity, str, str], list[LintFinding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.severity, finding.code, finding.target), []).append(finding)
        yield from groups.values()

    def summary(self) -> str:
        """The counts on one line."""
        counted = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in self.counts.items())
        fixable = sum(finding.fixable for finding in self.findings)
        outcomes = Counter(verdict.outcome for verdict in self.targets)
        judged = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in OUTCOMES if outcomes[outcome])
        return (
            f"{self.path} (opset {self.opset}): {counted}"
            + (f"; {fixable} [*] fixable by optimize" if fixable else "")
            + (f"; targets: {judged}" if judged else "")
        )


def place(finding: LintFinding) -> str:
    """Where a finding is, for a line: `` node NAME (net.py:7):``; "" for the whole file."""
    source = f" ({shown(finding.source)})" if finding.source else ""
    return f" node {shown(finding.node)}{source}:" if finding.node else ""


def sentence(finding: LintFinding) -> str:
    """A finding's message on one line, after the target that it concerns."""
    target = f"{finding.target}: " if finding.target else ""
    return shown(target + " ".join(finding.message.split()))


def remark(verdict: TargetVerdict) -> str:
    """Who judged, and what a command changes about it."""
    return shown(
        verdict.judge + (f"; {verdict.outcome_after} after {verdict.improved_by}" if verdict.improved_by else "")
    )
