"""Optimization profiles: the shapes of a model's dynamic inputs for which an engine is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stn_infer.backends.tensorrt.engine_cache import InputProfile
from stn_infer.errors import UsageError
from stn_infer.proto.traversal import given_inputs

if TYPE_CHECKING:
    import onnx

_FORM = re.compile(r"(?:(?P<name>.+)=)?(?P<sizes>\d+(?:x\d+)*(?::\d+(?:x\d+)*){2})")


@dataclass(frozen=True)
class Profile:
    """The minimum, optimum and maximum of sizes.

    Attributes:
        min, opt, max: one size, or a complete shape.
        name: what has these sizes: a dynamic axis by its name in the file (one size), or an input (one size: its
            batch). Empty: every input without a profile of its own.
    """

    min: tuple[int, ...] = (1,)
    opt: tuple[int, ...] = (64,)
    max: tuple[int, ...] = (256,)
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read ``[NAME=]MIN:OPT:MAX``, e.g. ``1:64:256``, ``boxes_batch=1:100:1000`` or ``1x3x8x8:4x3x8x8:8x3x8x8``.

        Raises:
            UsageError: ``text`` is malformed, or a size is below 1 or below its predecessor.
        """
        form = _FORM.fullmatch(text)
        if form is None:
            raise UsageError(
                "a profile is MIN:OPT:MAX or NAME=MIN:OPT:MAX, e.g. 1:64:256, boxes_batch=1:100:1000 or "
                f"1x3x64x64:8x3x64x64:32x3x64x64, not {text!r}"
            )
        low, best, high = (tuple(map(int, part.split("x"))) for part in form["sizes"].split(":"))
        if not len(low) == len(best) == len(high):
            raise UsageError(f"MIN, OPT and MAX need the same number of sizes, not {text!r}")
        if any(not 1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise UsageError(f"MIN must be at least 1, OPT at least MIN and MAX at least OPT, not {text!r}")
        return cls(low, best, high, form["name"] or "")

    def __str__(self) -> str:
        sizes = ":".join("x".join(map(str, sizes)) for sizes in (self.min, self.opt, self.max))
        return f"{self.name}={sizes}" if self.name else sizes


@dataclass(frozen=True)
class _Input:
    """An input: the size of each axis, or the name of a dynamic one (empty: it has none)."""

    name: str
    shape: tuple[int | str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in self.shape if isinstance(axis, str))

    def __str__(self) -> str:
        return "x".join("?" if isinstance(axis, str) else str(axis) for axis in self.shape)


def resolve_profiles(model: onnx.ModelProto, profile: Profile | Sequence[Profile] | None) -> tuple[InputProfile, ...]:
    """The profile of every input of ``model`` that has a dynamic axis.

    Args:
        model: the model.
        profile: one or several; an axis's goes before its input's, and its input's before the one without a name. None:
            batches of 1 to 256.

    Raises:
        UsageError: a profile fits no axis or input, two are for the same one, the model has no dynamic input, or an
            axis other than the batch is dynamic and no profile has its size.
    """
    given = (profile,) if isinstance(profile, Profile) else tuple(profile or ())
    dynamic = [found for value in given_inputs(model.graph) if (found := _input(value)).axes]
    if given and not dynamic:
        raise UsageError("the model has fixed shapes and takes no profile; omit --profile")
    named = {each.name: each for each in given}
    if len(named) < len(given):
        twice = next(each for each in given if named[each.name] is not each)
        raise UsageError(
            f"two profiles are for {twice.name or 'all inputs'}: {twice} and {named[twice.name]}; give one"
        )
    axes = {axis for each in dynamic for axis in each.axes if axis}
    _check_names(named, dynamic, axes)
    whole = named.get("", Profile())
    ranges = {name: each for name, each in named.items() if name in axes}
    return tuple(_profile_of(each, named.get(each.name, whole), ranges) for each in dynamic)


def _check_names(named: Mapping[str, Profile], dynamic: Sequence[_Input], axes: set[str]) -> None:
    for name, profile in named.items():
        if name and name not in axes and all(name != each.name for each in dynamic):
            inputs = ", ".join(each.name for each in dynamic)
            raise UsageError(
                f"--profile {profile}: the model has no dynamic axis or input {name!r}; its dynamic axes are "
                f"{', '.join(sorted(axes)) or 'without names'}, its inputs with dynamic axes {inputs}"
            )
        if name in axes and len(profile.min) > 1:
            raise UsageError(f"--profile {profile}: {name} is an axis, which has one size; give {name}=MIN:OPT:MAX")


def _profile_of(given: _Input, profile: Profile, ranges: Mapping[str, Profile]) -> InputProfile:
    """The profile of one input: ``ranges`` of its axes by name, the others from ``profile``."""
    complete = len(profile.min) > 1
    if complete and (
        len(profile.min) != len(given.shape)
        or any(
            isinstance(axis, int) and axis != size
            for sizes in (profile.min, profile.opt, profile.max)
            for axis, size in zip(given.shape, sizes, strict=True)
        )
    ):
        raise UsageError(f"input {given.name!r} is {given}, but --profile has {profile}")
    sizes: list[tuple[int, int, int]] = []
    for index, axis in enumerate(given.shape):
        if isinstance(axis, int):
            sizes.append((axis, axis, axis))
        elif axis in ranges or complete or index == 0:
            of, place = (ranges[axis], 0) if axis in ranges else (profile, index)
            sizes.append((of.min[place], of.opt[place], of.max[place]))
        else:
            ways = "complete shapes, e.g. 1x3x64x64:8x3x224x224:16x3x512x512"
            ways += f", or one for each axis, e.g. {axis}=64:224:512" if axis else ""
            raise UsageError(f"input {given.name!r} is {given}: --profile needs {ways}")
    low, best, high = zip(*sizes, strict=True)
    return InputProfile(given.name, low, best, high)


def _input(value: onnx.ValueInfoProto) -> _Input:
    axes = value.type.tensor_type.shape.dim
    return _Input(
        value.name,
        tuple(axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else axis.dim_param for axis in axes),
    )
