"""Optimization profiles: the shapes of a model's dynamic inputs for which an engine is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stn_infer.backends.tensorrt.engine_cache import InputProfile, Profiles, profile_texts
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


def resolve_profiles(model: onnx.ModelProto, profile: Profile | Sequence[Profile] | None) -> Profiles:
    """The optimization profiles of ``model``: in each, the shapes of every input that has a dynamic axis.

    Args:
        model: the model.
        profile: one or several; an axis's goes before its input's, and its input's before the one without a name. One
            whose name, or whose lack of a name, was given before begins the next optimization profile, which is like
            the one before in what it is not given. None: batches of 1 to 256.

    Raises:
        UsageError: a profile fits no axis or input, two optimization profiles are equal, the model has no dynamic
            input, or an axis other than the batch is dynamic and no profile has its size.
    """
    given = (profile,) if isinstance(profile, Profile) else tuple(profile or ())
    dynamic = [each for value in given_inputs(model.graph) if (each := _input(value)).axes]
    if given and not dynamic:
        raise UsageError("the model has fixed shapes and takes no profile; omit --profile")
    if not dynamic:
        return ()
    axes = {axis for each in dynamic for axis in each.axes if axis}
    _check_names(given, dynamic, axes)
    found: list[tuple[InputProfile, ...]] = []
    for named in _grouped(given):
        whole = named.get("", Profile())
        ranges = {name: each for name, each in named.items() if name in axes}
        made = tuple(_profile_of(each, named.get(each.name, whole), ranges) for each in dynamic)
        if made in found:
            raise UsageError(f"two optimization profiles are equal: {profile_texts([made])[0]}; leave one out")
        found.append(made)
    return tuple(found)


def _grouped(given: Sequence[Profile]) -> list[dict[str, Profile]]:
    """What is given for each optimization profile, by name; a name that was given for one begins the next."""
    groups, new = [dict[str, Profile]()], set[str]()
    for each in given:
        if each.name in new:
            groups.append(dict(groups[-1]))
            new.clear()
        groups[-1][each.name] = each
        new.add(each.name)
    return groups


def _check_names(given: Sequence[Profile], dynamic: Sequence[_Input], axes: set[str]) -> None:
    for profile in given:
        name = profile.name
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
