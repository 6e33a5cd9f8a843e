"""Names are data: text from files and models as it may be shown in a terminal, a table or a report.

A model file chooses the names of its nodes, tensors and labels, and a folder those of its files. Shown as they are,
they could move a terminal's cursor, forge a line of a report, turn text around, or become a formula or markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from stn_infer.json_text import json_text

# Control characters, soft hyphens, zero-width characters, line separators, and marks that change the direction of text.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff\ud800-\udfff]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~])")


def counted(number: int, noun: str) -> str:
    """A number of things, whose plural ends in s: ``1 sample``, ``2 samples``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown(text: str) -> str:
    """``text`` on one line, characters that can't be seen or do something written as escapes such as ``\\x1b``."""
    return _INVISIBLE.sub(_escape, text)


def shortened(text: str, longest: int = 42) -> str:
    """As :func:`shown`, cut after ``longest`` characters."""
    text = shown(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shown_lines(text: str) -> str:
    """As :func:`shown`, for text of several lines of our own: line breaks and tabs stay."""
    return _INVISIBLE.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), text)


def spreadsheet_cell(text: str) -> str:
    """``text`` for a CSV file that is opened in a spreadsheet: never a formula."""
    text = shown(text)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def markdown_cell(text: str) -> str:
    """``text`` for a Markdown page: no markup, no HTML, no end of a table's cell."""
    return html.escape(_MARKDOWN.sub(r"\\\1", shown(text)), quote=False)


class Printed:
    """A result whose text is what its command prints; a notebook shows the same."""

    def lines(self) -> Sequence[str]:
        """The lines; names in them may have any characters."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(map(shown, self.lines()))

    def to_json(self) -> str:
        """The result as JSON, as its command prints with ``--json``: see :mod:`stn_infer.json_text`."""
        return json_text(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
