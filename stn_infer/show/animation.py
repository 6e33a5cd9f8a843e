"""Animations: an input that turns, grows and moves, and frames to the bytes of a GIF or WebP file."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stn_infer.arrays import Array
from stn_infer.errors import UsageError
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import sample

SUFFIXES = (".gif", ".webp")
_TURN, _GROWTH, _SHIFT = np.radians(45.0), 0.2, 0.15
_MOST_PIXELS = 100_000_000
_BORDER = SamplerSpec("bilinear", "border", align_corners=True)


def moved(images: Array, phase: float) -> Array:
    """``images`` [N, C, H, W] turned, scaled and shifted, in their dtype; ``phase`` 0 and 1 leave them as they are.

    Over one period they turn by up to 45 degrees both ways, grow and shrink by a fifth and move by 0.15 of half the
    width and height. The border pixels continue outside.
    """
    height, width = images.shape[2:]
    angle, wave = _TURN * np.sin(2 * np.pi * phase), np.sin(4 * np.pi * phase)
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    x, y = x - _SHIFT * width / 2 * wave, y - _SHIFT * height / 2 * np.sin(2 * np.pi * phase)
    scale = 1 + _GROWTH * wave
    turned = [(np.cos(angle) * x + np.sin(angle) * y) / scale, (np.cos(angle) * y - np.sin(angle) * x) / scale]
    grid = np.stack([turned[0] / max((width - 1) / 2, 0.5), turned[1] / max((height - 1) / 2, 0.5)], axis=-1)
    moved: Array = sample(_BORDER, images, np.repeat(grid[None], len(images), axis=0)).astype(images.dtype)
    return moved


def check_frames(frames: int, samples: int, transformers: int) -> None:
    """Raise before the frames are drawn.

    Raises:
        UsageError: fewer than two frames, or more pixels than fit in memory comfortably.
    """
    if frames < 2:
        raise UsageError(f"an animation has at least 2 frames, not {frames}; for one frame, write a .png file")
    pixels = frames * samples * transformers * 2 * 203 * 203  # 1.35 inches at 150 dpi
    if pixels > _MOST_PIXELS:
        raise UsageError(f"{frames} frames of {samples} inputs are too large; give fewer with --frames or --count")


def encode(pictures: Sequence[bytes], suffix: str, frame_ms: int) -> bytes:
    """PNG pictures of one size as an endless animation; ``suffix`` is .gif or .webp, ``frame_ms`` the time of each."""
    first, *rest = (Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures)
    content = io.BytesIO()
    kind = suffix.lstrip(".").upper()
    first.save(content, kind, save_all=True, append_images=rest, duration=frame_ms, loop=0)
    return content.getvalue()
