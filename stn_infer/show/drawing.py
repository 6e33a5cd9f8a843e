"""Drawing with matplotlib: one column per sample; under each source with its mesh, the warped output."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import MissingDependencyError, OutputError
from stn_infer.printing import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stn_infer.show.look import Look, WarpView


_MESH = "#ff8c1a"
_LINES = 8
_INCHES = 1.35
# The largest margin around the source, in source sizes, in which a mesh outside it is shown.
_MARGIN = 0.3


def require_matplotlib() -> None:
    """Check for matplotlib before a long computation.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("pictures need matplotlib; pip install 'stn-infer[report]'")


def draw(looks: Sequence[Look], suffix: str = ".png", extents_of: Sequence[Look] | None = None) -> bytes:
    """A picture of ``looks`` as the bytes of a file.

    ``extents_of`` are the looks that the axes make room for, if not these: all frames of an animation.

    Raises:
        OutputError: matplotlib does not support this file type.
    """
    from matplotlib.figure import Figure

    transformers = len(looks[0].warps)
    figure = Figure(figsize=(_INCHES * len(looks) + 0.5, _INCHES * 2 * transformers + 0.6), dpi=150)
    axes = figure.subplots(2 * transformers, len(looks), squeeze=False)
    extents = [_extent([look.warps[number] for look in extents_of or looks]) for number in range(transformers)]
    for column, look in enumerate(looks):
        for number, warp in enumerate(look.warps):
            above, below = axes[2 * number][column], axes[2 * number + 1][column]
            _draw_source(above, warp, *extents[number])
            _draw_image(below, warp.warped)
            if column == 0:
                which = f" {number + 1}" if transformers > 1 else ""
                above.set_ylabel(f"input{which}", fontsize=8)
                below.set_ylabel(f"warped{which}", fontsize=8)
        axes[0][column].set_title(shown(_short(look.name)), parse_math=False, fontsize=6, color="0.4")
        if look.prediction:
            axes[-1][column].set_xlabel(shown(look.prediction), parse_math=False, fontsize=10)
    figure.tight_layout(pad=0.4)
    content = io.BytesIO()
    kind = suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise OutputError(f"a picture cannot be written as .{kind}; give a .png, .svg or .pdf file")
    figure.savefig(content, format=kind)
    return content.getvalue()


def _draw_image(axes: Axes, image: Array) -> None:
    """Draws [C, H, W] in gray or color, scaled to its own range: inputs are normalized, features have any range."""
    finite = np.where(np.isfinite(image), image, 0.0).astype(np.float64)
    shown = finite.transpose(1, 2, 0) if len(finite) == 3 else finite.mean(axis=0)
    low, high = shown.min(), shown.max()
    axes.imshow((shown - low) / (high - low if high > low else 1.0), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_source(axes: Axes, warp: WarpView, low: Array, high: Array) -> None:
    _draw_image(axes, warp.source)
    axes.set_facecolor("0.85")
    points = np.where(np.isfinite(warp.points), warp.points, np.nan)
    for line in mesh_lines(points, 2 if warp.straight else _LINES):
        axes.plot(line[:, 0], line[:, 1], color=_MESH, linewidth=0.8, solid_joinstyle="round")
    # marks the corner that becomes the output's top left, to show rotations and flips
    axes.plot(*points[0, 0], marker="o", markersize=3, color=_MESH)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])


def mesh_lines(points: Array, count: int) -> list[Array]:
    """``count`` rows and columns of ``points`` [H, W, 2], including the first and last, each [L, 2]."""
    rows = np.unique(np.linspace(0, points.shape[0] - 1, count).round().astype(int))
    columns = np.unique(np.linspace(0, points.shape[1] - 1, count).round().astype(int))
    return [points[row] for row in rows] + [points[:, column] for column in columns]


def _extent(warps: Sequence[WarpView]) -> tuple[Array, Array]:
    """Lowest and highest (x, y) to show for one transformer: the whole source, and the meshes up to a margin."""
    size = np.array(warps[0].source.shape[:0:-1], np.float64)  # (W, H)
    points = np.concatenate([warp.points.reshape(-1, 2) for warp in warps])
    points = np.clip(points[np.isfinite(points).all(axis=1)], -_MARGIN * size, (1 + _MARGIN) * size)
    corners = np.array([[0.0, 0.0], size]) - 0.5
    around = np.concatenate([points - 0.02 * size, points + 0.02 * size, corners])
    return around.min(axis=0), around.max(axis=0)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
