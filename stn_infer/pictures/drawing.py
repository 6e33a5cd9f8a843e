"""Drawing with matplotlib: one column per sample; under each source with its mesh, the warped output."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.errors import OutputError
from stn_infer.extras import require
from stn_infer.pictures.panels import count_panels, extents_of, panels_of, visible
from stn_infer.printing import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stn_infer.pictures.look import Look
    from stn_infer.pictures.panels import Panel


_MESH = "#ff8c1a"
_INCHES = 1.35


def require_matplotlib() -> None:
    """Check for matplotlib before a long computation.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", "pictures need")


def draw(
    looks: Sequence[Look], suffix: str = ".png", shown_with: Sequence[Look] | None = None, caption: str = ""
) -> bytes:
    """A picture of ``looks`` as the bytes of a file.

    Args:
        looks: one per sample.
        suffix: of the file type.
        shown_with: the looks that the axes make room for, if not these: all frames of an animation.
        caption: a line above everything.

    Raises:
        OutputError: matplotlib does not support this file type.
    """
    from matplotlib.figure import Figure

    every = shown_with or looks
    extents = [extents_of([look.warps[number] for look in every]) for number in range(len(looks[0].warps))]
    columns = [
        [panel for pair in zip(look.warps, extents, strict=True) for panel in panels_of(*pair)] for look in looks
    ]
    rows = len(columns[0])
    height = _INCHES * rows + (0.9 if caption else 0.6)
    figure = Figure(figsize=(_INCHES * len(looks) + 0.5, height), dpi=150)
    axes = figure.subplots(rows, len(looks), squeeze=False)
    for column, (look, panels) in enumerate(zip(looks, columns, strict=True)):
        for row, panel in enumerate(panels):
            _draw_panel(axes[row][column], panel)
        axes[0][column].set_title(shown(_short(look.name)), parse_math=False, fontsize=6, color="0.4")
        if look.prediction:
            lines = [shown(_short(text)) for text in look.captions] or [shown(look.prediction)]
            size = 9 if len(lines) == 1 else 7
            axes[-1][column].set_xlabel("\n".join(lines), parse_math=False, fontsize=size)
    numbers = [number for number, warp in enumerate(looks[0].warps, 1) for _ in range(count_panels(warp))]
    for row, (panel, number) in enumerate(zip(columns[0], numbers, strict=True)):
        which = f" {number}" if len(looks[0].warps) > 1 else ""
        what, comma, axis = panel.label.partition(",")
        axes[row][0].set_ylabel(f"{what}{which}{comma}{axis}", fontsize=8)
    if caption:
        figure.suptitle(shown(caption), parse_math=False, fontsize=9)
    figure.tight_layout(pad=0.4)
    content = io.BytesIO()
    kind = suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise OutputError(f"a picture cannot be written as .{kind}; give a .png, .svg or .pdf file")
    figure.savefig(content, format=kind)
    return content.getvalue()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """The image in gray or color, scaled to the panel's limits, and its lines."""
    low, high = panel.limits
    image = (visible(panel.image) - low) / (high - low if high > low else 1.0)
    axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("0.85")
    for line in panel.outline:
        axes.plot(line[:, 0], line[:, 1], color=_MESH, linewidth=0.5, alpha=0.5)
    for line in panel.lines:
        axes.plot(line[:, 0], line[:, 1], color=_MESH, linewidth=0.8, solid_joinstyle="round")
    if panel.origin is not None:
        # marks the corner that becomes the output's top left, to show rotations and flips
        axes.plot(*panel.origin, marker="o", markersize=3, color=_MESH)
    if panel.note:
        axes.text(0.03, 0.04, panel.note, transform=axes.transAxes, fontsize=5, color="0.65")
    if panel.extent is not None:
        low_xy, high_xy = panel.extent
        axes.set_xlim(low_xy[0], high_xy[0])
        axes.set_ylim(high_xy[1], low_xy[1])


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
