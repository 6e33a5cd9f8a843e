"""A stand-in for fine-grained birds: 16 classes of one animal that differ in two small parts, of 4 forms each.

The animal's body has a random size, color and place on a piece of a photograph. Its head's crest and its tail's end are
drawn with a sixteenth of the image's height; class = 4 crest + tail.
"""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Generator

from export.datasets.photographs import piece
from export.datasets.task import Batch, Part, Task
from stn_infer.errors import UsageError

FORMS = 4  # disk, square, triangle, ring
CLASSES = FORMS * FORMS
Point = tuple[float, float]
Color = tuple[int, int, int]


class TwoParts(Task):
    """Inputs [N, 3, S, S], targets [N], 0 to 15. Training and test samples are drawn alike."""

    samples, tests = 20_000, 4_000

    def __init__(self, size: int = 64) -> None:
        if size < 64:
            raise UsageError(f"two-parts needs at least 64 x 64 pixels, not {size} x {size}")
        self.size = size

    def draw(self, part: Part, count: int, generator: Generator) -> Batch:
        """``count`` animals."""
        labels = torch.randint(CLASSES, (count,), generator=generator)
        images = [self._animal(int(label) // FORMS, int(label) % FORMS, generator) for label in labels]
        return Batch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels)

    def _animal(self, crest: int, tail: int, generator: Generator) -> NDArray[np.uint8]:
        background = piece(self.size, generator).permute(1, 2, 0).numpy().astype(np.uint8)
        picture = Image.fromarray(background)
        draw = ImageDraw.Draw(picture)
        values = torch.rand(8, generator=generator).tolist()
        size, length = self.size, self.size * (0.42 + 0.14 * values[0])
        angle = (values[1] * 2 - 1) * pi / 6
        room = (size - length) / 2 - size / 9
        x, y = size / 2 + room * (values[2] * 2 - 1), size / 2 + room * (values[3] * 2 - 1)
        red, green, blue = (int(60 + 180 * value) for value in values[4:7])
        body = (red, green, blue)
        along, across = (cos(angle), sin(angle)), (-sin(angle), cos(angle))

        def place(u: float, v: float) -> Point:
            return x + length * (u * along[0] + v * across[0]), y + length * (u * along[1] + v * across[1])

        turns = [2 * pi * step / 24 for step in range(24)]
        draw.polygon([place(0.42 * cos(turn), 0.2 * sin(turn)) for turn in turns], fill=body)
        mark = (255, 255, 255) if sum(body) < 450 else (0, 0, 0)
        for center, form in ((place(0.4, -0.12), crest), (place(-0.46, 0.02), tail)):
            _part(draw, center, size / 16, form, mark, body)
        return np.asarray(picture)


def _part(draw: ImageDraw.ImageDraw, center: Point, radius: float, form: int, mark: Color, body: Color) -> None:
    x, y = center
    square = (x - radius, y - radius, x + radius, y + radius)
    if form == 0:
        draw.ellipse(square, fill=mark)
    elif form == 1:
        draw.rectangle(square, fill=mark)
    elif form == 2:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=mark)
    else:
        draw.ellipse(square, fill=mark)
        inner = radius / 2
        draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=body)
