"""The panels of one sample: each sampled image with its regions, and what was sampled; three slices of volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stn_infer.arrays import Array
from stn_infer.pictures.look import WarpView
from stn_infer.pictures.mesh import LINES, Extent, counts_for, inner_indices, outline_indices, pieces
from stn_infer.pictures.slices import AXES, PLANES, crossing, cut, edges, middle, seen_from
from stn_infer.pipeline.annotate import COLORS
from stn_infer.preprocess.pixels import denormalize
from stn_infer.preprocess.rule import Preprocess

# The largest margin around the source, in source sizes, in which a mesh outside of it is shown.
_MARGIN = 0.3
# How far apart the lines of a mesh are at least, in sides of a square as large as the source.
_APART = 0.06
# Values are those of a picture if they exceed the pixels' range by at most this share of it.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Region:
    """What one sampler reads of an image, as lines [L, 2] of points (x, y) in pixels.

    Attributes:
        color: of its lines.
        outline: its edge.
        mesh: lines inside.
        faint: drawn lightly: what lies behind a camera, or before and behind a slice.
        origin: the point that becomes the output's first pixel.
    """

    color: str
    outline: Sequence[Array]
    mesh: Sequence[Array]
    faint: Sequence[Array]
    origin: Array


@dataclass(frozen=True)
class Panel:
    """An image with regions.

    Attributes:
        label: what it shows.
        image: [H, W] gray or [H, W, 3], from 0 to 1.
        regions: what is sampled of it.
        color: of its frame and label; empty: neutral.
        extent: lowest and highest (x, y) of all that is drawn; None: the image.
        note: a few characters in a corner.
    """

    label: str
    image: Array
    regions: Sequence[Region] = ()
    color: str = ""
    extent: Extent | None = None
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.image.shape[:2]
        return height, width


def panels_of(warps: Sequence[WarpView]) -> list[Panel]:
    """The panels of one sample: for each sampled tensor, the image and below it what its samplers return."""
    found: list[Panel] = []
    for together in _shared(warps):
        views = [warps[index] for index in together]
        several = len(warps) > 1
        names = [f" {index + 1}" if several else "" for index in together]
        colors = [COLORS[index % len(COLORS)] for index in together]
        if views[0].source.ndim == 4:
            found += _volume(views[0], names[0], colors[0])
            continue
        scale = _Scale.of(views)
        regions = [_region(view, color) for view, color in zip(views, colors, strict=True)]
        everyone = len(together) == len(warps)
        found.append(
            Panel(
                "input" if everyone else "input" + " +".join(names),
                scale.drawn(views[0].source),
                regions,
                extent=_extent(views[0].source.shape[1:], regions),
            )
        )
        for view, name, color in zip(views, names, colors, strict=True):
            found.append(Panel(f"warped{name}", scale.drawn(view.warped), color=color if several else ""))
    return found


def _shared(warps: Sequence[WarpView]) -> list[list[int]]:
    """The positions of the samplers that read the same image, in graph order; volumes have slices of their own."""
    found: list[list[int]] = []
    for index, warp in enumerate(warps):
        for together in found:
            first = warps[together[0]]
            if warp.source.ndim == 3 and warp.tensor == first.tensor and np.array_equal(warp.source, first.source):
                together.append(index)
                break
        else:
            found.append([index])
    return found


def _region(warp: WarpView, color: str) -> Region:
    height, width = warp.source.shape[1:]
    size = np.array([width, height], np.float64)
    box = (-size - 1, 2 * size)
    rows_and_columns = outline_indices(warp.points.shape[:2])
    front = warp.w is None or bool(np.median(np.sign(warp.w)) >= 0)
    outline, faint = _parted(warp, [rows_and_columns], box, front)
    mesh: list[Array] = []
    if not warp.straight:
        counts = counts_for(warp.points, _APART * float(np.sqrt(height * width)))
        mesh, more = _parted(warp, inner_indices(warp.points.shape[:2], counts), box, front)
        faint += more
    return Region(color, outline, mesh, faint, warp.points[0, 0])


def _parted(
    warp: WarpView, lines: Iterable[tuple[Array, Array]], box: Extent, front: bool
) -> tuple[list[Array], list[Array]]:
    """Lines through the points at these rows and columns: before, and behind the camera."""
    found: tuple[list[Array], list[Array]] = ([], [])
    for at in lines:
        for line, positive in pieces(warp.points[at], None if warp.w is None else warp.w[at], box):
            found[int(positive != front)].append(line)
    return found


def _volume(warp: WarpView, name: str, color: str) -> list[Panel]:
    """Slices of the volume through the middle of the sampled box, and of the warped volume through its middle."""
    points = np.where(np.isfinite(warp.points), warp.points, np.nan)
    if warp.w is not None:  # what is behind the camera is not part of the box
        front = np.sign(np.median(np.sign(warp.w))) or 1
        points = np.where(np.sign(warp.w)[..., None] == front, points, np.nan)
    count = 2 if warp.straight else LINES
    at, below = seen_from(points, warp.source.shape[1:]), middle(warp.warped.shape[1:])[::-1]
    box, scale = edges(points, count), _Scale.of([warp])
    found = []
    for across, *flat in PLANES:
        image = scale.drawn(cut(warp.source, across, at[across]))
        lines = list(crossing(points, across, at[across], count)[..., flat])
        region = Region(color, lines, (), [edge[:, flat] for edge in box], points[0, 0, 0][flat])
        extent = _extent(image.shape[:2], [region])
        axis = AXES[across]
        found.append(Panel(f"input{name}, {axis}", image, [region], extent=extent, note=f"{axis} = {at[across]}"))
    for across, *_ in PLANES:
        image = scale.drawn(cut(warp.warped, across, below[across]))
        found.append(Panel(f"warped{name}, {AXES[across]}", image, note=f"{AXES[across]} = {below[across]}"))
    return found


@dataclass(frozen=True)
class _Scale:
    """From a sampler's values to what is drawn: pixels, or gray (colors of three channels) from the least to the most.

    Attributes:
        rule: how the values were made from pixels; None: ``limits`` apply.
        limits: the values that are drawn black and white.
    """

    rule: Preprocess | None
    limits: tuple[float, float]

    @classmethod
    def of(cls, warps: Sequence[WarpView]) -> _Scale:
        """One scale for an image and all that is sampled of it."""
        rule, source = warps[0].rule, warps[0].source
        if rule is not None and source.ndim == 3 and len(source) == rule.channels and _is_picture(source, rule):
            return cls(rule, (0.0, 1.0))
        ranges = [_visible(image) for warp in warps for image in (warp.source, warp.warped)]
        return cls(None, (min(float(each.min()) for each in ranges), max(float(each.max()) for each in ranges)))

    def drawn(self, image: Array) -> Array:
        """``image`` [C, H, W] as [H, W] or [H, W, 3] from 0 to 1."""
        if self.rule is not None:
            pixels = denormalize(image[None], self.rule)[0] / 255.0
            return _last(pixels[::-1] if self.rule.color == "bgr" else pixels)
        low, high = self.limits
        shown: Array = np.clip((_visible(image) - low) / (high - low if high > low else 1.0), 0, 1)
        return shown


def _is_picture(values: Array, rule: Preprocess) -> bool:
    """Whether all values are those of pixels, for arrays can have any."""
    mean, std = (np.array(each, np.float64)[:, None, None] for each in (rule.mean, rule.std))
    found = np.where(np.isfinite(values), values, np.inf) * std + mean
    most = (255.0 * rule.scale) ** rule.gamma
    return bool((found >= -_TOLERANCE * most).all() and (found <= (1 + _TOLERANCE) * most).all())


def _visible(image: Array) -> Array:
    """``image`` [C, ...] as it is drawn: [..., 3] of three channels, else their mean [...]."""
    finite = np.where(np.isfinite(image), image, 0.0).astype(np.float64)
    shown: Array = _last(finite) if len(finite) == 3 else finite.mean(axis=0)
    return shown


def _last(image: Array) -> Array:
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def _extent(size: Sequence[int], regions: Sequence[Region]) -> Extent:
    """An image of ``size`` (H, W) whole, and regions up to a margin."""
    span = np.array(size[::-1], np.float64)  # (W, H)
    lines = [line for each in regions for line in (*each.outline, *each.mesh, *each.faint)]
    points = np.concatenate([*lines, np.zeros((1, 2))])
    points = np.clip(points[np.isfinite(points).all(axis=1)], -_MARGIN * span, (1 + _MARGIN) * span)
    around = np.concatenate([points - 0.02 * span, points + 0.02 * span, [-0.5 + 0 * span, span - 0.5]])
    return around.min(axis=0), around.max(axis=0)
