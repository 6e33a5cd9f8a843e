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


def check_frames(frames: int, width: int = 1, height: int = 1, *, moving: bool) -> None:
    """Raise before ``frames`` pictures of ``width`` x ``height`` pixels are drawn.

    Args:
        frames, width, height: their number and size.
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
    if frames * width * height > _MOST_PIXELS:
        raise UsageError(
            f"an animation of {frames} frames of {width}x{height} pixels is too large; give fewer frames or --count"
        )


def encode(pictures: Sequence[bytes], suffix: str, durations: Sequence[int]) -> bytes:
    """PNG pictures of one size as an endless animation; ``suffix`` is .gif or .webp, ``durations`` in milliseconds.

    A WebP stays transparent where the pictures are. A GIF would have ragged text on it, so it is white there.
    """
    frames = [_frame(picture, suffix) for picture in pictures]
    if suffix == ".gif":
        return _encoded(frames, "GIF", durations)
    # lossless is a third of lossy for digits and lines, and many times as much for photos
    lossless = _encoded(frames, "WEBP", durations, lossless=True, method=2, quality=50)
    return min(lossless, _encoded(frames, "WEBP", durations), key=len)


def _encoded(frames: Sequence[Image.Image], kind: str, durations: Sequence[int], **options: int) -> bytes:
    content = io.BytesIO()
    frames[0].save(content, kind, save_all=True, append_images=frames[1:], duration=list(durations), loop=0, **options)
    return content.getvalue()


def _frame(picture: bytes, suffix: str) -> Image.Image:
    opened = Image.open(io.BytesIO(picture)).convert("RGBA")
    if suffix == ".webp":
        return opened
    frame = Image.new("RGB", opened.size, "white")
    frame.paste(opened, mask=opened)
    return frame
