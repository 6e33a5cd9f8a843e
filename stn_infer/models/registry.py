"""The networks by name. Importing this needs no torch; building one does."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from stn_infer.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """A network that :func:`create` builds.

    Attributes:
        name: as on the command line.
        input_shape: (C, H, W) unless the option ``input_shape`` says otherwise.
        description: one line.
        build: makes the module, with random weights, from its options.
    """

    name: str
    input_shape: tuple[int, int, int]
    description: str
    build: Callable[..., nn.Module]


def create(name: str, **options: Any) -> nn.Module:
    """The network called ``name``, with random weights.

    Args:
        name: a key of :data:`NETWORKS`.
        options: ``input_shape``, ``classes`` and the like, and the transformation's own fields (``points``, ``scale``);
            see the functions in ``stn_infer.models``.

    Raises:
        UsageError: no such network, an option that it does not have, or a value that does not fit it.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(NETWORKS)}"
        raise UsageError(f"there is no network called {name!r}; {hint}")
    return NETWORKS[name].build(**options)


def _plain(name: str, function: str, module: str) -> Callable[..., nn.Module]:
    def build(**options: Any) -> nn.Module:
        target = _imported(module, function)
        return _called(name, target, options)

    return build


def _spatial(name: str, function: str, family: str) -> Callable[..., nn.Module]:
    def build(**options: Any) -> nn.Module:
        transformation = _imported("stn_infer.transforms", family)
        own = {field.name for field in fields(transformation) if field.name != "rank"}
        chosen = {key: value for key, value in options.items() if key in own}
        rest = {key: value for key, value in options.items() if key not in own}
        target = _imported("stn_infer.models.spatial", function)
        return _called(name, target, rest, own, transformation(**chosen))

    return build


def _imported(module: str, function: str) -> Any:
    from importlib import import_module

    return getattr(import_module(module), function)


def _called(
    name: str, target: Any, options: dict[str, Any], also: set[str] | None = None, *positional: Any
) -> nn.Module:
    known = list(inspect.signature(target).parameters)[len(positional) :]
    unknown = [key for key in options if key not in known]
    if unknown:
        expected = ", ".join(sorted({*known, *(also or ())})) or "none"
        raise UsageError(f"network {name} has no option {unknown[0]!r}; its options: {expected}")
    return target(*positional, **options)  # type: ignore[no-any-return]


_FAMILIES = {
    "affine": ("Affine", "an affine transformer"),
    "projective": ("Projective", "a projective transformer"),
    "tps": ("ThinPlateSpline", "a thin plate spline transformer of 4 x 4 points"),
    "attention": ("Attention", "an attention transformer (scale and translation)"),
}


def _networks() -> dict[str, Network]:
    digits = (1, 28, 28)
    networks = [
        Network("fcn", digits, "two fully connected hidden layers", _plain("fcn", "fcn", "stn_infer.models.baselines")),
        Network(
            "cnn", digits, "conv 9x9, conv 7x7, one output layer", _plain("cnn", "cnn", "stn_infer.models.baselines")
        ),
    ]
    for base, function in (("fcn", "st_fcn"), ("cnn", "st_cnn")):
        for family, (transformation, text) in _FAMILIES.items():
            name = f"st-{base}-{family}"
            build = _spatial(name, function, transformation)
            networks.append(Network(name, digits, f"{text} before the {base}", build))
    build = _plain("tutorial-stn", "TutorialSTN", "stn_infer.models.tutorial")
    networks.append(Network("tutorial-stn", digits, "the two-convolution STN of tutorials, affine_grid inside", build))
    return {network.name: network for network in networks}


NETWORKS: dict[str, Network] = _networks()
