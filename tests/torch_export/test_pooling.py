"""Adaptive pooling against PyTorch's own, for windows of equal and of unequal size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_infer.torch_export.pooling import adaptive_average, adaptive_maximum

AVERAGES = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MAXIMA = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 100), ties=st.booleans())
def test_adaptive_pooling(sizes: list[tuple[int, int]], seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape, out = [2, 3, *(size for size, _ in sizes)], [out for _, out in sizes]
    image = torch.randn(shape, generator=generator)
    if ties:
        image = image.sign()
    torch.testing.assert_close(adaptive_average(image, out), AVERAGES[len(sizes)](image, out))
    found, index = adaptive_maximum(image, out)
    wanted, place = MAXIMA[len(sizes)](image, out, return_indices=True)
    assert torch.equal(found, wanted)
    assert torch.equal(index, place)
