"""Which of an engine's optimization profiles runs a batch, and by how many rows at once.

A batch runs in the profile whose ranges have its shapes and whose optimum is nearest, as Triton chooses it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any

from stn_infer.backends.tensorrt.engine_cache import InputProfile, Profiles, profile_texts
from stn_infer.errors import InputError

Shape = tuple[int, ...]
Limits = Mapping[str, tuple[int, int]]


def profiles_of(engine: Any, inputs: Sequence[str]) -> Profiles:
    """For each profile of a loaded engine, the shapes of these inputs; those of a fixed one are equal."""
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in inputs}

    def of(name: str, index: int) -> InputProfile:
        if -1 not in shapes[name]:
            return InputProfile(name, shapes[name], shapes[name], shapes[name])
        return InputProfile(name, *map(tuple, engine.get_tensor_profile_shape(name, index)))

    count = max(1, engine.num_optimization_profiles)
    return tuple(tuple(of(name, index) for name in inputs) for index in range(count))


def nearest(profiles: Profiles, shapes: Mapping[str, Shape]) -> int | None:
    """The profile whose ranges have all shapes, by input; of several, the one with the least sum of distances to the
    optimum over all axes, and then the first. None: no profile has them.
    """
    found, least = None, inf
    for index, profile in enumerate(profiles):
        if all(_within(shapes[each.name], each) for each in profile):
            distance = sum(
                abs(size - best) for each in profile for size, best in zip(shapes[each.name], each.opt, strict=True)
            )
            if distance < least:
                found, least = index, distance
    return found


def outside(profiles: Profiles, shapes: Mapping[str, Shape]) -> InputError:
    """The error for shapes that no profile has."""
    given = ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items())
    texts = profile_texts(profiles)
    where = f"profile, {texts[0]}"
    if len(texts) > 1:
        where = f"{len(texts)} profiles, {'; '.join(f'{index}: {text}' for index, text in enumerate(texts))}"
    return InputError(f"{given} is outside of the engine's {where}; build the engine with another --profile")


class Rows:
    """How many rows of each batch axis an engine takes at once.

    Args:
        profiles: the engine's, with all inputs.
        axes: the batch axis of each input that has one.
        splits: the axes that may be split, because all outputs have their rows.
    """

    def __init__(self, profiles: Profiles, axes: Mapping[str, str], splits: Collection[str]) -> None:
        self._profiles, self._axes, self._splits = profiles, axes, splits
        self._limits: list[dict[str, tuple[int, int]]] = []
        for profile in profiles:
            limits: dict[str, tuple[int, int]] = {}
            for each in profile:
                if each.name in axes:
                    low, high = limits.get(axes[each.name], (1, each.max[0]))
                    limits[axes[each.name]] = max(low, each.min[0]), min(high, each.max[0])
            self._limits.append(limits)

    def limits(self, shapes: Mapping[str, Shape], lengths: Mapping[str, int]) -> Limits:
        """The range of each batch axis in the profile that needs the fewest runs, and then the least padding.

        Args:
            shapes: of the inputs; a batch axis is ignored.
            lengths: of the batch axes.

        Raises:
            InputError: no profile has the other axes; or, of several profiles, all have a batch axis that is too short
                and cannot be split.
        """
        fitting = [
            limits
            for profile, limits in zip(self._profiles, self._limits, strict=True)
            if all(_within(shapes[each.name], each, int(each.name in self._axes)) for each in profile)
            and all(low <= high for low, high in limits.values())
        ]
        best = min(fitting, key=lambda limits: self._cost(limits, lengths), default=None)
        if best is None or (len(self._profiles) > 1 and self._cost(best, lengths)[0] == inf):
            whole = {name: (lengths[axis], *shapes[name][1:]) for name, axis in self._axes.items()}
            raise outside(self._profiles, {**shapes, **whole})
        return best

    def _cost(self, limits: Limits, lengths: Mapping[str, int]) -> tuple[float, int]:
        """The number of runs, and the number of rows that are added."""
        runs: float = 1
        for axis, (_, high) in limits.items():
            if lengths[axis] > high:
                runs = runs * -(-lengths[axis] // high) if axis in self._splits else inf
        return runs, sum(max(0, low - lengths[axis]) for axis, (low, _) in limits.items())


def _within(shape: Shape, profile: InputProfile, start: int = 0) -> bool:
    """Whether a profile has a shape, from axis ``start`` on."""
    return len(shape) == len(profile.min) and all(
        low <= size <= high
        for low, size, high in zip(profile.min[start:], shape[start:], profile.max[start:], strict=True)
    )
