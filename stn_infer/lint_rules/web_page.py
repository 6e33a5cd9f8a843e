"""A report of lint as one HTML page that needs no other file and runs no script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape

from stn_infer.lint_rules.catalog import Rule, rule_of
from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import LintReport, remark, sentence
from stn_infer.version import __version__
from stn_infer.web import document, text

_OPEN = 20  # findings of a group beyond which they are folded

_STYLE = """
.error { color: var(--error) } .warning { color: var(--warning) } .info { color: var(--info) }
.supported { color: var(--good) } .refused { color: var(--error) } .unjudged { color: var(--warning) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: .8rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; min-width: 0 }
.group { border-left: .25rem solid currentColor; padding-left: .8rem; margin: 1.2rem 0 }
.group > * { color: var(--text) } .group > h3 { color: inherit }
@media print { .group, .card { break-inside: avoid-page } }
"""


def to_html(report: LintReport) -> str:
    """The page: a summary, the targets' verdicts, and the findings by rule with an explanation of each."""
    name = text(report.path.name)
    parts = [
        f"<h1>{name}</h1>",
        f"<p>{text(report.summary())}</p>",
        f'<p class="dim">{text(report.path)}, IR version {report.ir_version}; stn-infer {text(__version__)}</p>',
    ]
    if any(finding.fixable for finding in report.findings):
        parts.append(f"<p>Fix what is marked [*]: <code>stn-infer optimize {name} -o fixed.onnx</code></p>")
    if report.targets:
        parts += ["<h2>Targets</h2>", '<div class="cards">', *_targets(report), "</div>"]
    parts.append("<h2>Findings</h2>")
    parts += [part for group in report.groups() for part in _group(group)] or ["<p>None.</p>"]
    return document(f"stn-infer lint: {report.path.name}", "\n".join(parts), _STYLE)


def _targets(report: LintReport) -> Iterator[str]:
    for verdict in report.targets:
        kind = "unjudged" if verdict.outcome == "not judged" else verdict.outcome
        yield (
            f'<section class="card"><h3>{text(verdict.target)}: <span class="{kind}">{verdict.outcome}</span></h3>'
            f"<p>{escape(remark(verdict))}</p>"
        )
        if verdict.unjudged:
            yield f'<p class="dim">Not judged: {text(", ".join(verdict.unjudged))}</p>'
        yield "</section>"


def _group(group: list[LintFinding]) -> Iterator[str]:
    """The findings of one rule, severity and target."""
    first, rule = group[0], rule_of(group[0].code)
    target = f"{first.target}: " if first.target else ""
    title = text(f"{first.severity}[{rule.number}] {target}{rule.summary}")
    yield f'<section class="group {first.severity}"><h3>{title}</h3>'
    lines = [f"<li>{_place(finding)}{escape(sentence(replace(finding, target='')))}</li>" for finding in group]
    yield f"<ul>{''.join(lines[:_OPEN])}</ul>"
    if len(lines) > _OPEN:
        yield f"<details><summary>{len(lines) - _OPEN} more</summary><ul>{''.join(lines[_OPEN:])}</ul></details>"
    yield f"{_explanation(rule)}</section>"


def _place(finding: LintFinding) -> str:
    mark = "[*] " if finding.fixable else ""
    node = f"<code>{text(finding.node)}</code> " if finding.node else ""
    source = f'<span class="dim">({text(finding.source)})</span> ' if finding.source else ""
    return f"{mark}{node}{source}"


def _explanation(rule: Rule) -> str:
    paragraphs = "".join(f"<p>{text(paragraph)}</p>" for paragraph in rule.paragraphs)
    return f"<details><summary>What {rule.number} ({text(rule.code)}) means</summary>{paragraphs}</details>"
