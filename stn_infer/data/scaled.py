"""JPEG pictures that are decoded at a half, a quarter or an eighth of their size, where a rule allows it.

Decoding then costs a fraction. The decoder's own reduction takes the place of a part of the resizing: the picture stays
at least twice as large as the rule makes it, and Pillow does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, JpegImagePlugin

from stn_infer.preprocess.geometry import scaled_size
from stn_infer.preprocess.rule import Preprocess

_GAP = 2
_T = Image.Transpose
#: Turns that exchange height and width.
SWAPPING = (_T.TRANSPOSE, _T.TRANSVERSE, _T.ROTATE_90, _T.ROTATE_270)
_FROM_RIGHT = (_T.FLIP_LEFT_RIGHT, _T.ROTATE_180, _T.TRANSVERSE, _T.ROTATE_270)
_FROM_BELOW = (_T.FLIP_TOP_BOTTOM, _T.ROTATE_180, _T.TRANSVERSE, _T.ROTATE_90)


@dataclass(frozen=True)
class Scaled:
    """What a picture was before it was decoded at a smaller size.

    Attributes:
        size: (height, width) of the picture.
        box: left, top, right and bottom of the picture in the decoded pixels, the last of which it may fill in part.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]


def scale_down(image: Image.Image, rule: Preprocess, turn: Image.Transpose | None) -> Scaled | None:
    """Have an opened picture decoded at a smaller size, if it is a JPEG file and the rule allows it.

    Args:
        image: is not loaded yet; its size changes.
        rule: what is done with the picture.
        turn: how it is turned before that.

    Returns:
        What it was, turned; None if it is decoded as it is.
    """
    if rule.jpeg != "scaled" or rule.size is None or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    width, height = image.size
    swapped = turn in SWAPPING
    size = (width, height) if swapped else (height, width)
    wanted = scaled_size(size, rule.size, rule.resize)
    high, wide = wanted[::-1] if swapped else wanted
    image.draft(None, (_GAP * wide, _GAP * high))
    ratio = next((ratio for ratio in (2, 4, 8) if image.size == (-(-width // ratio), -(-height // ratio))), None)
    if ratio is None:
        return None
    along = [width / ratio, height / ratio]
    lengths = [*image.size]
    if swapped:
        along, lengths = along[::-1], lengths[::-1]
    left = lengths[0] - along[0] if turn in _FROM_RIGHT else 0.0
    top = lengths[1] - along[1] if turn in _FROM_BELOW else 0.0
    return Scaled(size, (left, top, left + along[0], top + along[1]))
