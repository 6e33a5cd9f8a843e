"""A verdict for each target: what its own parser says, or what is known of it, and which command changes that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from stn_infer.budget import Budget
from stn_infer.errors import ModelError
from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import OUTCOMES, Outcome, TargetVerdict
from stn_infer.repairs.inlined import inlined
from stn_infer.targets.judgment import Judgment
from stn_infer.targets.known import judge_by_facts
from stn_infer.targets.parsers import ask_parser
from stn_infer.targets.target import Target

_MOST_OPERATORS = 8  # in a message


@dataclass(frozen=True)
class Subject:
    """What is judged.

    Attributes:
        path: the file.
        model: the file without large weights.
        optimized: what ``optimize`` would write, from ``model``; ``model`` itself if it would change nothing.
        complete: whether ``model`` has all weights, so that parsers can be asked about ``optimized``.
        sources: lines of the model's source by node.
        budget: of each parser.
    """

    path: Path
    model: onnx.ModelProto
    optimized: onnx.ModelProto
    complete: bool
    sources: Mapping[str, str]
    budget: Budget

    @cached_property
    def candidates(self) -> dict[str, onnx.ModelProto]:
        """What commands would write, by command."""
        found = {} if self.optimized is self.model else {"optimize": self.optimized}
        if self.optimized.functions:
            with suppress(ModelError):  # the command refuses it as well
                found["optimize --functions inline"] = inlined(self.optimized)
        return found


def judge_targets(
    targets: Sequence[Target], subject: Subject
) -> tuple[tuple[TargetVerdict, ...], tuple[LintFinding, ...]]:
    """Returns a verdict for each target, and a finding for each reason against the file."""
    verdicts, findings = [], list[LintFinding]()
    for target in targets:
        judgment = _judged(target, subject, None)
        command, outcome_after = _improvement(target, subject, judgment)
        outcome, unjudged = judgment.outcome, tuple(filter(None, (judgment.note, *judgment.unjudged)))
        verdict = TargetVerdict(str(target), outcome, judgment.judge, unjudged, command, outcome_after)
        verdicts.append(verdict)
        # that nothing known refuses a file shows nothing about a parser that refused another
        is_sure = outcome_after == "supported" or not target.installed
        findings += _findings(judgment, verdict, command if is_sure else "", subject.sources)
    return tuple(verdicts), tuple(findings)


def _judged(target: Target, subject: Subject, candidate: onnx.ModelProto | None) -> Judgment:
    """Judge the file, or a candidate in its place."""
    model = subject.model if candidate is None else candidate
    if not target.installed or not (candidate is None or subject.complete):
        return judge_by_facts(model, target)
    content = subject.path if candidate is None else candidate.SerializeToString()
    judgment = ask_parser(target, content, str(subject.path), subject.budget)
    if judgment.outcome != "not judged":
        return judgment
    known = judge_by_facts(model, target)  # may still refuse it
    return known if known.reasons else judgment


def _improvement(target: Target, subject: Subject, judgment: Judgment) -> tuple[str, Outcome | None]:
    """The first command with the best outcome, if that is better than the file's own."""
    best: tuple[str, Outcome | None] = ("", None)
    outcome = judgment.outcome
    if outcome == "not judged" and target.installed:  # a limit was exceeded, which says nothing about other files
        return best
    for command, model in subject.candidates.items() if outcome != "supported" else ():
        found = _judged(target, subject, model).outcome
        if OUTCOMES.index(found) < OUTCOMES.index(outcome):
            best, outcome = (command, found), found
    return best


def _findings(
    judgment: Judgment, verdict: TargetVerdict, fixed_by: str, sources: Mapping[str, str]
) -> Iterator[LintFinding]:
    if verdict.outcome == "not judged":
        operators, more = judgment.unjudged, len(judgment.unjudged) - _MOST_OPERATORS
        listed = ", ".join(operators[:_MOST_OPERATORS]) + (f" and {more} more operators" if more > 0 else "")
        message = f"not judged: {'; '.join(filter(None, (judgment.note, listed)))}"
        yield LintFinding("target-not-judged", "info", "", "", message, target=verdict.target)
    for reason in judgment.reasons:
        within = f" (in {reason.within})" if reason.within else ""
        remedy = f"; {fixed_by} fixes it" if fixed_by else ""
        yield LintFinding(
            *("target-refused", "error", reason.node, "", f"{reason.text}{within}{remedy}"),
            fixable=fixed_by == "optimize",
            source=sources.get(reason.node, ""),
            target=verdict.target,
        )
