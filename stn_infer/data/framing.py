"""Turning, flattening, resizing and cropping a decoded picture, as a rule says."""

from __future__ import annotations

from PIL import Image

from stn_infer.data.scaled import Scaled
from stn_infer.errors import InputError
from stn_infer.preprocess.geometry import margins, scaled_size, window_of
from stn_infer.preprocess.rule import MOST_PIXELS, Preprocess, Rgb

_ORIENTATION = 0x0112
#: How an EXIF orientation is undone; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow keeps what may contain an orientation; reading it costs more than decoding a small image.
_SOURCES = ("exif", "xmp", "XML:com.adobe.xmp", "raw profile type exif", "Raw profile type exif")


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How ``image`` is turned as its EXIF orientation says; None: not at all, or its EXIF data is damaged."""
    if not any(name in image.info for name in _SOURCES):
        return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many types, and the picture itself is not damaged
        return None


def flattened(image: Image.Image, background: Rgb) -> Image.Image:
    """``image`` over a background; unchanged if nothing of it is transparent."""
    if not image.has_transparency_data:
        return image
    under = Image.new("RGBA", image.size, (*background, 255))
    under.alpha_composite(image.convert("RGBA"))
    return under.convert("RGB")


def framed(image: Image.Image, rule: Preprocess, scaled: Scaled | None = None) -> Image.Image:
    """``image``, of mode L or RGB, resized, cropped and padded; ``scaled``: what it was.

    Raises:
        InputError: the resized image would be too large, because it is very long.
    """
    if rule.size is not None:
        size = (image.height, image.width) if scaled is None else scaled.size
        height, width = scaled_size(size, rule.size, rule.resize)
        if height * width > MOST_PIXELS:
            raise InputError(
                f"an image of {size[0]}x{size[1]} (height x width) would be resized to {height}x{width}, more "
                f"than the limit of {MOST_PIXELS >> 20} million pixels"
            )
        if scaled is not None or image.size != (width, height):
            box = None if scaled is None else scaled.box
            image = image.resize((width, height), Image.Resampling[rule.interpolation.upper()], box)
    window = window_of(rule)
    if window is not None and (image.height, image.width) != window:
        image = _cropped(image, window, _fill(image, rule.pad))
    return image


def _cropped(image: Image.Image, crop: tuple[int, int], fill: int | Rgb) -> Image.Image:
    """The center of ``image``, filled around it."""
    height, width = crop
    wide, high = max(width, image.width), max(height, image.height)
    (above, top), (before, left) = margins(image.height, height), margins(image.width, width)
    if (wide, high) != image.size:
        canvas = Image.new(image.mode, (wide, high), fill)
        canvas.paste(image, (before, above))
        image = canvas
    return image.crop((left, top, left + width, top + height))


def _fill(image: Image.Image, color: Rgb) -> int | Rgb:
    if image.mode != "L":
        return color
    return Image.new("RGB", (1, 1), color).convert("L").tobytes()[0]
