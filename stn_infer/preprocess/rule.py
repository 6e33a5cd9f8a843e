"""The rule by which a decoded picture becomes a model's input. Imports neither torch nor onnx nor Pillow."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from stn_infer.errors import UsageError
from stn_infer.preprocess.configs import fields_of_transforms, read_config
from stn_infer.preprocess.text import as_text, fields_of, is_config
from stn_infer.version import respelled

# The largest decoded or resized image. In RGB it takes 192 MiB, and the same again during conversion.
MOST_PIXELS = 1 << 26

ColorMode = Literal["gray", "rgb", "bgr"]
COLORS: tuple[ColorMode, ...] = get_args(ColorMode)
Resize = Literal["stretch", "shortest", "longest"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
Exif = Literal["apply", "ignore"]
Jpeg = Literal["exact", "scaled", "nvimgcodec"]
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Embedded:
    """That a file's graph does the preprocessing.

    Attributes:
        size: (height, width) of the pictures that it resizes; None: the caller resizes and crops them as the rule says.
    """

    size: tuple[int, int] | None = None

    @classmethod
    def from_json(cls, stored: object) -> Embedded:
        """What ``dataclasses.asdict`` returned.

        Raises:
            ValueError, UsageError: it is something else.
        """
        if not isinstance(stored, dict) or set(stored) != {"size"}:
            raise ValueError("embedded preprocessing is not an object with a size")
        size = tuple(stored["size"]) if isinstance(stored["size"], list) else stored["size"]
        _check_area("source size", size)
        return cls(size)


@dataclass(frozen=True)
class Preprocess:
    """Converts a decoded 8-bit image to a model's input [C, H, W].

    The order is: orientation, alpha, color, resize, crop, then ``((pixel * scale) ** gamma - mean) / std``.

    Attributes:
        color: ``gray`` (one channel, ITU-R 601 luma), ``rgb`` or ``bgr`` (three; the order in which the model takes
            them).
        size: (height, width) to resize to, see ``resize``; None: images keep their size.
        scale: factor on pixel values 0..255, applied first.
        mean, std: one value, or one per channel in the model's order.
        resize: ``stretch`` to ``size``; ``shortest``: keep the ratio and cover ``size``, so that for a square the
            shorter side gets its length; ``longest``: keep the ratio, fit into ``size``, and, without a crop, fill the
            rest with ``pad`` around the image.
        crop: (height, width) to cut from the center after resizing; a smaller image is filled with ``pad``.
        interpolation: Pillow's filter for resizing; it always averages over all pixels (antialiasing).
        gamma: exponent on scaled values.
        exif: whether a photo is turned as its EXIF orientation says. Pillow itself turns TIFF files.
        background: the color under transparent pixels; None: the alpha channel is dropped.
        pad: the color of padding.
        jpeg: ``scaled``: JPEG files of at least four times ``size`` are decoded at a half, a quarter or an eighth of
            their size, which is faster; pixels of photos then differ by up to 5 levels of 255, single ones by more.
            ``nvimgcodec``: nvImageCodec decodes JPEG files, on the model's GPU, instead of Pillow.

    Raises:
        UsageError: a field is out of range or malformed.
    """

    color: ColorMode = "gray"
    size: tuple[int, int] | None = None
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize = "stretch"
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    gamma: float = 1.0
    exif: Exif = "apply"
    background: Rgb | None = None
    pad: Rgb = (0, 0, 0)
    jpeg: Jpeg = "exact"

    def __post_init__(self) -> None:
        for name, known in (
            ("color", COLORS),
            ("resize", RESIZES),
            ("interpolation", INTERPOLATIONS),
            ("exif", get_args(Exif)),
            ("jpeg", get_args(Jpeg)),
        ):
            if getattr(self, name) not in known:
                expected = " or ".join(map(repr, known))
                raise UsageError(f"preprocess {name} is {expected}, not {getattr(self, name)!r}")
        for name in ("size", "crop"):
            _check_area(name, getattr(self, name))
        for name in ("background", "pad"):
            _check_color(name, getattr(self, name))
        for name, sized in (("resize", ("shortest", "longest")), ("jpeg", ("scaled",))):
            if getattr(self, name) in sized and self.size is None:
                raise UsageError(f"preprocess {name}={getattr(self, name)} needs a size, such as size=256")
        for name, values in (
            ("scale", (self.scale,)),
            ("mean", self.mean),
            ("std", self.std),
            ("gamma", (self.gamma,)),
        ):
            if not all(isinstance(value, int | float) and isfinite(value) for value in values):
                raise UsageError(f"preprocess {name} is a finite number, not {values}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise UsageError(f"preprocess {name} has {len(values)} values; {self.color} takes 1 or {self.channels}")
        if any(value == 0 for value in self.std):
            raise UsageError("preprocess std contains 0, which would divide by zero")
        if self.gamma <= 0 or (self.gamma != 1 and self.scale < 0):
            raise UsageError(
                f"preprocess gamma is above 0, and needs a scale of at least 0, not {self.gamma} and {self.scale}"
            )

    @property
    def channels(self) -> int:
        """1 for gray, 3 for rgb and bgr."""
        return 1 if self.color == "gray" else 3

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every input; None if it depends on the image."""
        if self.crop is not None:
            return self.crop
        return None if self.resize == "shortest" else self.size

    def unsized(self) -> Preprocess:
        """This rule without resizing and cropping, for images that have the model's size."""
        jpeg: Jpeg = "exact" if self.jpeg == "scaled" else self.jpeg
        return replace(self, size=None, crop=None, resize="stretch", jpeg=jpeg)

    @property
    def is_raw(self) -> bool:
        """Whether pixel values stay as they are."""
        return self.scale == 1 and self.gamma == 1 and not any(self.mean) and set(self.std) == {1.0}

    def outside(self, embedded: Embedded) -> Preprocess:
        """What remains to be done with pictures for a file that does ``embedded`` itself."""
        color: ColorMode = "gray" if self.color == "gray" else "rgb"
        rule = replace(self, color=color, scale=1.0, gamma=1.0, mean=(0.0,), std=(1.0,))
        return rule if embedded.size is None else rule.unsized()

    def updated(self, text: str) -> Preprocess:
        """This rule with the fields in ``text`` replaced.

        A new color turns the order of mean and std, or resets those that are given per channel.

        Args:
            text: as for :func:`~stn_infer.preprocess.text.fields_of`, or the path of a ``.json`` file that
                :func:`~stn_infer.preprocess.configs.read_config` reads.

        Raises:
            UsageError: an unknown key, a malformed value, or an unreadable file.
        """
        text = text.strip()
        given = read_config(Path(text)) if is_config(text) else fields_of(text)
        return replace(self._in_color(given.get("color", self.color)), **given)

    def _in_color(self, color: ColorMode) -> Preprocess:
        """This rule for another color; the channels' own mean and std follow their channels, or are reset."""
        if color == self.color or color not in COLORS:
            return self
        turned = {self.color, color} == {"rgb", "bgr"}
        mean = self.mean if len(self.mean) == 1 else self.mean[::-1] if turned else (0.0,)
        std = self.std if len(self.std) == 1 else self.std[::-1] if turned else (1.0,)
        return replace(self, color=color, mean=mean, std=std)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """The rule that ``text`` describes; absent fields have their defaults."""
        return cls().updated(text)

    @classmethod
    def from_transforms(cls, transforms: Any) -> Preprocess:
        """The rule of torchvision's transforms; see :func:`~stn_infer.preprocess.configs.fields_of_transforms`."""
        return cls(**fields_of_transforms(transforms))

    def describe(self) -> str:
        """The rule as text that :meth:`parse` takes; fields with their defaults are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {field.name: field.default for field in fields(self)}
        return as_text({name: value for name, value in values.items() if name == "color" or value != plain[name]})

    @classmethod
    def from_json(cls, stored: object) -> Preprocess:
        """The rule from a file's metadata; a file of an earlier version ignores EXIF orientation.

        Raises:
            ValueError, TypeError, UsageError: it is damaged.
        """
        if not isinstance(stored, dict):
            raise ValueError("preprocess is not an object")
        known: dict[str, Any] = {"exif": "ignore", **{respelled(key): value for key, value in stored.items()}}
        if isinstance(known.get("color"), str):
            known["color"] = respelled(known["color"])
        for key in ("size", "mean", "std", "crop", "background", "pad"):
            value = known.get(key)
            if isinstance(value, list):
                known[key] = tuple(value)
        return cls(**known)


def _check_area(name: str, area: object) -> None:
    if area is None:
        return
    if not isinstance(area, tuple) or len(area) != 2 or not all(type(axis) is int and axis >= 1 for axis in area):
        raise UsageError(f"preprocess {name} is HEIGHTxWIDTH, both at least 1, not {area}")
    if area[0] * area[1] > MOST_PIXELS:
        raise UsageError(f"preprocess {name} is at most {MOST_PIXELS >> 20} million pixels, not {area}")


def _check_color(name: str, color: object) -> None:
    if color is None and name == "background":
        return
    if not isinstance(color, tuple) or len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
        raise UsageError(f"preprocess {name} is a color such as white or #8090a0, not {color}")
