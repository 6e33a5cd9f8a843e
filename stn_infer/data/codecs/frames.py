"""Turning, resizing and cropping decoded pictures in tensors, on any device; as `data/framing.py` does with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from stn_infer.preprocess.geometry import margins, scaled_size, window_of
from stn_infer.preprocess.rule import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

#: Pillow's filters that PyTorch has too; pictures for the others are framed by Pillow.
FILTERS = ("bilinear", "bicubic")

_T = Image.Transpose
_TURNED: dict[Image.Transpose, Callable[[Tensor], Tensor]] = {
    _T.FLIP_LEFT_RIGHT: lambda picture: picture.flip(-1),
    _T.FLIP_TOP_BOTTOM: lambda picture: picture.flip(-2),
    _T.ROTATE_180: lambda picture: picture.flip(-2, -1),
    _T.TRANSPOSE: lambda picture: picture.transpose(-2, -1),
    _T.TRANSVERSE: lambda picture: picture.transpose(-2, -1).flip(-2, -1),
    _T.ROTATE_90: lambda picture: picture.rot90(1, (-2, -1)),
    _T.ROTATE_270: lambda picture: picture.rot90(3, (-2, -1)),
}
_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 1/65536, as Pillow converts RGB to L


def framed(picture: Tensor, rule: Preprocess, turn: Image.Transpose | None) -> Tensor:
    """A decoded picture, turned, in the rule's number of colors, resized, cropped and padded.

    Args:
        picture: uint8 [3, H, W], RGB.
        rule: its ``interpolation`` is one of :data:`FILTERS`, if it has a size.
        turn: how the picture is turned first.

    Returns:
        uint8 [C, h, w], C is 1 for gray and else 3 (RGB). Some levels are one off those of Pillow.
    """
    import torch

    if turn is not None:
        picture = _TURNED[turn](picture)
    if rule.color == "gray":
        picture = _gray(picture)
    if rule.size is not None:
        picture = _resized(picture, scaled_size((picture.shape[1], picture.shape[2]), rule.size, rule.resize), rule)
    window = window_of(rule)
    if window is None or picture.shape[1:] == window:
        return picture
    fill = torch.tensor(rule.pad, dtype=torch.uint8, device=picture.device)[:, None, None]
    return _cropped(picture, window, _gray(fill) if rule.color == "gray" else fill)


def _gray(picture: Tensor) -> Tensor:
    import torch

    red, green, blue = (part.to(torch.int32) * weight for part, weight in zip(picture, _LUMA, strict=True))
    luma: Tensor = (red + green + blue + (1 << 15)) >> 16
    return luma.to(torch.uint8)[None]


def _resized(picture: Tensor, size: tuple[int, int], rule: Preprocess) -> Tensor:
    """Along one axis after the other, and rounded in between, as Pillow does."""
    from torch.nn.functional import interpolate

    for step in ((picture.shape[1], size[1]), size):
        if picture.shape[1:] != step:
            values = interpolate(picture[None].float(), step, mode=rule.interpolation, antialias=True)[0]
            picture = values.add_(0.5).clamp_(0, 255).byte()
    return picture


def _cropped(picture: Tensor, window: tuple[int, int], fill: Tensor) -> Tensor:
    """The center of ``picture``, with ``fill``, [C, 1, 1], around it."""
    (high, wide), (height, width) = picture.shape[1:], window
    (above, top), (before, left) = margins(high, height), margins(wide, width)
    canvas = fill.repeat(1, max(high, height), max(wide, width))
    canvas[:, above : above + high, before : before + wide] = picture
    return canvas[:, top : top + height, left : left + width]
