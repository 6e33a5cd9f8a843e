"""Turning, resizing and cropping decoded pictures in tensors, on any device; as `data/framing.py` does with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from stn_infer.preprocess.geometry import margins, scaled_size, window_of
from stn_infer.preprocess.rule import Interpolation, Preprocess

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


def framed(pictures: Tensor, rule: Preprocess, turn: Image.Transpose | None) -> Tensor:
    """Decoded pictures of one size, turned, in the rule's number of colors, resized, cropped and padded.

    Args:
        pictures: uint8 [N, 3, H, W], RGB, in any memory layout.
        rule: its ``interpolation`` is one of :data:`FILTERS`, if it has a size.
        turn: how the pictures are turned first.

    Returns:
        uint8 [N, C, h, w], C is 1 for gray and else 3 (RGB). Some levels are one off those of Pillow.
    """
    import torch

    if turn is not None:
        pictures = _TURNED[turn](pictures)
    if rule.color == "gray":
        pictures = _gray(pictures)
    if rule.size is not None:
        size = scaled_size((pictures.shape[2], pictures.shape[3]), rule.size, rule.resize)
        pictures = _resized(pictures, size, rule.interpolation)
    window = window_of(rule)
    if window is None or pictures.shape[2:] == window:
        return pictures
    fill = torch.tensor(rule.pad, dtype=torch.uint8, device=pictures.device)[None, :, None, None]
    return _cropped(pictures, window, _gray(fill) if rule.color == "gray" else fill)


def _gray(pictures: Tensor) -> Tensor:
    import torch

    parts = (part.to(torch.int32) * weight for part, weight in zip(pictures.unbind(1), _LUMA, strict=True))
    red, green, blue = parts
    luma: Tensor = (red + green + blue + (1 << 15)) >> 16
    return luma.to(torch.uint8)[:, None]


def _resized(pictures: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Along one axis after the other, and rounded in between, as Pillow does."""
    from torch.nn.functional import interpolate

    for step in ((pictures.shape[2], size[1]), size):
        if pictures.shape[2:] != step:
            values = interpolate(pictures.float(), step, mode=interpolation, antialias=True)
            pictures = values.add_(0.5).clamp_(0, 255).byte()
    return pictures


def _cropped(pictures: Tensor, window: tuple[int, int], fill: Tensor) -> Tensor:
    """The center of ``pictures``, with ``fill``, [1, C, 1, 1], around it."""
    (high, wide), (height, width) = pictures.shape[2:], window
    (above, top), (before, left) = margins(high, height), margins(wide, width)
    canvas = fill.repeat(len(pictures), 1, max(high, height), max(wide, width))
    canvas[:, :, above : above + high, before : before + wide] = pictures
    return canvas[:, :, top : top + height, left : left + width]
