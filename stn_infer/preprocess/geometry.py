"""Sizes and offsets of resizing, cropping and padding, in pixels."""

from __future__ import annotations

from dataclasses import dataclass

from stn_infer.preprocess.rule import Preprocess, Resize


@dataclass(frozen=True)
class Placement:
    """One axis of a picture on its way to the model.

    Attributes:
        source: the picture's length.
        scaled: its length after resizing.
        length: the model's length.
        offset: which pixel of the resized picture is the model's first; negative if padding comes first.
    """

    source: int
    scaled: int
    length: int
    offset: int


def scaled_size(size: tuple[int, int], target: tuple[int, int], how: Resize) -> tuple[int, int]:
    """(height, width) after resizing.

    torchvision's ``Resize(N)`` rounds the longer side down, timm's for two lengths rounds to the nearest integer; this
    does the former for squares that are covered, and the latter otherwise.
    """
    if how == "stretch":
        return target
    if how == "shortest" and target[0] == target[1]:
        shorter = min(size)
        height, width = (int(target[0] * side / shorter) for side in size)
        return height, width
    bound = max if how == "longest" else min
    ratio = bound(side / wanted for side, wanted in zip(size, target, strict=True))
    height, width = (max(1, round(side / ratio)) for side in size)
    return height, width


def window_of(rule: Preprocess) -> tuple[int, int] | None:
    """(height, width) that is cut from the center or padded to after resizing; None: all of the picture, as it is."""
    return rule.crop or (rule.size if rule.resize == "longest" else None)


def margins(length: int, window: int) -> tuple[int, int]:
    """How many pixels are added before an axis of this length, and then cut off, for a window around its center.

    Odd differences are split as torchvision's CenterCrop does.
    """
    longer = max(length, window)
    return (longer - length) // 2, round((longer - window) / 2)


def placements(rule: Preprocess, size: tuple[int, int]) -> tuple[Placement, Placement]:
    """Height and width of a picture of ``size``."""
    scaled = size if rule.size is None else scaled_size(size, rule.size, rule.resize)
    window = window_of(rule) or scaled
    found = []
    for source, length, wanted in zip(size, scaled, window, strict=True):
        before, cut = margins(length, wanted)
        found.append(Placement(source, length, wanted, cut - before))
    return found[0], found[1]
