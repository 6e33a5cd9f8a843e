"""Float32's rounding error on a model, and how much it raises a tolerance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stn_infer.deviation import CEILING, MARGIN, float32_tolerance
from stn_infer.metadata import ModelMetadata
from stn_infer.reference.model import Reference
from stn_infer.reference.samples import Batch
from stn_infer.sources.load import LoadedModel
from stn_infer.verification.tolerance import eager_float32, expect, float32_levels


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def deviation(function: Callable[[Tensor], Tensor], *shape: int) -> float:
    module = Function(function)
    inputs = [np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)]
    loaded = LoadedModel("function", module, (shape,), ModelMetadata(), "factory")
    reference = Reference(module, [shape])
    found = expect(reference, [Batch("random", tuple(inputs))])
    return float32_levels(reference, found, eager_float32(loaded)).rounding


def grid(x: Tensor, width: int) -> Tensor:
    theta = (x.mean((1, 2, 3))[:, None] * 0.1 + torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=x.dtype)).reshape(-1, 2, 3)
    return torch.nn.functional.affine_grid(theta, [len(x), 1, 8, width], align_corners=False)


def test_cancellation_is_noise_and_exact_arithmetic_is_not() -> None:
    assert deviation(lambda x: (x + 4096) - 4096, 3) == pytest.approx(2e-4, rel=0.5)
    assert deviation(lambda x: 2 * x, 3) == 0


def test_the_noise_of_a_warp_grows_with_its_width() -> None:
    narrow, wide = (
        deviation(lambda x: torch.nn.functional.grid_sample(x, grid(x, x.shape[3]), align_corners=False), 1, 8, width)
        for width in (16, 1024)
    )
    assert narrow < 1e-5 < wide < CEILING


def test_rounding_is_zero_with_a_nearest_sampler() -> None:
    def warp(x: Tensor) -> Tensor:
        return (
            torch.nn.functional.grid_sample(x, grid(x, 64), mode="nearest", align_corners=False) + (x * 0 + 4096) - 4096
        )

    assert deviation(warp, 1, 8, 64) == 0


def test_non_finite_values_do_not_raise_a_tolerance() -> None:
    assert deviation(lambda x: x * 1e30 * 1e30, 3) == 0  # infinite only in float32


def test_the_tolerance_is_bounded_on_both_sides() -> None:
    assert float32_tolerance(1e-5, 0.0) == float32_tolerance(1e-5, 1e-7) == 1e-5
    assert float32_tolerance(1e-5, 1e-5) == pytest.approx(MARGIN * 1e-5)
    assert float32_tolerance(1e-5, 1.0) == CEILING
