"""Animations: frames, size, durations, and that what moves moves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stn_infer.api.show import show
from stn_infer.errors import UsageError
from stn_infer.pictures.animation import check_frames, moved
from tests.api.test_show import Shift, save


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_frames_sizes_and_durations(tmp_path: Path, suffix: str) -> None:
    model = save(tmp_path / "shift.onnx", Shift(), (1, 8, 6))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((1, 1, 8, 6), dtype=np.float32))
    path = tmp_path / f"moving{suffix}"
    show(model, [tmp_path / "x.npy"], path, frames=4, frame_ms=120)
    with Image.open(path) as animation:
        assert animation.n_frames == 4  # type: ignore[attr-defined]
        width, height = animation.size
        assert 200 < width < 350 and height > 1.5 * width, "one column of two panels"
        pictures = []
        for index in range(4):
            animation.seek(index)
            animation.load()
            assert animation.info["duration"] == 120
            frame = animation.convert("RGBA")
            assert frame.size == (width, height)
            opaque = (255, 255, 255, 255)
            assert (
                (frame.getpixel((0, 0)) == opaque)
                if suffix == ".gif"
                else (frame.getchannel("A").getpixel((0, 0)) == 0)
            )
            pictures.append(np.asarray(frame.convert("RGB"), np.int64))
    assert all(np.abs(one - other).mean() > 1 for one, other in pairwise(pictures))


def test_a_spot_turns_around_the_center_and_moves() -> None:
    image = np.zeros((1, 1, 41, 41))
    image[0, 0, 20, 30] = 1
    np.testing.assert_allclose(moved(image, 0.0), image, atol=1e-12)
    np.testing.assert_allclose(moved(image, 1.0), image, atol=1e-6)
    # a quarter of the period: turned by 45 degrees, its own scale, moved down by 0.15 of half the height
    row, column = np.unravel_index(moved(image, 0.25)[0, 0].argmax(), (41, 41))
    away = 10 * np.sqrt(0.5)
    assert abs(row - (20 + 0.15 * 20.5 + away)) <= 1 and abs(column - (20 + away)) <= 1


def test_a_bar_in_a_volume_turns_about_two_axes() -> None:
    volume = np.zeros((1, 1, 21, 21, 21))
    volume[0, 0, 10, 10, 16] = 1
    np.testing.assert_allclose(moved(volume, 0.0), volume, atol=1e-12)
    # a quarter of the period: turned by 45 degrees about z, moved down by 0.15 of half the height
    depth, row, column = np.unravel_index(moved(volume, 0.25)[0, 0].argmax(), (21, 21, 21))
    away = 6 * np.sqrt(0.5)
    assert depth == 10 and abs(row - (10 + 0.15 * 10.5 + away)) <= 1 and abs(column - (10 + away)) <= 1
    # an eighth: also turned by 22.5 degrees about y, grown by a fifth and moved
    depth, row, column = np.unravel_index(moved(volume, 0.125)[0, 0].argmax(), (21, 21, 21))
    flat, turn = 6 * 1.2 * np.cos(np.radians(45 * np.sqrt(0.5))), np.radians(22.5)
    assert abs(depth - (10 + flat * np.sin(turn))) <= 1
    assert abs(column - (10 + 0.15 * 10.5 + flat * np.cos(turn))) <= 1.5


def test_too_few_and_too_many_frames_are_one_line_errors() -> None:
    with pytest.raises(UsageError, match="of snapshots has at least 2 frames, not 1"):
        check_frames(1, moving=False)
    with pytest.raises(UsageError, match="of moving inputs has at least 3 frames, not 2"):  # which would be equal
        check_frames(2, moving=True)
    image = np.random.default_rng(0).random((1, 1, 9, 9), np.float32)
    assert np.abs(moved(image, 1 / 2) - image).max() < 1e-5 < np.abs(moved(image, 1 / 3) - image).max()
    check_frames(2, moving=False)
    with pytest.raises(UsageError, match="500 frames of 1600x900 pixels is too large"):
        check_frames(500, 1600, 900, moving=True)
