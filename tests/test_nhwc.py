"""kevinzakka's three functions against a loop over pixels in float64, with its edge rule, gradients and export."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from stn_infer.api.export import export
from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.nhwc import affine_grid_generator, bilinear_sampler, spatial_transformer_network
from stn_infer.transforms import Affine

Doubles = NDArray[np.float64]


def points(theta: Doubles, size: tuple[int, int]) -> Doubles:
    """[N, 2, H, W]: theta at the points of a lattice from -1 to 1."""
    ys, xs = (np.linspace(-1, 1, length) for length in size)
    out = np.zeros((len(theta), 2, *size))
    for n, i, j in np.ndindex(len(theta), *size):
        out[n, :, i, j] = theta[n] @ np.array([xs[j], ys[i], 1.0])
    return out


def sampled(image: Doubles, grid: Doubles) -> Doubles:
    """The four corners are clipped to the image, then weighted by their distances from the point."""
    count, height, width, channels = image.shape
    out = np.zeros((count, *grid.shape[2:], channels))
    for n, i, j in np.ndindex(count, *grid.shape[2:]):
        x, y = (0.5 * (grid[n, 0, i, j] + 1) * (width - 2), 0.5 * (grid[n, 1, i, j] + 1) * (height - 2))
        columns = [min(max(math.floor(x) + step, 0), width - 1) for step in (0, 1)]
        rows = [min(max(math.floor(y) + step, 0), height - 1) for step in (0, 1)]
        for row, share_y in zip(rows, (rows[1] - y, y - rows[0]), strict=True):
            for column, share_x in zip(columns, (columns[1] - x, x - columns[0]), strict=True):
                out[n, i, j] += share_x * share_y * image[n, row, column]
    return out


def example(seed: int, size: tuple[int, int] = (6, 9), spread: float = 0.5) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, *size, 2)), np.eye(2, 3) + spread * rng.normal(size=(3, 2, 3))


@pytest.mark.parametrize("size", [(7, 5), (1, 4), (3, 1)])
def test_grid(size: tuple[int, int]) -> None:
    _, theta = example(0)
    grid = affine_grid_generator(*size, torch.from_numpy(theta))
    expected = points(theta, size) if 1 not in size else None
    if expected is None:  # an axis of one point has it at -1
        ys, xs = (np.linspace(-1, 1, length) if length > 1 else np.array([-1.0]) for length in size)
        rows = np.stack([np.tile(xs, size[0]), np.repeat(ys, size[1]), np.ones(size[0] * size[1])])
        expected = (theta @ rows).reshape(3, 2, *size)
    np.testing.assert_allclose(grid.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 9), (2, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_network_equals_the_loop_everywhere(seed: int, size: tuple[int, int]) -> None:
    image, theta = example(seed, size)
    output = spatial_transformer_network(torch.from_numpy(image), torch.from_numpy(theta.reshape(3, 6)), (8, 7))
    np.testing.assert_allclose(output.numpy(), sampled(image, points(theta, (8, 7))), rtol=0, atol=1e-12)


def test_edges_are_hard() -> None:
    """Just inside the image and just outside: the layer's zeros padding fades there, the original does not."""
    image = np.ones((1, 5, 6, 1))
    at = np.array([-0.01, 0.0, 2.5, 4.99, 5.0, 5.01]) / 4 * 2 - 1  # pixels / (W - 2), in [-1, 1]
    grid = np.stack([at, np.zeros(6)])[None, :, None]
    x, y = (torch.from_numpy(grid[:, axis]) for axis in (0, 1))
    output = bilinear_sampler(torch.from_numpy(image), x, y)[0, 0, :, 0]
    np.testing.assert_allclose(output.numpy(), [0, 1, 1, 1, 0, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(output.numpy(), sampled(image, grid)[0, 0, :, 0], rtol=0, atol=1e-12)
    ring = torch.tensor([[1.0, 0, -0.01 / 4 * 2, 0, 1.0, 0]], dtype=torch.float64)  # the left column at -0.01 pixels
    layer = SpatialTransformer(None, Affine(), (5, 6), convention="kevinzakka", input_size=(5, 6)).double()
    ours = spatial_transformer_network(torch.from_numpy(image), ring)[0, :, :, 0]
    faded = layer(torch.from_numpy(image).permute(0, 3, 1, 2), ring)[0, 0]
    assert float((faded - ours).abs().max()) == pytest.approx(0.99)


def test_gradients() -> None:
    image, theta = (torch.from_numpy(it).requires_grad_() for it in example(1, (4, 5), 0.2))
    assert torch.autograd.gradcheck(
        lambda i, t: spatial_transformer_network(i, t.reshape(3, 6), (3, 3)), (image, theta)
    )


class Network(nn.Module):
    """Predicts theta from the mean of the image, NCHW at the outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(2, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.head(x.mean((2, 3))) + torch.tensor([1.0, 0, 0, 0, 1, 0])
        return spatial_transformer_network(x.permute(0, 2, 3, 1), theta, (5, 4)).flatten(1)


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    network = Network().eval()
    report = export("tests.test_nhwc:Network", tmp_path / "model.onnx", input_shapes=[(2, 6, 9)])
    assert report.verification.passed and [finding.fused for finding in report.findings] == [True]
    image, _ = example(2)
    feed = image.transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: feed})
    head = network.head
    theta = feed.mean((2, 3)) @ head.weight.detach().numpy().T + head.bias.detach().numpy() + [1, 0, 0, 0, 1, 0]
    expected = sampled(feed.transpose(0, 2, 3, 1).astype(np.float64), points(theta.reshape(3, 2, 3), (5, 4)))
    np.testing.assert_allclose(output, expected.reshape(3, -1), rtol=0, atol=1e-4)


def test_shapes_that_do_not_fit_are_one_line_errors() -> None:
    image, theta = torch.zeros(2, 4, 5, 1), torch.zeros(2, 6)
    with pytest.raises(UsageError, match=r"\[N, H, W, C\].*\(4, 5\)"):
        spatial_transformer_network(torch.zeros(4, 5), theta)
    with pytest.raises(UsageError, match="6 values for each of 2 images"):
        spatial_transformer_network(image, theta[:1])
    with pytest.raises(UsageError, match=r"out_dims is \(height, width\)"):
        spatial_transformer_network(image, theta, (3,))
    with pytest.raises(UsageError, match=r"\[N, 2, 3\]"):
        affine_grid_generator(3, 3, theta)
    with pytest.raises(UsageError, match="at least 1"):
        affine_grid_generator(0, 3, theta.reshape(2, 2, 3))
    with pytest.raises(UsageError, match="x and y"):
        bilinear_sampler(image, torch.zeros(1, 3, 3), torch.zeros(1, 3, 3))
