"""Animations: inputs that turn, grow and move, and frames to the bytes of a GIF or WebP file."""

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
    """``images`` [N, C, H, W] turned, scaled and shifted, in their dtype; ``phase`` 0, 1/2 and 1 change nothing.

    Over one period they turn by up to 45 degrees both ways, grow and shrink by a fifth and move by 0.15 of half the
    width and height. The border pixels continue outside. Volumes [N, C, D, H, W] turn about their depth and, half as
    far, about their height.
    """
    size = images.shape[:1:-1]  # (W, H[, D])
    wave, slow = np.sin(4 * np.pi * phase), np.sin(2 * np.pi * phase)
    shift = [_SHIFT * wave, _SHIFT * slow, 0.0]
    axes = np.meshgrid(*(np.arange(length) - (length - 1) / 2 for length in size), indexing="ij")
    at = [axis.T - length / 2 * by for axis, length, by in zip(axes, size, shift, strict=False)]
    at[:2] = _turned(at[0], at[1], _TURN * slow)
    if len(size) == 3:
        at[0], at[2] = _turned(at[0], at[2], _TURN / 2 * wave)
    scale = 1 + _GROWTH * wave
    grid = np.stack([x / scale / max((length - 1) / 2, 0.5) for x, length in zip(at, size, strict=True)], axis=-1)
    moved: Array = sample(_BORDER, images, np.repeat(grid[None], len(images), axis=0)).astype(images.dtype)
    return moved


def _turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def check_frames(frames: int, panels: int, *, moving: bool) -> None:
    """Raise before the frames are drawn, each of which has so many panels.

    Args:
        frames, panels: their numbers.
        moving: whether the frames are moving inputs, which are at rest at the beginning and in the middle.

    Raises:
        UsageError: too few frames to show anything, or more pixels than fit in memory comfortably.
    """
    least = 3 if moving else 2
    if frames < least:
        kind = "moving inputs" if moving else "snapshots"
        raise UsageError(
            f"an animation of {kind} has at least {least} frames, not {frames}; for one frame, write a .png file"
        )
    if frames * panels * 203 * 203 > _MOST_PIXELS:  # 1.35 inches at 150 dpi
        raise UsageError(
            f"an animation of {frames} frames of {panels} pictures each is too large; give fewer frames or --count"
        )


def encode(pictures: Sequence[bytes], suffix: str, durations: Sequence[int]) -> bytes:
    """PNG pictures of one size as an endless animation; ``suffix`` is .gif or .webp, ``durations`` in milliseconds."""
    first, *rest = (Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures)
    content = io.BytesIO()
    kind = suffix.lstrip(".").upper()
    first.save(content, kind, save_all=True, append_images=rest, duration=list(durations), loop=0)
    return content.getvalue()
