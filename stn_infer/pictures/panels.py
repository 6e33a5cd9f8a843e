"""The panels of a sampler: its source with the sampled region, and the warped output; three slices of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stn_infer.arrays import Array
from stn_infer.pictures.look import WarpView
from stn_infer.pictures.slices import AXES, PLANES, crossing, cut, edges, middle, seen_from

#: Lowest and highest (x, y) that a panel shows.
Extent = tuple[Array, Array]

#: Lines of a mesh along each axis.
LINES = 8
# The largest margin around the source, in source sizes, in which a mesh outside it is shown.
_MARGIN = 0.3


@dataclass(frozen=True)
class Panel:
    """An image with lines.

    Attributes:
        label: what it shows.
        image: [C, H, W].
        limits: the values that are drawn black and white.
        lines: [L, 2] each, (x, y) in pixels.
        outline: likewise, drawn lightly: parts of a box before and behind the slice.
        origin: the point that becomes the output's first pixel; None in an output.
        extent: lowest and highest (x, y) to show; None: the image.
        note: a few characters in a corner.
    """

    label: str
    image: Array
    limits: tuple[float, float]
    lines: Sequence[Array] = ()
    outline: Sequence[Array] = ()
    origin: Array | None = None
    extent: Extent | None = None
    note: str = ""


def count_panels(warp: WarpView) -> int:
    """How many panels :func:`panels_of` makes."""
    return 6 if warp.source.ndim == 4 else 2


def extents_of(warps: Sequence[WarpView]) -> list[Extent]:
    """What the source's panels of one sampler show, so that all ``warps`` have one scale: a source, and all meshes."""
    size = warps[0].source.shape[1:]
    if len(size) == 2:
        return [_extent(size, [warp.points for warp in warps])]
    boxes = [edge for warp in warps for edge in edges(warp.points, LINES)]
    sizes = [cut(warps[0].source, across, 0).shape[1:] for across, *_ in PLANES]
    return [_extent(shape, [edge[:, flat] for edge in boxes]) for shape, (_, *flat) in zip(sizes, PLANES, strict=True)]


def panels_of(warp: WarpView, extents: Sequence[Extent]) -> list[Panel]:
    """The panels of one sampler on one sample, first those of its source, which show ``extents``."""
    points = np.where(np.isfinite(warp.points), warp.points, np.nan)
    count = 2 if warp.straight else LINES
    if warp.source.ndim == 4:
        return [*_box(warp, points, count, extents), *_warped_slices(warp)]
    lines = mesh_lines(points, count)
    return [
        Panel("input", warp.source, _range(warp.source), lines, origin=points[0, 0], extent=extents[0]),
        Panel("warped", warp.warped, _range(warp.warped)),
    ]


def _box(warp: WarpView, points: Array, count: int, extents: Sequence[Extent]) -> list[Panel]:
    """Slices of the source through the middle of the sampled box."""
    at = seen_from(points, warp.source.shape[1:])
    box, limits = edges(points, count), _range(warp.source)
    panels = []
    for (across, *flat), extent in zip(PLANES, extents, strict=True):
        panels.append(
            Panel(
                f"input, {AXES[across]}",
                cut(warp.source, across, at[across]),
                limits,
                [_joined(crossing(points, across, at[across], count)[..., flat])],
                [edge[:, flat] for edge in box],
                points[0, 0, 0][flat],
                extent,
                f"{AXES[across]} = {at[across]}",
            )
        )
    return panels


def _warped_slices(warp: WarpView) -> list[Panel]:
    """Slices of the warped volume through its middle, which the source's slices go through."""
    at, limits = middle(warp.warped.shape[1:])[::-1], _range(warp.warped)
    return [
        Panel(
            f"warped, {AXES[across]}",
            cut(warp.warped, across, at[across]),
            limits,
            note=f"{AXES[across]} = {at[across]}",
        )
        for across, *_ in PLANES
    ]


def _joined(segments: Array) -> Array:
    """Segments [M, 2, 2] as one line [3 M, 2] with gaps."""
    gaps = np.full((len(segments), 1, 2), np.nan)
    return np.concatenate([segments, gaps], axis=1).reshape(-1, 2)


def mesh_lines(points: Array, count: int) -> list[Array]:
    """``count`` rows and columns of ``points`` [H, W, 2], including the first and last, each [L, 2]."""
    rows = np.unique(np.linspace(0, points.shape[0] - 1, count).round().astype(int))
    columns = np.unique(np.linspace(0, points.shape[1] - 1, count).round().astype(int))
    return [points[row] for row in rows] + [points[:, column] for column in columns]


def _range(image: Array) -> tuple[float, float]:
    """Of the values as they are drawn, channels averaged unless they are colors; any range: inputs are normalized."""
    finite = visible(image)
    return float(finite.min()), float(finite.max())


def visible(image: Array) -> Array:
    """``image`` [C, ...] as it is drawn: [..., 3] of three channels, else their mean [...]."""
    finite = np.where(np.isfinite(image), image, 0.0).astype(np.float64)
    shown: Array = np.moveaxis(finite, 0, -1) if len(finite) == 3 else finite.mean(axis=0)
    return shown


def _extent(size: Sequence[int], meshes: Sequence[Array]) -> Extent:
    """An image of ``size`` (H, W) whole, and meshes [..., 2] up to a margin."""
    span = np.array(size[::-1], np.float64)  # (W, H)
    points = np.concatenate([mesh.reshape(-1, 2) for mesh in meshes])
    points = np.clip(points[np.isfinite(points).all(axis=1)], -_MARGIN * span, (1 + _MARGIN) * span)
    corners = np.array([[0.0, 0.0], span]) - 0.5
    around = np.concatenate([points - 0.02 * span, points + 0.02 * span, corners])
    return around.min(axis=0), around.max(axis=0)
