"""Matrix functions of buffers are computed once, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stn_infer.torch_export.constants import fold_constants
from stn_infer.torch_export.origin import calls, is_matrix_function

SIZE = 12


class Spline(nn.Module):
    """A linear system of a buffer, as thin plate splines solve, written in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        points = np.random.default_rng(0).random((SIZE, 2))
        distance = ((points[:, None] - points) ** 2).sum(-1)
        self.register_buffer("squares", torch.from_numpy(distance).float())

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.squares * torch.log(self.squares + 1e-3) + torch.eye(SIZE)
        if self.way == "inverse":
            return torch.linalg.inv(matrix) @ x
        if self.way == "solve":
            return torch.linalg.solve(matrix, x)
        if self.way == "vectors":
            return torch.linalg.solve(matrix, x[..., 0].mT if x.ndim > 3 else x[0, :, 0])[None]
        if self.way == "right":
            return torch.linalg.solve(matrix, x.mT, left=False)
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ (vectors.mT @ x / values[:, None])


@pytest.mark.parametrize("way", ["inverse", "solve", "vectors", "right", "eigh"])
def test_no_matrix_function_is_left(way: str) -> None:
    module = Spline(way).eval()
    x = torch.randn(2, SIZE, 3, generator=torch.Generator().manual_seed(0))
    folded = fold_constants(torch.export.export(module, (x,)))
    assert folded is not None
    exact = module.double()(x.double())
    found = folded(x)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max() / exact.abs().max()) < 2e-6
    again = torch.export.export(folded, (x,))
    assert not any(is_matrix_function(node) for node in calls(again))


def test_what_depends_on_the_input_stays() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x)

    assert fold_constants(torch.export.export(Own(), (torch.eye(3)[None],))) is None
