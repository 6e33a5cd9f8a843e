"""Axes without samples, and a batch size that is fixed in the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import fixed_batch, free_batch, run_on_empty_axes
from stn_infer.errors import ModelError

F32 = np.dtype(np.float32)
INPUTS = (TensorSpec("images", (None, 2), F32, "images"), TensorSpec("boxes", (None, 4), F32, "boxes"))
OUTPUTS = (TensorSpec("features", (None, 2), F32, "images"), TensorSpec("crops", (None, 4), F32, "boxes"))


def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
    assert all(len(value) for value in inputs.values()), "the model refuses an empty batch"
    return {"features": inputs["images"] + 1, "crops": inputs["boxes"] + 1}


@pytest.mark.parametrize(("images", "boxes"), [(3, 0), (0, 3), (0, 0)])
def test_an_axis_without_samples_has_no_rows_and_the_others_keep_theirs(images: int, boxes: int) -> None:
    found = run_on_empty_axes(
        run, INPUTS, OUTPUTS, {"images": np.zeros((images, 2), F32), "boxes": np.zeros((boxes, 4), F32)}
    )
    assert found is not None
    np.testing.assert_array_equal(found["features"], np.ones((images, 2), F32))
    np.testing.assert_array_equal(found["crops"], np.ones((boxes, 4), F32))


def test_axes_with_samples_and_scalars_are_left_to_the_backend() -> None:
    scalar = TensorSpec("scale", (), F32)
    given = {"images": np.zeros((1, 2), F32), "boxes": np.zeros((1, 4), F32), "scale": np.float32(1)}
    assert run_on_empty_axes(run, (*INPUTS, scalar), OUTPUTS, given) is None


def test_a_fixed_batch_is_freed_for_the_caller() -> None:
    fixed = TensorSpec("x", (4, 2), F32)
    assert fixed_batch([fixed, TensorSpec("y", (None, 2), F32), TensorSpec("s", (), F32)], "net") == 4
    assert fixed_batch(INPUTS, "net") is None
    assert free_batch(fixed).shape == (None, 2)
    with pytest.raises(ModelError, match=r"net: its inputs have different fixed batch sizes \[4, 5\]"):
        fixed_batch([fixed, TensorSpec("y", (5, 2), F32)], "net")
