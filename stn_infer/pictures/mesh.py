"""The lines of a sampling mesh as they are drawn, cut at a box and where a quotient goes to infinity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stn_infer.arrays import Array

#: Lowest and highest (x, y).
Extent = tuple[Array, Array]
#: Lines of a mesh along each axis.
LINES = 8


def outline_indices(size: tuple[int, int]) -> tuple[Array, Array]:
    """The rows and columns of the edge of a mesh of ``size`` (H, W), closed, clockwise from the top left."""
    height, width = size
    down, across = np.arange(height), np.arange(width)
    rows = [np.zeros(width, int), down[1:], np.full(max(width - 1, 0), height - 1), down[-2::-1]]
    columns = [across, np.full(max(height - 1, 0), width - 1), across[-2::-1], np.zeros(max(height - 1, 0), int)]
    return np.concatenate(rows), np.concatenate(columns)


def inner_indices(size: tuple[int, int], counts: tuple[int, int]) -> Iterator[tuple[Array, Array]]:
    """The rows and columns of each line inside of a mesh of ``size`` (H, W), without those at its edge.

    ``counts``: how many rows and columns there are, the two at the edge included.
    """
    height, width = size
    for row in _spread(height, counts[0]):
        yield np.full(width, row), np.arange(width)
    for column in _spread(width, counts[1]):
        yield np.arange(height), np.full(height, column)


def counts_for(points: Array, apart: float) -> tuple[int, int]:
    """How many rows and columns of a mesh [H, W, 2] are drawn, at most LINES: so that they are ``apart``."""
    counts = []
    for axis in (0, 1):
        steps = np.linalg.norm(np.diff(points, axis=axis), axis=-1).sum(axis=axis)  # the length of each line across
        finite = steps[np.isfinite(steps)]
        length = float(np.median(finite)) if len(finite) else 0.0
        counts.append(int(min(max(length / apart + 1, 2), LINES)))
    return counts[0], counts[1]


def _spread(length: int, count: int) -> list[int]:
    found = np.unique(np.linspace(0, length - 1, count).round().astype(int)).tolist()
    return [each for each in found if 0 < each < length - 1]


def pieces(line: Array, w: Array | None, box: Extent) -> list[tuple[Array, bool]]:
    """The parts of a line inside of ``box``, each with whether its ``w`` is positive.

    Between neighbors of different sign, the exact line goes to infinity and returns from the opposite side: with
    points X / w, its direction there is that from one neighbor away from the other.

    Args:
        line: points [L, 2] in pixels; those that are not finite interrupt it.
        w: their denominators [L]; None: they are no quotients.
        box: what lies outside is cut off.
    """
    low, high = box
    positive = np.ones(len(line), bool) if w is None else w > 0
    if ((line >= low) & (line <= high)).all() and (positive == positive[:1]).all():
        return [(line, bool(positive[0]))] if len(line) else []
    if w is not None:  # on the horizon: its neighbors go to infinity anyway
        line, positive = line[w != 0], positive[w != 0]
    far = 4 * float(np.abs(high - low).max())
    found: list[tuple[list[Array], bool]] = []
    for first, last, sign in _segments(line, positive, box, far):
        cut = _cut(first, last, box)
        if cut is None:
            continue
        if found and found[-1][1] == sign and np.array_equal(found[-1][0][-1], cut[0]):
            found[-1][0].append(cut[1])
        else:
            found.append(([*cut], sign))
    return [(np.stack(points), sign) for points, sign in found]


def _segments(line: Array, positive: Array, box: Extent, far: float) -> Iterator[tuple[Array, Array, bool]]:
    for first, last, one, other in zip(line[:-1], line[1:], positive[:-1], positive[1:], strict=True):
        if not (np.isfinite(first).all() and np.isfinite(last).all()):
            continue
        if one == other:
            yield first, last, bool(one)
            continue
        away = first - last
        length = float(np.hypot(*away))
        if length == 0:
            continue
        for point, direction, sign in ((first, away / length, one), (last, -away / length, other)):
            reach = far + float(np.abs(point - np.clip(point, *box)).max())
            ray = (point, point + reach * direction)
            yield (*(ray if point is first else ray[::-1]), bool(sign))


def _cut(first: Array, last: Array, box: Extent) -> tuple[Array, Array] | None:
    """The part of a segment in ``box`` (Liang and Barsky 1984); None if there is none."""
    start, end, step = 0.0, 1.0, last - first
    for axis in range(2):
        low, high = float(box[0][axis] - first[axis]), float(box[1][axis] - first[axis])
        if step[axis] == 0:
            if low > 0 or high < 0:
                return None
            continue
        one, other = sorted((low / float(step[axis]), high / float(step[axis])))
        start, end = max(start, one), min(end, other)
    if start > end:
        return None
    return (first if start == 0 else first + start * step), (last if end == 1 else first + end * step)
