"""Rules from what others write: timm's and Hugging Face's configuration files, torchvision's transforms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import floor
from pathlib import Path
from typing import Any

from stn_infer.errors import UsageError, one_line
from stn_infer.preprocess.text import IMAGENET_MEAN, IMAGENET_STD

_MOST_BYTES = 1 << 20
# Pillow's numbers of its filters, which Hugging Face's files store.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# timm's default, which its files leave out.
_TIMM_CROP = 0.875


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a rule from a model's configuration file.

    Args:
        path: timm's ``config.json`` or Hugging Face's ``preprocessor_config.json``.

    Returns:
        Fields of :class:`~stn_infer.preprocess.rule.Preprocess`.

    Raises:
        UsageError: the file cannot be read, is of neither kind, or asks for what there is no field for.
    """
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(f"cannot read the preprocessing in {path}: {reason}") from None
    try:
        return fields_of_config(config)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UsageError(
            f"{path} is neither timm's config.json nor Hugging Face's preprocessor_config.json ({detail})"
        ) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def fields_of_config(config: Any) -> dict[str, Any]:
    """:func:`read_config` for a parsed file.

    Raises:
        KeyError, TypeError, ValueError: it is of neither kind.
        UsageError: it asks for what there is no field for.
    """
    if any(key in config for key in ("image_mean", "image_processor_type", "feature_extractor_type")):
        return _hugging_face(config)
    own = config.get("pretrained_cfg", config)
    return _timm(own)


def _timm(config: Mapping[str, Any]) -> dict[str, Any]:
    channels, height, width = config["input_size"]
    fields: dict[str, Any] = {"color": {1: "gray", 3: "rgb"}[channels], "scale": 1 / 255}
    fields["mean"], fields["std"] = _values(config["mean"], channels), _values(config["std"], channels)
    fields["interpolation"] = _filter(config.get("interpolation", "bilinear"))
    part = config.get("crop_pct") or _TIMM_CROP
    larger = (floor(height / part), floor(width / part))
    mode = config.get("crop_mode") or "center"
    if mode == "border":
        fields["pad"] = _fill(fields["mean"])
    how = {"center": "shortest", "squash": "stretch", "border": "longest"}.get(mode)
    if how is None:
        raise UsageError(f"timm's crop_mode {mode!r} is unknown; write the fields yourself")
    return {**fields, "size": larger, "resize": how, "crop": (height, width)}


def _hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"color": "rgb", "scale": 1.0, "mean": (0.0,), "std": (1.0,)}
    size = config.get("size")
    if config.get("do_resize", True) and size is not None:
        fields.update(_hugging_face_size(size))
        fields["interpolation"] = _filter(config.get("resample", 2))
        if config.get("crop_pct") and isinstance(size, Mapping) and "shortest_edge" in size:
            edge = size["shortest_edge"]
            larger = int(edge / config["crop_pct"])
            # ConvNeXT: up to 384 px the larger size is cropped to `edge`, from there on the image is stretched.
            crops = edge < 384
            fields["size"] = (larger, larger) if crops else (edge, edge)
            fields["resize"] = "shortest" if crops else "stretch"
            fields["crop"] = (edge, edge) if crops else None
    if config.get("do_center_crop") and "crop_size" in config:
        fields["crop"] = _pair(config["crop_size"])
    if config.get("do_pad") and fields.get("resize") != "longest":
        raise UsageError("its padding (do_pad) is to the batch's largest image, which no fixed input has")
    if config.get("do_rescale", True):
        fields["scale"] = float(config.get("rescale_factor", 1 / 255))
        if abs(fields["scale"] * 255 - 1) < 1e-9:
            fields["scale"] = 1 / 255
    if config.get("do_normalize", True):
        fields["mean"] = _values(config.get("image_mean", IMAGENET_MEAN), 3)
        fields["std"] = _values(config.get("image_std", IMAGENET_STD), 3)
    return fields


