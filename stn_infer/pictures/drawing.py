"""Drawing with matplotlib: one column per sample; under each source with its mesh, the warped output."""

from __future__ import annotations

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stn_infer.errors import OutputError
from stn_infer.extras import require
from stn_infer.pictures.layout import Layout, arranged, unit_for
from stn_infer.pictures.panels import panels_of
from stn_infer.printing import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from stn_infer.pictures.look import Look
    from stn_infer.pictures.panels import Panel, Region

# Readable on white and on black: the page behind a picture can be either.
_GRAY, _RIGHT, _WRONG = "#7c8794", "#2f9e4f", "#d9534f"
_HALO = (0.0, 0.0, 0.0, 0.4)
_DPI = 150
_CHARACTER = 0.62 * _DPI / 72  # the mean width of a character in pixels, per point of its size
_NAME, _TEXT, _SMALL, _NOTE = 6.5, 9.0, 7.5, 5.5  # sizes of text in points
#: The side of a square panel in a frame of an animation, in pixels.
ANIMATED = 210


def require_matplotlib() -> None:
    """Check for matplotlib before a long computation.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", "pictures need")


def layout_of(frames: Sequence[Sequence[Look]], *, captioned: bool) -> Layout:
    """The layout of all frames of an animation, of the same samples.

    Args:
        frames: the looks of each frame.
        captioned: whether there is a line above everything.
    """
    return _arranged([[panels_of(look.warps) for look in looks] for looks in frames], frames, ANIMATED, captioned)


def _arranged(
    panels: Sequence[Sequence[Sequence[Panel]]], frames: Sequence[Sequence[Look]], unit: int, captioned: bool
) -> Layout:
    below = max(len(_below(look)) for looks in frames for look in looks)
    return arranged(panels, unit, below, int(captioned))


def draw(looks: Sequence[Look], suffix: str = ".png", layout: Layout | None = None, caption: str = "") -> bytes:
    """A picture of ``looks`` as the bytes of a file; what is not drawn on is transparent.

    Args:
        looks: one per sample.
        suffix: of the file type.
        layout: of a frame of an animation; None: one for these looks.
        caption: a line above everything.

    Raises:
        OutputError: matplotlib does not support this file type.
    """
    from matplotlib.figure import Figure

    columns = [panels_of(look.warps) for look in looks]
    if layout is None:
        layout = _arranged([columns], [looks], unit_for(columns), bool(caption))
    figure = Figure(figsize=(layout.width / _DPI, layout.height / _DPI), dpi=_DPI, facecolor="none")
    for number, (look, panels) in enumerate(zip(looks, columns, strict=True)):
        for row, panel in enumerate(panels):
            _draw_panel(figure, layout, number, row, panel)
        _name(figure, layout, number, look)
        if look.error:
            _draw_error(figure, layout, number, look.error)
        _predict(figure, layout, number, len(panels), look)
    for row, panel in enumerate(next((column for column in columns if column), [])):
        middle = layout.tops[row] + layout.heights[row] / 2
        _write(figure, layout, layout.labels, middle, panel.label, 8, panel.color or _GRAY, va="center", rotation=90)
    if caption:
        _write(figure, layout, layout.width / 2, 10, caption, 9, _GRAY, va="top")
    content = io.BytesIO()
    kind = suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise OutputError(f"a picture cannot be written as .{kind}; give a .png, .svg or .pdf file, or .gif or .webp")
    with warnings.catch_warnings():  # of characters that the font lacks, which are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(content, format=kind, facecolor="none")
    return content.getvalue()


def _write(
    figure: Figure, layout: Layout, x: float, y: float, text: str, size: float, color: str, **options: Any
) -> None:
    """Text at pixels (x, y) from the top left of the picture."""
    place: dict[str, Any] = {"ha": "center", "va": "baseline", **options}
    figure.text(
        x / layout.width, 1 - y / layout.height, shown(text), fontsize=size, color=color, parse_math=False, **place
    )


def _axes(figure: Figure, layout: Layout, left: float, top: float, width: float, height: float) -> Axes:
    axes = figure.add_axes(
        (left / layout.width, 1 - (top + height) / layout.height, width / layout.width, height / layout.height)
    )
    axes.set_axis_off()
    return axes


def _draw_panel(figure: Figure, layout: Layout, column: int, row: int, panel: Panel) -> None:
    """An image, its frame, and what is sampled of it, which can reach into the margins around it."""
    from matplotlib.patches import Rectangle

    left, top, width, height = layout.place(column, row)
    margins = (2, 2, 2, 2)
    if panel.regions:
        margins = (layout.sides[0], layout.above[row], layout.sides[1], layout.below[row])
    axes = _axes(
        figure,
        layout,
        left - margins[0],
        top - margins[1],
        width + margins[0] + margins[2],
        height + margins[1] + margins[3],
    )
    down, across = panel.size[0] / height, panel.size[1] / width  # pixels of the image per pixel of the picture
    axes.set_xlim(-0.5 - margins[0] * across, panel.size[1] - 0.5 + margins[2] * across)
    axes.set_ylim(panel.size[0] - 0.5 + margins[3] * down, -0.5 - margins[1] * down)
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, aspect="auto", extent=_edges(panel))
    edge = Rectangle((-0.5, -0.5), panel.size[1], panel.size[0], fill=False)
    edge.set(edgecolor=panel.color or _GRAY, linewidth=1.4 if panel.color else 0.6, zorder=2)
    axes.add_patch(edge)
    for number, region in enumerate(panel.regions, 1):
        # an earlier one is wider, so that it is seen below a later one in the same place
        _draw_region(axes, region, edge, 1.15 + 0.7 * (len(panel.regions) - number))
    if panel.note:
        axes.text(0.03, 0.04, panel.note, transform=axes.transAxes, fontsize=_NOTE, color=_GRAY)
    axes.set_autoscale_on(False)


def _edges(panel: Panel) -> tuple[float, float, float, float]:
    return -0.5, panel.size[1] - 0.5, panel.size[0] - 0.5, -0.5


def _draw_region(axes: Axes, region: Region, image: Rectangle, width: float) -> None:
    """Lines over a dark halo, which a bright image needs; outside of the image there is none."""
    kinds = ((region.faint, 0.6, 0.5), (region.mesh, 0.7, 1.0), (region.outline, width, 1.0))
    for lines, width, _ in kinds:
        for line in lines:
            (halo,) = axes.plot(line[:, 0], line[:, 1], color=_HALO, linewidth=width + 0.9, zorder=3)
            halo.set_clip_path(image)
    for order, (lines, width, alpha) in enumerate(kinds, 4):
        for line in lines:
            axes.plot(
                line[:, 0],
                line[:, 1],
                color=region.color,
                linewidth=width,
                alpha=alpha,
                zorder=order,
                solid_joinstyle="round",
            )
    # marks the corner that becomes the output's top left, to show rotations and flips
    axes.plot(
        *region.origin,
        marker="o",
        markersize=3.6,
        color=region.color,
        markeredgecolor=_HALO,
        markeredgewidth=0.6,
        zorder=7,
    )


def _name(figure: Figure, layout: Layout, column: int, look: Look) -> None:
    x = layout.lefts[column] + layout.widths[column] / 2
    text = _short(shown(look.name), _room(layout.widths[column], _NAME))
    _write(figure, layout, x, layout.tops[0] - layout.above[0] - 7, text, _NAME, _GRAY)


def _below(look: Look) -> list[tuple[str, float, str]]:
    """The lines below a column: text, size in points, color."""
    texts = list(look.captions) or ([look.prediction] if look.prediction else [])
    if look.error or not texts:
        return []
    size = _TEXT if len(texts) == 1 else _SMALL
    if look.is_right is None:
        return [(text, size, _GRAY) for text in texts]
    mark, color = ("\N{CHECK MARK}", _RIGHT) if look.is_right else ("\N{BALLOT X}", _WRONG)
    lines = [(f"{mark} {texts[0]}", size, color), *((text, size, _GRAY) for text in texts[1:])]
    return lines if look.is_right else [*lines, (f"truth: {look.truth}", _SMALL, _GRAY)]


def _predict(figure: Figure, layout: Layout, column: int, rows: int, look: Look) -> None:
    x = layout.lefts[column] + layout.widths[column] / 2
    y = layout.tops[rows - 1] + layout.heights[rows - 1] + max(4, layout.below[rows - 1])
    for number, (text, size, color) in enumerate(_below(look), 1):
        short = _short(shown(text), _room(layout.widths[column], size))
        _write(figure, layout, x, y + 22 * number - 4, short, size, color)


def _draw_error(figure: Figure, layout: Layout, column: int, error: str) -> None:
    """A panel with a sentence in place of an image."""
    from matplotlib.patches import Rectangle

    left, top = layout.lefts[column], layout.tops[0]
    width, height = layout.widths[column], layout.heights[0]
    axes = _axes(figure, layout, left, top, width, height)
    frame = Rectangle((0, 0), 1, 1, fill=False, transform=axes.transAxes)
    frame.set(edgecolor=_WRONG, linewidth=0.8, linestyle=(0, (4, 3)), clip_on=False)
    axes.add_patch(frame)
    lines = textwrap.wrap(shown(error), _room(width - 16, _NAME), max_lines=max(1, int((height - 12) / 18)))
    y = top + height / 2 - 18 * (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        _write(figure, layout, left + width / 2, y + 18 * number, line, _NAME, _WRONG, va="center")


def _room(width: float, size: float) -> int:
    """How many characters of ``size`` points fit in a width in pixels."""
    return max(4, int(width / (_CHARACTER * size)))


def _short(text: str, most: int) -> str:
    """``text`` cut to the width of ``most`` characters, of which wide ones, such as Chinese, take up two."""
    used = 0
    for index, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > most:
            return text[: max(index - 1, 1)] + "…"
    return text
