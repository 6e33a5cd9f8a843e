"""Which profile runs a batch, and batches of any size in engines with any profiles."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import run_within
from stn_infer.backends.tensorrt.engine_cache import InputProfile
from stn_infer.backends.tensorrt.selection import Rows, nearest
from stn_infer.errors import InputError

F32 = np.dtype(np.float32)


def of(*sizes: int) -> tuple[InputProfile, ...]:
    """A profile of the input x, with one axis."""
    low, best, high = sizes
    return (InputProfile("x", (low,), (best,), (high,)),)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1,), 0),
        ((4,), 0),
        ((5,), 0),
        ((6,), 2),
        ((9,), 0),
        ((10,), 1),
        ((20,), None),
        ((0,), None),
        ((1, 1), None),
        ((), None),
    ],
)
def test_the_nearest_optimum_wins_and_of_two_the_first(shape: tuple[int, ...], wanted: int | None) -> None:
    assert nearest((of(1, 2, 9), of(2, 16, 16), of(1, 8, 8)), {"x": shape}) == wanted


def test_distances_are_added_over_all_axes_of_all_inputs() -> None:
    flat, tall = (
        (InputProfile("x", (1, 1), (1, width), (9, 9)), InputProfile("y", (1,), (rows,), (9,)))
        for width, rows in ((9, 1), (1, 9))
    )
    for x, y, wanted in ((9, 4, 0), (4, 9, 1), (6, 5, 0), (5, 6, 1)):
        assert nearest((flat, tall), {"x": (1, x), "y": (y,)}) == wanted


def test_inputs_on_one_axis_whose_ranges_do_not_meet_fit_no_batch() -> None:
    rows = Rows(
        ((InputProfile("x", (1,), (1,), (4,)), InputProfile("y", (5,), (5,), (9,))),), {"x": "n", "y": "n"}, {"n"}
    )
    with pytest.raises(InputError, match="x=3, y=3 is outside of the engine's profile, x=1:1:4, y=5:5:9"):
        rows.limits({"x": (3,), "y": (3,)}, {"n": 3})


RANGE = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6)).map(
    lambda it: (it[0], it[0] + it[1], it[0] + it[1] + it[2])
)


@given(st.lists(st.tuples(RANGE, RANGE), min_size=1, max_size=4), st.integers(0, 40), st.integers(0, 6))
def test_batches_of_any_size_run_within_profiles(
    ranges: list[tuple[tuple[int, int, int], tuple[int, int, int]]], boxes: int, images: int
) -> None:
    """Each run is in a profile, and the outputs are those of one run of all rows."""
    profiles = tuple(
        tuple(
            InputProfile(name, *((size, 1) for size in sizes))
            for name, sizes in zip(("boxes", "images"), pair, strict=True)
        )
        for pair in ranges
    )
    axes = {"boxes": "boxes", "images": "images"}
    specs = tuple(TensorSpec(name, (None, 1), F32, name) for name in axes)
    rows = Rows(profiles, axes, {"boxes"})

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert nearest(profiles, {name: values.shape for name, values in inputs.items()}) is not None
        return {"crops": inputs["boxes"] * 2}

    inputs = {name: np.arange(count, dtype=F32)[:, None] for name, count in (("boxes", boxes), ("images", images))}
    limits = partial(rows.limits, {name: values.shape for name, values in inputs.items()})
    crops = (TensorSpec("crops", (None, 1), F32, "boxes"),)
    if images > max(profile[1].max[0] for profile in profiles):
        with pytest.raises(InputError, match="build the engine with another --profile"):
            run_within(run, specs, crops, inputs, limits)
    else:
        np.testing.assert_array_equal(run_within(run, specs, crops, inputs, limits)["crops"], inputs["boxes"] * 2)
