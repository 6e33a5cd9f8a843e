"""A report of lint as one HTML page that needs no other file and runs no script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape

from stn_infer.lint_rules.catalog import Rule, rule_of
from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import LintReport, remark, sentence
from stn_infer.printing import shown
from stn_infer.version import __version__

_OPEN = 20  # findings of a group beyond which they are folded

# Names are long and have no blanks: they may break anywhere, so that no line is wider than a telephone.
_STYLE = """
:root { color-scheme: light dark; --text: #1d2126; --dim: #5a6472; --page: #fff; --card: #f5f6f8; --line: #d9dde3;
  --error: #b3261e; --warning: #8a5a00; --info: #1f5fa8; --good: #1d6b36 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --dim: #9aa5b1; --page: #14171a; --card: #1e2227;
  --line: #343a42; --error: #ff8a80; --warning: #f2b84b; --info: #82b6f5; --good: #7fd39a } }
* { box-sizing: border-box; overflow-wrap: anywhere }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; color: var(--text);
  background: var(--page) }
h1 { font-size: 1.4rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 0 .5rem } p, ul { margin: .4rem 0 } ul { padding-left: 1.2rem }
code { font: .9em/1.4 ui-monospace, monospace; background: var(--card); padding: 0 .2em; border-radius: .2em }
.dim { color: var(--dim) }
.error { color: var(--error) } .warning { color: var(--warning) } .info { color: var(--info) }
.supported { color: var(--good) } .refused { color: var(--error) } .unjudged { color: var(--warning) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: .8rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; min-width: 0 }
.group { border-left: .25rem solid currentColor; padding-left: .8rem; margin: 1.2rem 0 }
.group > * { color: var(--text) } .group > h3 { color: inherit } summary { cursor: pointer; color: var(--dim) }
@media print { body { max-width: none; padding: 0; font-size: 11pt } .group, .card { break-inside: avoid-page }
  details::details-content { content-visibility: visible; block-size: auto } }
"""


def to_html(report: LintReport) -> str:
    """The page: a summary, the targets' verdicts, and the findings by rule with an explanation of each."""
    name = _text(report.path.name)
    parts = [
        f"<h1>{name}</h1>",
        f"<p>{_text(report.summary())}</p>",
        f'<p class="dim">{_text(report.path)}, IR version {report.ir_version}; stn-infer {_text(__version__)}</p>',
    ]
    if any(finding.fixable for finding in report.findings):
        parts.append(f"<p>Fix what is marked [*]: <code>stn-infer optimize {name} -o fixed.onnx</code></p>")
    if report.targets:
        parts += ["<h2>Targets</h2>", '<div class="cards">', *_targets(report), "</div>"]
    parts.append("<h2>Findings</h2>")
    parts += [part for group in report.groups() for part in _group(group)] or ["<p>None.</p>"]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>stn-infer lint: {name}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _targets(report: LintReport) -> Iterator[str]:
    for verdict in report.targets:
        kind = "unjudged" if verdict.outcome == "not judged" else verdict.outcome
        yield (
            f'<section class="card"><h3>{_text(verdict.target)}: <span class="{kind}">{verdict.outcome}</span></h3>'
            f"<p>{escape(remark(verdict))}</p>"
        )
        if verdict.unjudged:
            yield f'<p class="dim">Not judged: {_text(", ".join(verdict.unjudged))}</p>'
        yield "</section>"


def _group(group: list[LintFinding]) -> Iterator[str]:
    """The findings of one rule, severity and target."""
    first, rule = group[0], rule_of(group[0].code)
    target = f"{first.target}: " if first.target else ""
    title = _text(f"{first.severity}[{rule.number}] {target}{rule.summary}")
    yield f'<section class="group {first.severity}"><h3>{title}</h3>'
    lines = [f"<li>{_place(finding)}{escape(sentence(replace(finding, target='')))}</li>" for finding in group]
    yield f"<ul>{''.join(lines[:_OPEN])}</ul>"
    if len(lines) > _OPEN:
        yield f"<details><summary>{len(lines) - _OPEN} more</summary><ul>{''.join(lines[_OPEN:])}</ul></details>"
    yield f"{_explanation(rule)}</section>"


def _place(finding: LintFinding) -> str:
    mark = "[*] " if finding.fixable else ""
    node = f"<code>{_text(finding.node)}</code> " if finding.node else ""
    source = f'<span class="dim">({_text(finding.source)})</span> ' if finding.source else ""
    return f"{mark}{node}{source}"


def _explanation(rule: Rule) -> str:
    paragraphs = "".join(f"<p>{_text(paragraph)}</p>" for paragraph in rule.paragraphs)
    return f"<details><summary>What {rule.number} ({_text(rule.code)}) means</summary>{paragraphs}</details>"


def _text(value: object) -> str:
    return escape(shown(str(value)))
