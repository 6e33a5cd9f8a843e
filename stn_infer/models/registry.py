"""The networks by name. This module does not import torch; building a network does."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stn_infer.decoding import Decoding
from stn_infer.errors import UsageError, batch_advice

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """A network that :func:`create` builds.

    Attributes:
        name: as on the command line.
        description: one line.
        function: ``module:function`` in ``stn_infer.models`` that builds it.
        family: its transformation in ``stn_infer.transforms``, the function's first argument; empty if it takes none.
        input_shape: the default of the option ``input_shape``, (C, H, W), or (C, D, H, W) for volumes.
        presets: options that differ from the function's defaults.
        decodings: the texts and boxes that its outputs encode.
    """

    name: str
    description: str
    function: str
    family: str = ""
    input_shape: tuple[int, ...] = (1, 28, 28)
    presets: Mapping[str, Any] = field(default_factory=dict)
    decodings: tuple[Decoding, ...] = ()

    def build(self, **options: Any) -> nn.Module:
        """The module, with random weights; options and errors as for :func:`create`."""
        module, _, function = self.function.partition(":")
        make = getattr(import_module(f"stn_infer.models.{module}"), function)
        known = set(inspect.signature(make).parameters) - {"transformation"}
        own: set[str] = set()
        if self.family:
            family = getattr(import_module("stn_infer.transforms"), self.family)
            own = {entry.name for entry in fields(family) if entry.name != "rank"}
        unknown = [key for key in options if key not in known | own]
        if unknown:
            expected = ", ".join(sorted(known | own))
            raise UsageError(f"network {self.name} has no option {unknown[0]!r}; its options: {expected}")
        options = {**self.presets, **options}
        rest = {key: value for key, value in options.items() if key not in own}
        try:
            if not self.family:
                return make(**rest)  # type: ignore[no-any-return]
            transformation = family(**{key: value for key, value in options.items() if key in own})
            return make(transformation, **rest)  # type: ignore[no-any-return]
        except (TypeError, ValueError, RuntimeError) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in options.items())
            reason = str(error).partition("\n")[0]
            shape = options.get("input_shape")
            advice = batch_advice([shape]) if isinstance(shape, tuple) else ""
            raise UsageError(f"network {self.name} cannot be built with {given}: {reason}{advice}") from None


def create(name: str, **options: Any) -> nn.Module:
    """The network called ``name``, with random weights.

    Args:
        name: a key of :data:`NETWORKS`.
        options: arguments of the function in ``stn_infer.models`` that builds it (``input_shape``, ``classes``, ...),
            and fields of the transformation (``points``, ``scale``).

    Raises:
        UsageError: no such network, an unknown option, or an invalid value.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(NETWORKS)}"
        raise UsageError(f"no such network: {name!r}; {hint}")
    return NETWORKS[name].build(**options)


_FAMILIES = (
    ("affine", "Affine", "affine spatial transformer"),
    ("projective", "Projective", "projective spatial transformer"),
    ("tps", "ThinPlateSpline", "thin plate spline (4 x 4 points) spatial transformer"),
    ("piecewise", "PiecewiseAffine", "piecewise affine (4 x 4 points) spatial transformer"),
    ("translation", "Translation", "translation spatial transformer"),
    ("attention", "Attention", "attention (scale and translation) spatial transformer"),
    ("rigid", "Rigid", "rigid (rotation and translation) spatial transformer"),
    ("similarity", "Similarity", "similarity (scale, rotation and translation) spatial transformer"),
    ("lattice", "CoarseLattice", "coarse lattice (8 x 8 points, bilinear) spatial transformer"),
    ("bspline", "CubicBSpline", "cubic B-spline (8 x 8 points) spatial transformer"),
)
_HOUSE_NUMBER = (3, 64, 64)
_ADDITION = (2, 42, 42)
_VOLUME = (1, 60, 60, 60)
#: Reduced widths that two CPU cores train within hours.
_SMALL_NUMBER = {"width": 0.25, "hidden": 256, "dropout": 0.1}
_SMALL_VOLUME = {"filters": 8}
_PARTS = (3, 96, 96)
_SMALL_PARTS = {"input_shape": _PARTS, "classes": 16, "width": 0.25}

