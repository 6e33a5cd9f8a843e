"""Names of files, nodes and labels can do nothing where they are shown."""

from __future__ import annotations

import csv
import io

import pytest

from stn_infer.errors import StnInferError, one_line
from stn_infer.printing import markdown_cell, shown, shown_lines, spreadsheet_cell

HOSTILE = {
    "title of the terminal": ("\x1b]0;pwned\x07x", r"\x1b]0;pwned\x07x"),
    "colors": ("\x1b[31mred", r"\x1b[31mred"),
    "one-byte control sequence": ("\x9b31mred", r"\x9b31mred"),
    "a forged line": ("a\nerror: b\r\nc", r"a\nerror: b\r\nc"),
    "right to left": ("gnp.\u202egpj", r"gnp.\u202egpj"),
    "isolates": ("\u2066a\u2069", r"\u2066a\u2069"),
    "zero width": ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
    "line separators": ("a\u2028b\u2029", r"a\u2028b\u2029"),
    "tags": ("a\U000e0041", r"a\U000e0041"),
    "bytes that are not UTF-8": ("caf\udce9", r"caf\udce9"),
    "backspace": ("safe\x08\x08\x08\x08evil", r"safe\x08\x08\x08\x08evil"),
}


@pytest.mark.parametrize(("name", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_what_could_do_something_is_escaped(name: str, expected: str) -> None:
    assert shown(name) == expected and shown(name).isprintable()
    shown(name).encode("utf-8")
    assert shown(shown(name)) == shown(name)
    assert "\x1b" not in one_line(StnInferError(name)) and one_line(name).isprintable()


def test_what_people_write_stays() -> None:
    for name in ("zero", "ünï.png", "数字/一.png", "שלום", "a b-c_d.png", "naïve ÷ 2", "🙂"):
        assert shown(name) == name and shown_lines(name) == name
    assert shown_lines("a\tb\nc\x1b[0m") == "a\tb\nc\\x1b[0m"


def test_cells_are_no_formulas() -> None:
    for text in ("=1+1", "+cmd", "@SUM(A1)", "-2+3", "\t=1"):
        assert spreadsheet_cell(text).startswith(("'", "\\t"))
    for text in ("-1.5", "+2e-7", "a=b", "", "0"):
        assert spreadsheet_cell(text) == text
    row = next(csv.reader(io.StringIO('"' + spreadsheet_cell("=HYPERLINK()") + '"')))
    assert row == ["'=HYPERLINK()"]


def test_cells_are_no_markup() -> None:
    assert markdown_cell("<img src=x onerror=y>|*a*`b`[c](d)") == (
        "&lt;img src=x onerror=y&gt;\\|\\*a\\*\\`b\\`\\[c\\](d)"
    )
    assert markdown_cell("a\n# b") == "a\\\\n\\# b" or markdown_cell("a\n# b") == "a\\n\\# b"
