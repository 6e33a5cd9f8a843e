"""The sampler's benchmark: the tolerance of a case bounds float32's error there, and little more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.sampler import CASES, float32_bound, smooth_grid, write_suite
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.suite import read_suite


@pytest.mark.parametrize("shape", [(2, 3, 90, 70), (1, 2, 12, 20, 16)])
def test_the_bound_holds_for_float32_and_not_for_a_shifted_grid(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).random(shape, np.float32)
    grid = smooth_grid(shape[0], shape[2:])
    bound = float32_bound(image, grid)
    images, points = torch.from_numpy(image), torch.from_numpy(grid)
    exact = torch.nn.functional.grid_sample(images.double(), points.double(), align_corners=False)
    error = (torch.nn.functional.grid_sample(images, points, align_corners=False) - exact).abs().max()
    assert error < bound < 100 * error
    shifted = torch.nn.functional.grid_sample(images, points + 1e-3, align_corners=False)
    assert (shifted - exact).abs().max() > bound


def test_a_constant_image_has_rounding_only() -> None:
    inside = np.zeros((1, 5, 5, 2), np.float32)
    assert float32_bound(np.ones((1, 1, 8, 8), np.float32), inside) < 1e-6


def test_each_case_of_the_suite_has_its_own_tolerance(tmp_path: Path) -> None:
    names = ["digits", "features"]
    suite = read_suite(write_suite(tmp_path, False, names, ["eager"]), Method())
    tolerances = [case.tolerance for case in suite.cases]
    assert [case.batch_sizes for case in suite.cases] == [(CASES[name][0],) for name in names]
    assert all(each is not None and 1e-6 < each < 1e-4 for each in tolerances) and len(set(tolerances)) == 2
