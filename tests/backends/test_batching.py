"""Axes without samples, and a batch size that is fixed in the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import (
    check_inputs,
    fixed_batch,
    free_batch,
    run_in_fixed_batches,
    run_on_empty_axes,
    run_within,
)
from stn_infer.errors import InputError, ModelError

F32 = np.dtype(np.float32)
INPUTS = (TensorSpec("images", (None, 2), F32, "images"), TensorSpec("boxes", (None, 4), F32, "boxes"))
OUTPUTS = (TensorSpec("features", (None, 2), F32, "images"), TensorSpec("crops", (None, 4), F32, "boxes"))


def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
    assert all(len(value) for value in inputs.values()), "the model refuses an empty batch"
    return {"features": inputs["images"] + 1, "crops": inputs["boxes"] + 1}


@pytest.mark.parametrize(("images", "boxes"), [(3, 0), (0, 3), (0, 0)])
def test_an_axis_without_samples_has_no_rows_and_the_others_keep_theirs(images: int, boxes: int) -> None:
    found = run_on_empty_axes(run, INPUTS, {"images": np.zeros((images, 2), F32), "boxes": np.zeros((boxes, 4), F32)})
    assert found is not None
    np.testing.assert_array_equal(found["features"], np.ones((images, 2), F32))
    np.testing.assert_array_equal(found["crops"], np.ones((boxes, 4), F32))


def test_axes_with_samples_and_scalars_are_left_to_the_backend() -> None:
    scalar = TensorSpec("scale", (), F32)
    given = {"images": np.zeros((1, 2), F32), "boxes": np.zeros((1, 4), F32), "scale": np.float32(1)}
    assert run_on_empty_axes(run, (*INPUTS, scalar), given) is None


def test_without_samples_each_output_has_what_one_sample_adds_on_every_axis() -> None:
    def frames(inputs: Mapping[str, Array]) -> dict[str, Array]:
        count = len(inputs["images"])
        return {
            "frames": np.ones((4 * count, 2)),
            "per step": np.ones((5, count)),
            "with a start": np.ones((count + 1, 3)),
            "table": np.ones((7, 2)),
            "sum": np.float32(count),
        }

    found = run_on_empty_axes(frames, INPUTS[:1], {"images": np.zeros((0, 2), F32)})
    assert found is not None
    shapes = {name: np.shape(value) for name, value in found.items()}
    assert shapes == {"frames": (0, 2), "per step": (5, 0), "with a start": (1, 3), "table": (7, 2), "sum": ()}


def test_an_input_with_the_same_rows_for_any_number_of_samples_is_no_batch() -> None:
    specs = (TensorSpec("image", (None, 2), F32, "n"), TensorSpec("theta", (1, 6), F32, "batch"))
    assert fixed_batch(specs, "net") is None and free_batch(specs, None) == specs
    given = {"image": np.zeros((3, 2), F32), "theta": np.zeros((1, 6), F32)}
    assert check_inputs(specs, given) == 3
    assert check_inputs(specs[::-1], given) == 3
    with pytest.raises(InputError, match=r"input 'theta' takes shape \[1, 6\], given \[3, 6\]"):
        check_inputs(specs, given | {"theta": np.zeros((3, 6), F32)})
    found = run_on_empty_axes(
        lambda inputs: {"y": inputs["image"] + inputs["theta"][:, :2]}, specs, given | {"image": np.zeros((0, 2), F32)}
    )
    assert found is not None and found["y"].shape == (0, 2)


LIMITS = {"images": (2, 4), "boxes": (1, 3)}
CROPS = (TensorSpec("crops", (None, 4), F32, "boxes"),)


@pytest.mark.parametrize("images", [0, 1, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_each_axis_within_its_own_limits(images: int, count: int) -> None:
    sizes: list[tuple[int, int]] = []

    def crops(inputs: Mapping[str, Array]) -> dict[str, Array]:
        sizes.append((len(inputs["images"]), len(inputs["boxes"])))
        return {"crops": inputs["boxes"] + inputs["images"].sum()}

    boxes = np.arange(4 * count, dtype=F32).reshape(count, 4)
    given = {"images": np.zeros((images, 2), F32), "boxes": boxes}
    found = run_within(crops, INPUTS, CROPS, given, lambda lengths: LIMITS)
    np.testing.assert_array_equal(found["crops"], boxes)
    assert all(2 <= first <= 4 and 1 <= second <= 3 for first, second in sizes)


def test_an_axis_that_is_too_long_cannot_be_split_where_an_output_has_other_rows() -> None:
    given = {"images": np.zeros((5, 2), F32), "boxes": np.zeros((1, 4), F32)}
    with pytest.raises(InputError, match=r"images has 5 rows, the engine takes 2 to 4 at once, and output 'crops' has"):
        run_within(run, INPUTS, CROPS, given, lambda lengths: LIMITS)


def test_a_fixed_batch_with_scalars() -> None:
    given = {"x": np.arange(5, dtype=F32)[:, None], "s": np.float32(2)}
    found = run_in_fixed_batches(lambda inputs: {"y": inputs["x"] * inputs["s"]}, given, 5, 2)
    np.testing.assert_array_equal(found["y"], given["x"] * 2)
    with pytest.raises(ModelError, match="output 'y' is one value for all samples, so the model takes 2 at a time"):
        run_in_fixed_batches(lambda inputs: {"y": inputs["x"].sum()}, given, 5, 2)


def test_a_fixed_batch_is_freed_for_the_caller() -> None:
    fixed = TensorSpec("x", (4, 2), F32)
    assert fixed_batch([fixed, TensorSpec("s", (), F32)], "net") == 4
    assert fixed_batch([fixed, TensorSpec("y", (None, 2), F32)], "net") is None
    assert fixed_batch(INPUTS, "net") is None
    assert [spec.shape for spec in free_batch([fixed, TensorSpec("s", (), F32)], 4)] == [(None, 2), ()]
    with pytest.raises(ModelError, match=r"net: its inputs have different fixed batch sizes \[4, 5\]"):
        fixed_batch([fixed, TensorSpec("y", (5, 2), F32)], "net")
