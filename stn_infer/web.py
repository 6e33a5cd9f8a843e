"""HTML pages that need no other file and run no script: one frame and one style for all reports."""

from __future__ import annotations

from html import escape

from stn_infer.printing import shown

#: Colors by role, for light and dark screens; paper is light. Text has a contrast of at least 4.5 to what is behind it.
COLORS = """
:root { color-scheme: light dark; --text: #1d2126; --dim: #5a6472; --page: #fff; --card: #f5f6f8; --line: #d9dde3;
  --error: #b3261e; --warning: #8a5a00; --info: #1f5fa8; --good: #1d6b36; --ours: #3b73c9; --theirs: #8a94a0 }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --dim: #9aa5b1; --page: #14171a;
  --card: #1e2227; --line: #343a42; --error: #ff8a80; --warning: #f2b84b; --info: #82b6f5; --good: #7fd39a;
  --ours: #4478c4; --theirs: #6b7683 } }
"""

# Names are long and have no blanks: they may break anywhere, so that no line is wider than a telephone.
_STYLE = """* { box-sizing: border-box; overflow-wrap: anywhere }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; color: var(--text);
  background: var(--page) }
h1 { font-size: 1.4rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 0 .5rem } p, ul { margin: .4rem 0 } ul { padding-left: 1.2rem }
code { font: .9em/1.4 ui-monospace, monospace; background: var(--card); padding: 0 .2em; border-radius: .2em }
.dim { color: var(--dim) } summary { cursor: pointer; color: var(--dim) }
@media print { body { max-width: none; padding: 0; font-size: 11pt }
  details::details-content { content-visibility: visible; block-size: auto } }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A page.

    Args:
        title: any text; it is escaped here.
        body: HTML, whose text is escaped already (see :func:`text`).
        style: CSS beside what all pages have.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{COLORS}{_STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def text(value: object) -> str:
    """Any text as HTML shows it: on one line, without markup and without characters that cannot be seen."""
    return escape(shown(str(value)))
