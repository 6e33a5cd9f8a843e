"""Which of a sampler's images belong to which sample."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.fusion.samplers import SamplerNode
from stn_infer.pictures.look import WarpView
from stn_infer.pictures.looking import _add
from stn_infer.reference.calls import SamplerCall
from stn_infer.samplers import SamplerSpec


def added(images: np.ndarray, samples: int) -> list[list[int]]:
    """The values of the warped images that each sample gets; image number i has the value i."""
    count = len(images)
    warped = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)
    node = SamplerNode(SamplerSpec("bilinear", "zeros", align_corners=False), None)
    warps: list[list[WarpView]] = [[] for _ in range(samples)]
    _add(warps, SamplerCall.of(node, images, np.zeros((count, 2, 2, 2)), warped), None, None)
    return [[int(view.warped.mean()) for view in views] for views in warps]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 2], [[0], [1], [2]]),
        ([0, 0, 1, 1, 2, 2], [[0, 1], [2, 3], [4, 5]]),  # several regions of each sample
        ([0, 1, 2, 0, 1, 2], [[0, 3], [1, 4], [2, 5]]),  # the whole batch twice
        ([0, 1, 2, 0], [[], [], []]),  # not the same number of each
    ],
)
def test_images_of_a_sampler_go_to_their_samples(order: list[int], expected: list[list[int]]) -> None:
    batch = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)
    assert added(batch[order], 3) == expected
