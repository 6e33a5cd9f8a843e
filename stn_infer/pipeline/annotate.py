"""A picture with the outlines of what a model samples of it, and a line of text below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stn_infer.arrays import Array
from stn_infer.printing import shown

#: One color per transformer; after the last one, the first follows.
COLORS = ("#ff8c1a", "#2ea6ff", "#5ad65a", "#ff5ac8", "#ffd93b", "#b48cff")
_SHORTEST, _LONGEST = 256, 2048  # sides of an annotated picture in pixels
_TEXT = 15
_MOST_LINES = 8


def annotated(picture: Image.Image, outlines: Sequence[Array | None], lines: Sequence[str]) -> Image.Image:
    """A copy of ``picture``, enlarged if it is small, with outlines and text.

    Args:
        picture: of mode L or RGB.
        outlines: for each transformer [L, 2], (x, y) in [0, 1] of the picture, or None; the first point, which becomes
            the top left of the result, is marked by a dot. Points that are not finite are left out.
        lines: texts below the picture; at most eight are shown.
    """
    width, height = picture.size
    scale = max(1, min(-(-_SHORTEST // min(width, height)), _LONGEST // max(width, height)))
    width, height = width * scale, height * scale
    texts = [shown(line) for line in lines[:_MOST_LINES]]
    canvas = Image.new("RGB", (width, height + (_TEXT + 5) * len(texts)), "white")
    canvas.paste(picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    over = Image.new("RGBA", (width, height))  # so that lines outside of the picture do not reach the text
    draw = ImageDraw.Draw(over)
    for number, outline in enumerate(outlines):
        if outline is None:
            continue
        color = COLORS[number % len(COLORS)]
        points = outline[np.isfinite(outline).all(axis=1)].clip(-100, 100) * (width, height)
        if not len(points):
            continue
        corners = [tuple(point) for point in points.tolist()]
        draw.line([*corners, corners[0]], fill=color, width=2, joint="curve")
        x, y = corners[0]
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
    canvas.paste(over, (0, 0), over)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_TEXT)
    for row, text in enumerate(texts):
        draw.text((4, height + (_TEXT + 5) * row), text, fill="black", font=font)
    return canvas
