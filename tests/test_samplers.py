"""A sampler's settings: names, enumeration values, and the conversion of coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stn_infer.samplers import MODES, PADDING_MODES, SamplerSpec, spell_mode


def test_spell_mode() -> None:
    assert [spell_mode("bilinear", opset) for opset in (16, 19, 20)] == ["bilinear", "bilinear", "linear"]
    assert [spell_mode("cubic", opset) for opset in (16, 20)] == ["bicubic", "cubic"]
    assert spell_mode("nearest", 22) == "nearest"
    assert spell_mode("no mode", 16) == spell_mode("no mode", 22) == "no mode"


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", range(3))
@pytest.mark.parametrize("mode", range(3))
def test_numbers_are_those_of_pytorch(mode: int, padding_mode: int, align_corners: bool) -> None:
    rng = np.random.default_rng(0)
    image, grid = torch.from_numpy(rng.normal(size=(1, 1, 5, 6))), torch.from_numpy(rng.uniform(-2, 2, (1, 4, 4, 2)))
    spec = SamplerSpec.numbered(mode, padding_mode, align_corners)
    assert (spec.mode, spec.padding_mode) == (MODES[mode], PADDING_MODES[padding_mode])
    named = torch.nn.functional.grid_sample(image, grid, spec.mode, spec.padding_mode, spec.align_corners)
    assert torch.equal(named, torch.ops.aten.grid_sampler_2d(image, grid, mode, padding_mode, align_corners))


@pytest.mark.parametrize("align_corners", [False, True])
def test_pixels_and_normalized_are_inverse(align_corners: bool) -> None:
    sampler, pixels = SamplerSpec(align_corners=align_corners), np.random.default_rng(0).uniform(-3, 9, (4, 2))
    back = sampler.pixels(sampler.normalized(pixels, (5, 7)), (5, 7))
    np.testing.assert_allclose(back, pixels, atol=1e-14)
