"""Texts and boxes from outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stn_infer.backends.base import TensorSpec
from stn_infer.decoding import Decoding
from stn_infer.errors import UsageError
from stn_infer.pipeline.decoder import Decoder

FLOAT32 = np.dtype(np.float32)


def spec(name: str, *axes: int | None) -> TensorSpec:
    return TensorSpec(name, (None, *axes), FLOAT32)


IMAGE = (spec("input", 1, 30, 50),)


def scores(classes: list[list[int]], count: int) -> Any:
    """One-hot scores [N, places, count]."""
    return np.eye(count, dtype=np.float32)[np.array(classes)]


def test_a_text_ends_at_the_end_class_and_stays_ended() -> None:
    number = Decoding("number", "sequence", ("output",), end=-1)
    decoder = Decoder((number,), IMAGE, (spec("output", 3, 11),))
    found = decoder({"output": scores([[1, 0, 5], [7, 10, 3], [10, 1, 1], [9, 9, 10]], 11)})
    assert found["number"].tolist() == ["105", "7", "", "99"]


def test_a_length_and_an_output_per_place() -> None:
    word = Decoding("word", "sequence", ("a", "b", "c"), length="count", symbols=("x", "yy", "z"))
    decoder = Decoder((word,), IMAGE, (*(spec(name, 3) for name in "abc"), spec("count", 4)))
    classes = scores([[0, 1, 2], [2, 2, 1], [1, 0, 0]], 3)
    outputs = {name: classes[:, i] for i, name in enumerate("abc")}
    outputs["count"] = np.eye(4, dtype=np.float32)[[2, 3, 0]]
    assert decoder(outputs)["word"].tolist() == ["xyy", "zzyy", ""]


def test_a_box_in_pixels_is_stored_as_it_is() -> None:
    decoder = Decoder((Decoding("object", "box", ("box",)),), IMAGE, (spec("box", 4),))
    found = decoder({"box": np.array([[1, 2, 3, 4], [-5, 0, 60, 30]], np.float32)})
    assert [found[name].tolist() for name in decoder.columns] == [[1, -5], [2, 0], [3, 60], [4, 30]]


def test_a_box_from_theta_holds_the_sampled_region() -> None:
    """The grid of affine_grid spans it: at many output pixels, its first and last samples approach the box's edges."""
    decoder = Decoder((Decoding("object", "box", ("theta",)),), IMAGE, (spec("theta", 2, 3),))
    theta = torch.tensor([[[0.4, 0.1, 0.2], [-0.2, 0.5, -0.1]], [[-0.3, 0, 0], [0, 0.6, 0.4]]])
    grid = F.affine_grid(theta, [2, 1, 1000, 1000], align_corners=False)
    pixels = (grid.flatten(1, 2) + 1) / 2 * torch.tensor([50.0, 30.0])  # (x, y), from the image's outer edge
    expected = torch.cat([pixels.amin(1), pixels.amax(1)], 1)
    found = decoder({"theta": theta.numpy()})
    np.testing.assert_allclose(np.stack([found[name] for name in decoder.columns], 1), expected, atol=0.06)


def test_no_samples() -> None:
    both = (Decoding("number", "sequence", ("output",), length="count"), Decoding("object", "box", ("theta",)))
    specs = (spec("output", None, 11), spec("count", 6), spec("theta", 2, 3))
    empty = {"output": np.zeros((0, 0, 11)), "count": np.zeros((0, 6)), "theta": np.zeros((0, 2, 3))}
    assert [values.shape for values in Decoder(both, IMAGE, specs)(empty).values()] == [(0,)] * 5


@pytest.mark.parametrize(
    ("decoding", "outputs", "message"),
    [
        (Decoding("n", "sequence", ("other",)), [spec("output", 3, 11)], "reads output 'other', but the model has out"),
        (
            Decoding("n", "sequence", ("output",)),
            [spec("output", 11)],
            r"is \[N, 11\], expected \[N, places, classes\]",
        ),
        (Decoding("n", "sequence", ("a", "b")), [spec("a", 3), spec("b", 4)], "'b' is .*one output per place"),
        (Decoding("n", "sequence", ("output",), end=11), [spec("output", 3, 11)], "end is 11, but there are 11"),
        (Decoding("n", "sequence", ("output",), symbols=("a",)), [spec("output", 3, 2)], "1 symbols for 2 classes"),
        (Decoding("n", "sequence", ("o",), length="l"), [spec("o", 3, 2), spec("l", 3, 2)], "'l' is .*lengths"),
        (Decoding("n", "box", ("output",)), [spec("output", 5)], "expected a box"),
        (Decoding("output", "sequence", ("output",)), [spec("output", 3, 11)], "has the name of another one"),
        (Decoding("label", "sequence", ("output",)), [spec("output", 3, 11)], "has the name of another one"),
    ],
)
def test_a_decoding_that_does_not_fit(decoding: Decoding, outputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Decoder((decoding,), IMAGE, outputs)


def test_theta_needs_the_size_of_the_input() -> None:
    with pytest.raises(UsageError, match="fixed height and width"):
        Decoder((Decoding("n", "box", ("theta",)),), (spec("input", 1, None, None),), (spec("theta", 2, 3),))
