"""Tables that fit the terminal: where one is too narrow, nothing is cut off, but laid out in another way.

A last column of free text then moves below its row. What still does not fit loses the columns that say the least, and a
note names them. The widest of the others are wrapped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stn_infer.printing import shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_INDENT, _GAP = "    ", "  "
_LEAST_TEXT = 24  # columns for free text beside the others
_NARROWEST = 14  # wider columns are wrapped where nothing else helps
_LEAST_WIDTH = 16  # a terminal of fewer columns breaks the lines itself


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain text, which rich's console can print.

    Attributes:
        headings: of the columns.
        rows: a cell for each.
        title: printed above; empty: none.
        numbers: the columns that are aligned to the right.
        text: whether the last column is free text, which may be wrapped.
        optional: headings of columns to leave out where it does not fit, the first first.
        sections: whether an empty line stands between rows whose first cells differ.
        colors: the styles of cells by their text.
    """

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    numbers: frozenset[int] = frozenset()
    text: bool = False
    optional: tuple[str, ...] = ()
    sections: bool = False
    colors: Mapping[str, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines in the console's width."""
        from rich.text import Text

        if self.title:
            yield Text(shown(self.title))
        for line in layout(self, options.max_width):
            parts = (Text(part, self.colors.get(part.strip(), "")) for part in line)
            yield Text("", overflow="fold").join(parts)


def fits(table: Table, width: int) -> bool:
    """Whether a table without free text fits, with all its columns."""
    widths = {i: max(len(shown(row[i])) for row in (table.headings, *table.rows)) for i in range(len(table.headings))}
    return _sum(widths) <= width


def layout(table: Table, width: int) -> list[list[str]]:
    """The lines of a table of at most ``width`` columns, but no fewer than 16, each in parts that may have a color."""
    width = max(width, _LEAST_WIDTH)
    rows = [tuple(map(shown, row)) for row in table.rows]
    table = replace(table, headings=tuple(map(shown, table.headings)))
    columns, widths, left_out = _columns(table, rows, width)
    used = _sum(widths)
    text = max((len(row[-1]) for row in (table.headings, *rows)), default=0) if table.text else 0
    beside = table.text and used + len(_GAP) + min(text, _LEAST_TEXT) <= width

    def lines_of(row: tuple[str, ...], above: bool = False) -> list[list[str]]:
        cells = [_wrapped(row[index], widths[index]) for index in columns]
        lines = []
        for number in range(max(map(len, cells))):
            parts = []
            for index, cell in zip(columns, cells, strict=True):
                part = cell[number] if number < len(cell) else ""
                parts += [part.rjust(widths[index]) if index in table.numbers else part.ljust(widths[index]), _GAP]
            lines.append(parts[:-1])
        if table.text and (beside or not above):
            room = width - used - len(_GAP) if beside else width - len(_INDENT)
            wrapped = textwrap.wrap(row[-1], room)
            for number, piece in enumerate(wrapped):
                if beside and number < len(lines):
                    lines[number] += [_GAP, piece]
                else:
                    lines.append([" " * (used + len(_GAP)) if beside else _INDENT, piece])
        return lines

    lines = lines_of(table.headings, above=True)
    lines.append(["─" * min(width, used + (len(_GAP) + text if beside else 0))])
    for row, before in zip(rows, (None, *rows), strict=False):
        if table.sections and before is not None and before[0] != row[0]:
            lines.append([""])
        lines += lines_of(row)
    if left_out:
        note = f"left out to fit {width} columns: {', '.join(left_out)}; --json has all"
        lines += [[line] for line in textwrap.wrap(note, width)]
    return [_stripped(line) for line in lines]


def _stripped(line: list[str]) -> list[str]:
    """A line without blanks at its end."""
    while len(line) > 1 and not line[-1].strip():
        line = line[:-1]
    return [*line[:-1], line[-1].rstrip()]


def _wrapped(cell: str, width: int) -> list[str]:
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width)


def _columns(
    table: Table, rows: Sequence[tuple[str, ...]], width: int
) -> tuple[list[int], dict[int, int], tuple[str, ...]]:
    """The columns that are shown beside each other, their widths, and the headings of those that are left out."""
    columns = list(range(len(table.headings) - table.text))
    left_out: list[str] = []
    widths: dict[int, int] = {}
    for name in ("", *(name for name in table.optional if name in table.headings)):
        if name:
            left_out.append(name)
            columns = [index for index in columns if table.headings[index] != name]
        widths = {index: max(len(row[index]) for row in (table.headings, *rows)) for index in columns}
        if _sum(widths) <= width:
            break
    while _sum(widths) > width and max(widths.values()) > _NARROWEST:
        widest = max(widths, key=lambda index: widths[index])
        widths[widest] -= 1
    return columns, widths, tuple(left_out)


def _sum(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)
