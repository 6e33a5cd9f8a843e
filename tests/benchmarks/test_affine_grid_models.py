"""Models with ``affine_grid`` return the same as the shipped ones, with other operators."""

from __future__ import annotations

import pytest
import torch

from benchmarks import affine_grid_models
from stn_infer.sources.load import load_source


@pytest.mark.parametrize("name", ["st-cnn-affine-rts", "st-fcn-affine-r"])
def test_the_results_equal_the_shipped_models(name: str) -> None:
    loaded = load_source(name)
    rewritten = getattr(affine_grid_models, name.replace("-", "_"))()
    image = torch.rand(3, *loaded.input_shapes[0], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), torch.profiler.profile() as profile:
        found = rewritten(image)
    assert "aten::affine_grid_generator" in {event.name for event in profile.events()}
    with torch.inference_mode():
        torch.testing.assert_close(found, loaded.module(image), rtol=0, atol=1e-4)
