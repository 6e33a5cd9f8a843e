"""Where the panels of a picture lie, in pixels: a column per sample, one below the other, with room for lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from stn_infer.pictures.panels import Panel

_GAP, _ROW_GAP, _EDGE = 14, 12, 10
_NAME, _LABEL, _LINE = 20, 26, 22  # the height of a name and of a line below a column, the width of a row's label
_SMALL = 100  # images up to this size are shown with whole pixels
_LONGEST = 5.0  # the aspect from which on images are no longer, but thinner
_SMALLEST, _LARGEST = 160, 380  # sides of a square panel
_WIDEST, _HIGHEST = 1750, 1400  # of all panels together, as far as they are not smaller than the smallest


@dataclass(frozen=True)
class Layout:
    """The places of all panels, from the top left of the picture.

    Attributes:
        width, height: of the picture.
        lefts, widths: of the columns.
        tops, heights: of the rows.
        sides: how far lines reach beyond the images to the left and to the right.
        above, below: how far they reach beyond the images of each row.
        sizes: (width, height) of each panel's image, by column and row.
        labels: the x of the rows' labels' middle.
    """

    width: int
    height: int
    lefts: tuple[int, ...]
    widths: tuple[int, ...]
    tops: tuple[int, ...]
    heights: tuple[int, ...]
    sides: tuple[int, int]
    above: tuple[int, ...]
    below: tuple[int, ...]
    sizes: tuple[tuple[tuple[int, int], ...], ...]
    labels: int

    def place(self, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a panel's image, in the middle of its column and row."""
        width, height = self.sizes[column][row]
        return (
            self.lefts[column] + (self.widths[column] - width) // 2,
            self.tops[row] + (self.heights[row] - height) // 2,
            width,
            height,
        )


def unit_for(columns: Sequence[Sequence[Panel]]) -> int:
    """The side of a square panel: larger in a picture of few."""
    shapes = [[_size(panel.size, 1000) for panel in column] or [(1000, 1000)] for column in columns]
    across = sum(max(width for width, _ in column) for column in shapes)
    down = max(sum(height for _, height in column) for column in shapes)
    return max(_SMALLEST, min(_LARGEST, 1000 * _WIDEST // across, 1000 * _HIGHEST // down))


def arranged(frames: Sequence[Sequence[Sequence[Panel]]], unit: int, lines_below: int, lines_above: int = 0) -> Layout:
    """The layout of a picture, or of all frames of an animation.

    Args:
        frames: panels by frame, column and row; a column without panels is as large as a square one.
        unit: about the side of a square panel.
        lines_below: the most lines of text below a column.
        lines_above: of text above everything.
    """
    first = frames[0]
    side = _whole(unit, [panel for column in first for panel in column])
    sizes = tuple(tuple(_size(panel.size, side) for panel in column) for column in first)
    rows = max(map(len, sizes), default=0) or 1
    widths = tuple(max((width for width, _ in column), default=side) for column in sizes)
    heights = tuple(max((column[row][1] for column in sizes if row < len(column)), default=side) for row in range(rows))
    sides, above, below = [0, 0], [0] * rows, [0] * rows
    for columns in frames:
        for panels, column in zip(columns, sizes, strict=True):
            for row, (panel, size) in enumerate(zip(panels, column, strict=True)):
                left, top, right, bottom = _beyond(panel, size)
                sides = [max(sides[0], left), max(sides[1], right)]
                above[row], below[row] = max(above[row], top), max(below[row], bottom)
    gap = max(_GAP, sum(sides) + 2)
    start = _EDGE + _LABEL + max(4, sides[0])
    lefts = tuple(start + sum(widths[:index]) + gap * index for index in range(len(widths)))
    tops = [_EDGE + _NAME + lines_above * (_LINE + 6) + max(4, above[0])]
    for row in range(1, rows):
        tops.append(tops[-1] + heights[row - 1] + max(_ROW_GAP, below[row - 1] + above[row] + 2))
    return Layout(
        width=lefts[-1] + widths[-1] + max(4, sides[1]) + _EDGE,
        height=tops[-1] + heights[-1] + max(4, below[-1]) + _LINE * lines_below + _EDGE,
        lefts=lefts,
        widths=widths,
        tops=tuple(tops),
        heights=heights,
        sides=(sides[0], sides[1]),
        above=tuple(above),
        below=tuple(below),
        sizes=sizes,
        labels=_EDGE + _LABEL // 2,
    )


def _whole(unit: int, panels: Sequence[Panel]) -> int:
    """The side near ``unit`` at which the pixels of most small square images are whole pixels of the picture."""
    small = {panel.size[0] for panel in panels if len(set(panel.size)) == 1 and panel.size[0] <= _SMALL}
    sides = range(round(unit * 0.85), round(unit * 1.25) + 1)
    return min(sides, key=lambda side: (sum(side % size != 0 for size in small), abs(side - unit)))


def _size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of an image of ``size`` (H, W) with the area of a square of this side."""
    aspect = max(size[1], 1) / max(size[0], 1)
    longer = side * sqrt(min(max(aspect, 1 / aspect), _LONGEST))
    width, height = (longer, longer / aspect) if aspect >= 1 else (longer * aspect, longer)
    return max(2, round(width)), max(2, round(height))


def _beyond(panel: Panel, size: tuple[int, int]) -> list[int]:
    """How many pixels of the picture the lines of a panel reach beyond its image: left, top, right, bottom."""
    if panel.extent is None:
        return [0, 0, 0, 0]
    (left, top), (right, bottom) = panel.extent
    height, width = panel.size
    across, down = size[0] / width, size[1] / height
    return [
        ceil(max(0.0, each))
        for each in (
            (-0.5 - left) * across,
            (-0.5 - top) * down,
            (right - width + 0.5) * across,
            (bottom - height + 0.5) * down,
        )
    ]
