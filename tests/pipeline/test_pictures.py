from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_infer.pipeline.pictures import picture_name
from stn_infer.preprocess.pixels import denormalize, normalize
from stn_infer.preprocess.rule import Preprocess


@pytest.mark.parametrize(
    ("position", "name", "expected"),
    [
        (0, "a/plate.01.jpg", "0000000-plate.01.png"),
        (12, "/data/x y/é?.png", "0000012-é_.png"),
        (3, "in.npz[7]", "0000003-in_7.png"),
        (3, "noext", "0000003-noext.png"),
        (3, "odd]", "0000003-odd_.png"),
        (3, "caf\udce9.png", "0000003-caf_udce9.png"),
        (12345678, "a.png", "12345678-a.png"),
    ],
)
def test_names(position: int, name: str, expected: str) -> None:
    assert picture_name(position, name) == expected


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_every_name_is_a_file_name(name: str) -> None:
    found = picture_name(1, name)
    assert "/" not in found and len(found.encode()) < 250 and found.isprintable()


@pytest.mark.parametrize(
    "text", ["gray", "imagenet", "bgr,mean=0.1:0.2:0.3,std=2", "rgb,gamma=2.2", "gray,scale=1,mean=128"]
)
def test_pixels_come_back(text: str) -> None:
    rule = Preprocess.parse(text)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(rule.channels, axis=1)
    assert np.array_equal(denormalize(normalize(pixels, rule), rule), pixels)
    wild = np.float32([[[[np.nan, np.inf, -1e9, 1e9]]]]).repeat(rule.channels, axis=1)
    assert denormalize(wild, rule)[0, 0, 0, 2:].tolist() == [0, 255]


def test_images_of_a_sampler_are_told_apart_by_sample() -> None:
    from stn_infer.pipeline.pictures import images_per_sample

    batch = np.random.default_rng(0).random((3, 1, 4, 4))
    warped = np.zeros((6, 1, 2, 2))
    assert images_per_sample(batch, warped[:3], 3) == 1
    assert images_per_sample(np.repeat(batch, 2, axis=0), warped, 3) == 2
    assert images_per_sample(np.concatenate([batch, batch]), warped, 3) == 0, "those of one sample are not together"
    assert images_per_sample(np.concatenate([batch, batch + 1]), warped, 3) == 2
    assert images_per_sample(np.zeros((6, 1, 4, 4)), warped, 3) == 2
    assert images_per_sample(batch, warped[:4], 3) == 0