#: ``classes - 1`` of a house number's classes is "no digit".
_NUMBER = (Decoding("number", "sequence", ("output",), end=-1),)
_BOX = (Decoding("object", "box", ("box",)),)

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("fcn", "two fully connected hidden layers", "baselines:fcn"),
        Network("cnn", "conv 9x9, conv 7x7, one output layer", "baselines:cnn"),
        *(
            Network(f"st-fcn-{name}", f"{text} before the fcn", "spatial:st_fcn", family)
            for name, family, text in _FAMILIES
        ),
        *(
            Network(f"st-cnn-{name}", f"{text} before the cnn", "spatial:st_cnn", family)
            for name, family, text in _FAMILIES
        ),
        Network(
            "svhn-cnn",
            "house numbers of up to five digits, no STN",
            "house_numbers:svhn_cnn",
            "",
            _HOUSE_NUMBER,
            {},
            _NUMBER,
        ),
        Network(
            "svhn-st-single",
            "house numbers, an affine transformer at the input",
            "house_numbers:svhn_st_single",
            "Affine",
            _HOUSE_NUMBER,
            {},
            _NUMBER,
        ),
        Network(
            "svhn-st-multi",
            "house numbers, affine transformers before the first four convolutions",
            "house_numbers:svhn_st_multi",
            "Affine",
            _HOUSE_NUMBER,
            {},
            _NUMBER,
        ),
        Network(
            "birds-2st", "fine-grained classes, two parallel attention crops", "birds:birds_2st", "", (3, 224, 224)
        ),
        Network(
            "birds-4st", "fine-grained classes, four parallel attention crops", "birds:birds_4st", "", (3, 448, 448)
        ),
        Network("birds-cnn", "fine-grained classes, one Inception, no STN", "birds:birds_cnn", "", (3, 224, 224)),
        Network(
            "mnist-addition",
            "sum of two digits, two parallel affine transformers",
            "addition:mnist_addition",
            "Affine",
            _ADDITION,
        ),
        Network(
            "mnist-addition-projective",
            "as mnist-addition, projective",
            "addition:mnist_addition",
            "Projective",
            _ADDITION,
        ),
        Network(
            "mnist-addition-tps",
            "as mnist-addition, thin plate splines",
            "addition:mnist_addition",
            "ThinPlateSpline",
            _ADDITION,
        ),
        Network(
            "colocalization",
            "crop and box of the common object",
            "colocalization:colocalizer",
            "",
            (1, 84, 84),
            decodings=_BOX,
        ),
        Network(
            "volume-cnn", "a volume's maximum along its depth, classified, no STN", "volumes:volume_cnn", "", _VOLUME
        ),
        Network("st-volume", "3-D affine transformer before volume-cnn", "volumes:st_volume", "", _VOLUME),
        Network(
            "svhn-cnn-small",
            "svhn-cnn, a quarter wide",
            "house_numbers:svhn_cnn",
            "",
            _HOUSE_NUMBER,
            _SMALL_NUMBER,
            _NUMBER,
        ),
        Network(
            "svhn-st-single-small",
            "svhn-st-single, a quarter wide",
            "house_numbers:svhn_st_single",
            "Affine",
            _HOUSE_NUMBER,
            {**_SMALL_NUMBER, "localization_filters": 16},
            _NUMBER,
        ),
        Network(
            "svhn-st-multi-small",
            "svhn-st-multi, a quarter wide",
            "house_numbers:svhn_st_multi",
            "Affine",
            _HOUSE_NUMBER,
            _SMALL_NUMBER,
            _NUMBER,
        ),
        Network(
            "birds-2st-small",
            "birds-2st, a quarter wide, on 96 pixels",
            "birds:birds_2st",
            "",
            _PARTS,
            {**_SMALL_PARTS, "output_size": (64, 64)},
        ),
        Network(
            "birds-cnn-small",
            "birds-cnn, a quarter wide, on 96 pixels",
            "birds:birds_cnn",
            "",
            _PARTS,
            _SMALL_PARTS,
        ),
        Network("volume-cnn-small", "volume-cnn, a quarter wide", "volumes:volume_cnn", "", _VOLUME, _SMALL_VOLUME),
        Network(
            "st-volume-small",
            "st-volume, a quarter wide",
            "volumes:st_volume",
            "",
            _VOLUME,
            {**_SMALL_VOLUME, "localization_filters": 8},
        ),
        Network("tutorial-cnn", "classifier of the tutorial STN, no STN", "tutorial:tutorial_cnn"),
        Network("tutorial-stn", "two-convolution STN of tutorials, with affine_grid", "tutorial:TutorialSTN"),
    )
}
