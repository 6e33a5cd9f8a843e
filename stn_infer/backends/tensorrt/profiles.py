"""Optimization profiles: the shapes of a model's dynamic inputs for which an engine is built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stn_infer.backends.tensorrt.engine_cache import InputProfile
from stn_infer.errors import UsageError
from stn_infer.proto.traversal import given_inputs

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Profile:
    """The minimum, optimum and maximum shape of the inputs: a batch size or a complete shape for each."""

    min: tuple[int, ...] = (1,)
    opt: tuple[int, ...] = (64,)
    max: tuple[int, ...] = (256,)

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read ``MIN:OPT:MAX``, e.g. ``1:64:256`` or ``1x3x64x64:8x3x224x224:32x3x512x512``.

        Raises:
            UsageError: ``text`` is malformed, or a size is below 1 or below its predecessor.
        """
        if re.fullmatch(r"\d+(x\d+)*(:\d+(x\d+)*){2}", text) is None:
            raise UsageError(f"a profile is MIN:OPT:MAX, e.g. 1:64:256 or 1x3x64x64:8x3x64x64:32x3x64x64, not {text!r}")
        low, best, high = (tuple(map(int, part.split("x"))) for part in text.split(":"))
        if not len(low) == len(best) == len(high):
            raise UsageError(f"MIN, OPT and MAX need the same number of sizes, not {text!r}")
        if any(not 1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise UsageError(f"MIN must be at least 1, OPT at least MIN and MAX at least OPT, not {text!r}")
        return cls(low, best, high)


def resolve_profiles(model: onnx.ModelProto, profile: Profile | None) -> tuple[InputProfile, ...]:
    """The profile of every input of ``model`` that has a dynamic axis.

    Raises:
        UsageError: the profile does not match an input, the model has no dynamic input, or an axis other than the
            batch is dynamic and the profile has only batch sizes.
    """
    inputs = {value.name: _shape(value) for value in given_inputs(model.graph)}
    dynamic = {name: shape for name, shape in inputs.items() if None in shape}
    if profile is not None and not dynamic:
        raise UsageError("the model has fixed shapes and takes no profile; omit --profile")
    wanted = profile or Profile()
    return tuple(_profile_of(name, shape, wanted) for name, shape in dynamic.items())


def _profile_of(name: str, shape: tuple[int | None, ...], profile: Profile) -> InputProfile:
    if len(profile.min) == 1:
        if None in shape[1:]:
            raise UsageError(
                f"input {name!r} is {_text(shape)}: --profile needs complete shapes, "
                "e.g. 1x3x64x64:8x3x224x224:16x3x512x512"
            )
        rest = tuple(size for size in shape[1:] if size is not None)
        batch = shape[0]
        low, best, high = (
            (size[0] if batch is None else batch, *rest) for size in (profile.min, profile.opt, profile.max)
        )
        return InputProfile(name, low, best, high)
    for sizes in (profile.min, profile.opt, profile.max):
        if len(sizes) != len(shape) or any(have not in (None, size) for have, size in zip(shape, sizes, strict=True)):
            raise UsageError(f"input {name!r} is {_text(shape)}, but --profile has {'x'.join(map(str, sizes))}")
    return InputProfile(name, profile.min, profile.opt, profile.max)


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None
        for axis in value.type.tensor_type.shape.dim
    )


def _text(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
