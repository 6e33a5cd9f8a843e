"""A model's pre-processing and labels, and how both are stored in an ONNX file.

They are stored as JSON in ``metadata_props`` under keys that start with ``stn_infer.``, so that a file copied to
another machine still describes its inputs. This module imports neither torch nor onnx.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Literal, get_args

from stn_infer.errors import UsageError

PREFIX = "stn_infer."
# The largest decoded or resized image. In RGB it takes 192 MiB, and the same again during conversion.
MOST_PIXELS = 1 << 26

_OLD_SPELLINGS = (("colour", "color"), ("grey", "gray"), ("localisation", "localization"))

ColorMode = Literal["gray", "rgb"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: How spatial transformers are written: as ops of domain ``stn`` with functions, or as plain operators.
Functions = Literal["keep", "inline"]
FUNCTIONS: tuple[Functions, ...] = get_args(Functions)


def respelled(name: str) -> str:
    """A key or value from a file of an earlier version, in the current spelling."""
    for old, new in _OLD_SPELLINGS:
        name = name.replace(old, new)
    return name


@dataclass(frozen=True)
class Preprocess:
    """Converts a decoded 8-bit image to a model's input: ``(pixel * scale - mean) / std``, layout [C, H, W].

    Attributes:
        color: ``gray`` (one channel, ITU-R 601 luma) or ``rgb`` (three).
        size: (height, width) to resize to, bilinear; None: images must have the model's input size.
        scale: factor on pixel values 0..255, applied first.
        mean, std: one value, or one per channel, applied after ``scale``.

    Raises:
        UsageError: a field is out of range or malformed.
    """

    color: ColorMode = "gray"
    size: tuple[int, int] | None = None
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.color not in ("gray", "rgb"):
            raise UsageError(f"preprocess color is 'gray' or 'rgb', not {self.color!r}")
        if self.size is not None:
            if len(self.size) != 2 or not all(type(axis) is int and axis >= 1 for axis in self.size):
                raise UsageError(f"preprocess size is HEIGHTxWIDTH, both at least 1, not {self.size}")
            if self.size[0] * self.size[1] > MOST_PIXELS:
                raise UsageError(f"preprocess size is at most {MOST_PIXELS >> 20} million pixels, not {self.size}")
        for name, values in (("scale", (self.scale,)), ("mean", self.mean), ("std", self.std)):
            if not all(isinstance(value, int | float) and isfinite(value) for value in values):
                raise UsageError(f"preprocess {name} is a finite number, not {values}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise UsageError(f"preprocess {name} has {len(values)} values; {self.color} takes 1 or {self.channels}")
        if any(value == 0 for value in self.std):
            raise UsageError("preprocess std contains 0, which would divide by zero")

    @property
    def channels(self) -> int:
        """1 for gray, 3 for rgb."""
        return 3 if self.color == "rgb" else 1

    def updated(self, text: str) -> Preprocess:
        """Returns this pre-processing with the fields in ``text`` replaced.

        Args:
            text: comma-separated ``key=value``; ``gray`` and ``rgb`` also stand alone. Keys: ``color``, ``size``
                (``42x42``, or ``model`` for the model's input size), ``scale`` (a number or a fraction such as
                ``1/255``), ``mean`` and ``std`` (values joined by ``:``).

        Raises:
            UsageError: an unknown key, or a malformed value.
        """
        fields: dict[str, object] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            key, separator, value = part.partition("=")
            key = respelled(key)
            if not separator and key in ("gray", "rgb"):
                key, value = "color", key
            try:
                fields[key] = _PARSERS[key](value)
            except KeyError:
                expected = ", ".join(sorted(_PARSERS))
                raise UsageError(f"unknown preprocess key {key!r}; expected one of {expected}") from None
            except (ValueError, ZeroDivisionError):
                raise UsageError(
                    f"preprocess {key}={value!r} is malformed; write e.g. "
                    "'rgb,size=224x224,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225'"
                ) from None
        return replace(self, **fields)  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """The pre-processing that ``text`` describes; absent fields keep their defaults."""
        return cls().updated(text)


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    value = float(numerator) / float(denominator or 1)
    if not isfinite(value):
        raise ValueError(text)
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(value) for value in text.split(":"))


def _size(text: str) -> tuple[int, int] | None:
    if text == "model":
        return None
    height, width = text.lower().split("x")
    return int(height), int(width)


_PARSERS: dict[str, Callable[[str], object]] = {
    "color": respelled,
    "size": _size,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
}


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata stored with a model.

    Attributes:
        preprocess: how images become inputs; None when unknown.
        labels: one name per class, in the order of the first output's last axis; None when unknown.
        source: the shipped model's name, or the SOURCE of a loaded model; empty when unknown. A file stores only the
            name of a shipped model: a factory or a path has no meaning on another machine.
        precision: the precision of the file's weights and features.
        batch_dependent: the outputs of a sample that depend on the other samples of its batch, as far as export found.
    """

    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    source: str = ""
    precision: Precision = "fp32"
    batch_dependent: tuple[str, ...] = ()

    def to_props(self) -> dict[str, str]:
        """The ``metadata_props`` of an ONNX file, string to string."""
        props: dict[str, str] = {}
        if self.preprocess is not None:
            props[PREFIX + "preprocess"] = json.dumps(asdict(self.preprocess))
        if self.labels is not None:
            props[PREFIX + "labels"] = json.dumps(list(self.labels))
        if self.source:
            props[PREFIX + "source"] = self.source
        if self.precision != "fp32":
            props[PREFIX + "precision"] = self.precision
        if self.batch_dependent:
            props[PREFIX + "batch_dependent"] = json.dumps(list(self.batch_dependent))
        return props

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata:
        """Reads what :meth:`to_props` wrote; ignores all other keys.

        Raises:
            UsageError: an ``stn_infer.`` key holds a value that this version does not write.
        """
        preprocess, labels = props.get(PREFIX + "preprocess"), props.get(PREFIX + "labels")
        precision = next((name for name in PRECISIONS if name == props.get(PREFIX + "precision", "fp32")), None)
        try:
            if precision is None:
                raise ValueError(f"precision {props[PREFIX + 'precision']!r}")
            return cls(
                None if preprocess is None else _preprocess_from_json(json.loads(preprocess)),
                None if labels is None else _labels_from_json(json.loads(labels)),
                props.get(PREFIX + "source", ""),
                precision,
                _labels_from_json(json.loads(props.get(PREFIX + "batch_dependent", "[]"))),
            )
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
            raise UsageError(f"the file's stn_infer metadata is damaged ({error}); export it again") from None


def _labels_from_json(labels: object) -> tuple[str, ...]:
    if not isinstance(labels, list) or any(isinstance(label, list | dict) for label in labels):
        raise ValueError("expected a list of names")
    return tuple(map(str, labels))


def _preprocess_from_json(fields: object) -> Preprocess:
    if not isinstance(fields, dict):
        raise ValueError("preprocess is not an object")
    known = {respelled(key): value for key, value in fields.items()}
    if isinstance(known.get("color"), str):
        known["color"] = respelled(str(known["color"]))
    for key in ("size", "mean", "std"):
        value = known.get(key)
        if isinstance(value, list):
            known[key] = tuple(value)
    return Preprocess(**known)