def _hugging_face_size(size: Any) -> dict[str, Any]:
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if "longest_edge" in size:
            raise UsageError("its size bounds both edges, which no fixed input has; write size= and resize= yourself")
        edge = int(size["shortest_edge"])
        return {"size": (edge, edge), "resize": "shortest"}
    return {"size": _pair(size), "resize": "stretch"}


def fields_of_transforms(transforms: Any) -> dict[str, Any]:
    """The fields of a rule from torchvision's transforms, recognized by the names of their classes.

    Args:
        transforms: one of torchvision's transforms of images, a list of them, ``Compose``, or a weights' preset
            (``weights.transforms()``). RGB is assumed unless ``Grayscale`` is among them.

    Raises:
        UsageError: a transform is unknown, random, or out of order.
    """
    fields: dict[str, Any] = {"color": "rgb", "scale": 1.0, "mean": (0.0,), "std": (1.0,)}
    for transform in _flat(transforms):
        name = type(transform).__name__
        if name == "ImageClassification":
            fields.update(_resize(transform.resize_size, transform.interpolation, None))
            fields["crop"] = _pair(transform.crop_size)
            fields.update(scale=1 / 255, mean=_values(transform.mean, 3), std=_values(transform.std, 3))
        elif name == "Resize":
            if "crop" in fields:
                raise UsageError("torchvision's Resize after CenterCrop has no fields; crop last")
            fields.update(_resize(transform.size, transform.interpolation, transform.max_size))
        elif name == "CenterCrop":
            fields["crop"] = _pair(transform.size)
        elif name == "Grayscale" and transform.num_output_channels == 1:
            fields["color"] = "gray"
        elif name == "ToTensor" or (name in ("ConvertImageDtype", "ToDtype") and _scales(transform)):
            fields["scale"] = 1 / 255
        elif name == "Normalize":
            channels = 1 if fields["color"] == "gray" else 3
            fields["mean"], fields["std"] = _values(transform.mean, channels), _values(transform.std, channels)
        elif name not in ("PILToTensor", "ToImage", "ToPILImage", "Identity"):
            raise UsageError(
                f"torchvision's {name} has no fields; those of Resize, CenterCrop, Grayscale(1), ToTensor, "
                "ConvertImageDtype, ToDtype(scale=True) and Normalize are read"
            )
    return fields


def _flat(transforms: Any) -> list[Any]:
    if isinstance(transforms, Sequence):
        return [each for transform in transforms for each in _flat(transform)]
    if type(transforms).__name__ == "Compose":
        return _flat(list(transforms.transforms))
    return [transforms]


def _scales(transform: Any) -> bool:
    return type(transform).__name__ == "ConvertImageDtype" or bool(getattr(transform, "scale", False))


def _resize(size: Any, interpolation: Any, most: Any) -> dict[str, Any]:
    if most is not None:
        raise UsageError("torchvision's Resize(max_size=...) has no fields; give a fixed size")
    sides = list(size) if isinstance(size, Sequence) else [size]
    fields: dict[str, Any] = {"size": _pair(size), "resize": "shortest" if len(sides) == 1 else "stretch"}
    return {**fields, "interpolation": _filter(getattr(interpolation, "value", interpolation))}


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    sides = [int(side) for side in (size if isinstance(size, Sequence) else [size])]
    return sides[0], sides[-1]


def _values(values: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in (values if isinstance(values, Sequence) else [values]))
    if len(numbers) not in (1, channels):
        raise ValueError(f"{len(numbers)} values for {channels} channels")
    return numbers


def _filter(name: Any) -> str:
    if isinstance(name, int):
        return _FILTERS[name]
    if name not in _FILTERS:
        raise UsageError(f"interpolation {name!r} is unknown")
    return str(name)


def _fill(mean: Sequence[float]) -> tuple[int, ...]:
    return tuple(min(255, max(0, round(255 * value))) for value in (*mean, *mean, *mean)[:3])
