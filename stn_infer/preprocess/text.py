"""A rule as text: ``rgb,size=224x224,mean=0.485,0.456,0.406``, and the presets that stand for several fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from stn_infer.errors import UsageError
from stn_infer.version import respelled

_EXAMPLE = "'rgb,size=224x224,scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225'"

#: ImageNet's channel statistics, of RGB in 0..1.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Names that stand for several fields.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"color": "rgb", "scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "0..1": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)},
    "-1..1": {"scale": 1 / 255, "mean": (0.5,), "std": (0.5,)},
    "0..255": {"scale": 1.0, "mean": (0.0,), "std": (1.0,)},
}
_COLORS = ("gray", "rgb", "bgr")
_NAMED = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}


def fields_of(text: str) -> dict[str, Any]:
    """The fields of a rule that ``text`` names.

    Args:
        text: comma-separated ``key=value``, presets, and colors alone (``gray``, ``rgb``, ``bgr``); later parts
            replace earlier ones. Keys: ``color``; ``size`` and ``crop`` (``42x56``, ``224`` for a square; ``model``
            for none); ``resize``; ``interpolation``; ``scale`` (a number or a fraction such as ``1/255``); ``mean``
            and ``std`` (values joined by ``,`` or ``:``); ``gamma``; ``exif``; ``jpeg``; ``background`` (``none`` or
            a color) and ``pad`` (a color: a name, ``#8090a0`` or ``128:144:160``).

    Raises:
        UsageError: an unknown key, or a malformed value.
    """
    found: dict[str, Any] = {}
    last = ""
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, separator, value = (side.strip() for side in part.partition("="))
        key = respelled(key)
        if not separator and key in PRESETS:
            found.update(PRESETS[key])
            last = ""
            continue
        if not separator and key in _COLORS:
            key, value = "color", key
        elif not separator and last in ("mean", "std"):
            key, value = last, part
        elif key not in _PARSERS:
            expected = ", ".join(sorted(_PARSERS))
            raise UsageError(
                f"unknown preprocess key {key!r}; expected one of {expected}, or a preset: {', '.join(PRESETS)}"
            )
        try:
            parsed = _PARSERS[key](value)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"preprocess {key}={value!r} is malformed; write e.g. {_EXAMPLE}") from None
        found[key] = (*found[key], *parsed) if not separator and key == last else parsed
        if key == "color" and parsed == "bgr" and found.get("mean") == IMAGENET_MEAN:  # of a preset before it
            found.update(mean=IMAGENET_MEAN[::-1], std=IMAGENET_STD[::-1])
        last = key
    return found


def names_values(text: str) -> bool:
    """Whether ``text`` says how pixel values become numbers: a preset, a configuration file, scale, mean or std.

    Raises:
        UsageError: as for :func:`fields_of`.
    """
    return is_config(text) or not fields_of(text).keys().isdisjoint(("scale", "mean", "std"))


def is_config(text: str) -> bool:
    """Whether ``text`` is the name of a configuration file rather than fields."""
    return text.strip().lower().endswith(".json")


def as_text(values: Mapping[str, Any]) -> str:
    """Text that :func:`fields_of` reads, with these values."""
    parts = []
    for name, value in values.items():
        if name == "color":
            parts.append(str(value))
        elif name in ("size", "crop"):
            parts.append(f"{name}={'model' if value is None else 'x'.join(map(str, value))}")
        elif name in ("background", "pad"):
            parts.append(f"{name}={'none' if value is None else '#' + bytes(value).hex()}")
        elif name in ("mean", "std"):
            parts.append(f"{name}={':'.join(map(_exact, value))}")
        elif name in ("scale", "gamma"):
            parts.append(f"{name}={_fraction(value)}")
        else:
            parts.append(f"{name}={value}")
    return ",".join(parts)


def _exact(number: float) -> str:
    """The shorter of two texts that are read as ``number``."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _fraction(number: float) -> str:
    plain = _exact(number)
    inverse = _exact(round(1 / number, 6))
    fraction = f"1/{inverse}"
    return fraction if len(fraction) < len(plain) and float(inverse) and 1 / float(inverse) == number else plain


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    value = float(numerator) / float(denominator or 1)
    if not isfinite(value):
        raise ValueError(text)
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(value) for value in text.split(":"))


def _size(text: str) -> tuple[int, int] | None:
    if text in ("model", "none"):
        return None
    height, separator, width = text.lower().partition("x")
    return int(height), int(width if separator else height)


def _color(text: str) -> tuple[int, ...] | None:
    if text == "none":
        return None
    name = respelled(text.lower())
    if name in _NAMED:
        return _NAMED[name]
    if text.startswith("#"):
        return tuple(bytes.fromhex(text[1:]))
    return tuple(int(value) for value in text.split(":"))


_PARSERS: dict[str, Callable[[str], Any]] = {
    "background": _color,
    "color": respelled,
    "crop": _size,
    "exif": str,
    "gamma": _number,
    "interpolation": str,
    "jpeg": str,
    "mean": _numbers,
    "pad": _color,
    "resize": str,
    "scale": _number,
    "size": _size,
    "std": _numbers,
}
