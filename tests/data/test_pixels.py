from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stn_infer.data import pixels
from stn_infer.data.pixels import SHARED_PIXELS, pixels_of, shared_pixels


def picture(height: int, width: int, channels: int) -> np.ndarray:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]))
def test_pixels_equal_pillows(height: int, width: int, channels: int) -> None:
    values = picture(height, width, channels)
    found = pixels_of(Image.fromarray(values))  # the image itself is gone here
    assert found.shape[:2] == (height, width) and found.shape[2] in (channels, channels + 1)
    assert np.array_equal(found[..., :channels], values.reshape(height, width, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_is_not_copied(channels: int) -> None:
    image = Image.fromarray(picture(150, 151, channels)).copy()
    found = pixels_of(image)
    assert image.width * image.height > SHARED_PIXELS
    image.putpixel((2, 1), 77 if channels == 1 else (77, 78, 79))
    assert found[1, 2, 0] == 77
    assert not found.flags.writeable


def test_an_image_in_several_blocks_is_copied() -> None:
    values = picture(2500, 2200, 3)
    image = Image.fromarray(values)
    assert shared_pixels(image) is None
    assert np.array_equal(pixels_of(image), values)


def test_padded_rows_are_copied() -> None:
    values = picture(200, 201, 1)
    before = Image.core.get_alignment()  # type: ignore[attr-defined]
    Image.core.set_alignment(16)  # type: ignore[attr-defined]
    try:
        image = Image.fromarray(values)
        assert shared_pixels(image) is None
        assert np.array_equal(pixels_of(image)[..., 0], values)
    finally:
        Image.core.set_alignment(before)  # type: ignore[attr-defined]


def test_a_pillow_without_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Image.Image) -> object:
        raise AttributeError("__arrow_c_array__")

    values = picture(200, 201, 3)
    monkeypatch.setattr(Image.Image, "__arrow_c_array__", refused)
    assert np.array_equal(pixels.pixels_of(Image.fromarray(values)), values)
