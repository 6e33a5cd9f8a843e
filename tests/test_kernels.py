"""Eq. 3 with several kernels against its double sum in float64, eq. 4's rounding, gradients and export."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from stn_infer.cli.main import main
from stn_infer.errors import UsageError
from stn_infer.kernels import Kernel, KernelTransformer, bilinear, gaussian, nearest, sample_with_kernel
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine

Doubles = NDArray[np.float64]
Scalar = Callable[[float, float], float]


def eq3(image: Doubles, grid: Doubles, k: Scalar, phi: tuple[float, float], align_corners: bool) -> Doubles:
    count, channels, height, width = image.shape
    out = np.zeros((count, channels, *grid.shape[1:3]))
    for b, c, i, j in np.ndindex(*out.shape):
        x, y = grid[b, i, j]
        x, y = (
            ((x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1))
            if align_corners
            else (((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2)
        )
        for n in range(height):
            for m in range(width):
                out[b, c, i, j] += image[b, c, n, m] * k(x - m, phi[0]) * k(y - n, phi[1])
    return out


KERNELS: dict[str, tuple[Kernel, Scalar]] = {
    "bilinear": (bilinear, lambda d, phi: max(0.0, 1 - abs(d))),
    "nearest": (nearest, lambda d, phi: float(math.floor(d + 0.5) == 0)),
    "gaussian": (gaussian, lambda d, phi: math.exp(-(d**2) / (2 * phi**2)) / (phi * math.sqrt(2 * math.pi))),
    "its own": (lambda d, phi: 1 / (1 + phi * d * d), lambda d, phi: 1 / (1 + phi * d * d)),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_it_equals_the_double_sum(name: str, align_corners: bool) -> None:
    kernel, scalar = KERNELS[name]
    rng = np.random.default_rng(0)
    image, grid = rng.normal(size=(2, 2, 4, 5)), rng.uniform(-1.3, 1.3, size=(2, 3, 4, 2))
    phi = (0.7, 1.2)
    tensors = (torch.tensor(value, dtype=torch.float64) for value in phi)
    found = sample_with_kernel(torch.from_numpy(image), torch.from_numpy(grid), kernel, *tensors, align_corners)
    np.testing.assert_allclose(found.numpy(), eq3(image, grid, scalar, phi, align_corners), rtol=0, atol=1e-12)


def test_gradients() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    grid = torch.empty(1, 2, 3, 2, dtype=torch.float64).uniform_(-0.9, 0.9).requires_grad_()
    phi = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.6, 0.9)]
    assert torch.autograd.gradcheck(
        lambda *a: sample_with_kernel(a[0], a[1], gaussian, a[2], a[3]), (image, grid, *phi)
    )
    nothing = torch.zeros(0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda i, g: sample_with_kernel(i, g, bilinear, nothing, nothing), (image, grid))


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_rounding_half_up_of_the_layer(padding_mode: str, align_corners: bool) -> None:
    """Translations by half pixels put every point on a tie; eq. 4 takes the upper pixel."""
    height, width = 5, 9  # with corners, W - 1 is a power of two: ties are exact
    image = torch.arange(45.0, dtype=torch.float64).reshape(1, 1, 5, 9) + 1
    scale = (width - 1) / 2 if align_corners else width / 2
    layer = SpatialTransformer(
        None,
        Affine(),
        (height, width),
        "nearest",
        padding_mode,
        align_corners,
        rounding="half up",  # type: ignore[arg-type]
    ).double()
    for shift in (0.5, 1.5, -0.5, -2.5, 1.25):
        theta = torch.tensor([[1.0, 0, (shift + 2**-40) / scale, 0, 1, 0]], dtype=torch.float64)
        output = layer(image, theta)[0, 0]
        for j in range(width):
            at = j + shift
            if padding_mode == "reflection":
                low, high = (0, width - 1) if align_corners else (-0.5, width - 0.5)
                while not low <= at <= high:
                    at = 2 * low - at if at < low else 2 * high - at
                # the wave falls where it is reflected: a point just above a tie is just below it there
                falls = not low <= j + shift <= high
                column = min(max(math.ceil(at - 0.5) if falls else math.floor(at + 0.5), 0), width - 1)
            else:
                column = math.floor(at + 0.5)
            inside = 0 <= column < width
            column = min(max(column, 0), width - 1)
            expected = image[0, 0, :, column] if inside or padding_mode != "zeros" else torch.zeros(height)
            np.testing.assert_array_equal(output[:, j].numpy(), expected.numpy(), err_msg=f"{shift}, {j}")


def test_rounding_half_up_at_exact_ties() -> None:
    image = torch.arange(1.0, 6.0).reshape(1, 1, 1, 5)
    theta = torch.tensor([[1.0, 0, 0.25, 0, 1, 0]])  # half a pixel: W - 1 = 4
    even, up = (
        SpatialTransformer(None, Affine(), (1, 5), "nearest", align_corners=True, rounding=rounding)(image, theta)
        for rounding in ("half to even", "half up")
    )
    assert even.flatten().tolist() == [1, 3, 3, 5, 5]
    assert up.flatten().tolist() == [2, 3, 4, 5, 0]


def test_the_layer_trains_its_kernel_parameters() -> None:
    torch.manual_seed(0)
    localization = nn.Sequential(nn.Flatten(), nn.Linear(30, 6))
    transformer = SpatialTransformer(localization, Affine(), (4, 4))
    layer = KernelTransformer(transformer, gaussian, torch.tensor(0.5))
    layer(torch.randn(2, 1, 5, 6)).square().sum().backward()
    for phi in (layer.phi_x, layer.phi_y):
        assert phi.grad is not None and float(phi.grad.abs()) > 0
    assert float(localization[1].weight.grad.abs().sum()) > 0  # type: ignore[union-attr,operator]


def test_bilinear_is_the_layer() -> None:
    transformer = SpatialTransformer(None, Affine(), (4, 4)).double()
    theta = torch.tensor([[0.8, 0.2, 0.1, -0.1, 0.9, 0.2]], dtype=torch.float64)
    image = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(KernelTransformer(transformer)(image, theta), transformer(image, theta))


def gaussian_network() -> nn.Module:
    torch.manual_seed(0)
    localization = nn.Sequential(nn.Flatten(), nn.Linear(30, 6))
    return KernelTransformer(SpatialTransformer(localization, Affine(), (4, 4)), gaussian, torch.tensor(0.5)).eval()


def half_up_network() -> nn.Module:
    torch.manual_seed(0)
    localization = nn.Sequential(nn.Flatten(), nn.Linear(30, 6))
    return SpatialTransformer(localization, Affine(), (4, 4), "nearest", rounding="half up").eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "reason"), [(gaussian_network, "no GridSample in the graph"), (half_up_network, "Floor")]
)
def test_export_says_why_the_operators_stay(tmp_path: Path, network: Callable[[], nn.Module], reason: str) -> None:
    path = tmp_path / "model.onnx"
    source = f"tests.test_kernels:{network.__name__}"
    done = CliRunner().invoke(main, ["export", source, "-o", str(path), "--input-shape", "1,5,6", "--allow-code"])
    assert done.exit_code == 0, done.output
    assert reason in done.output
    image = torch.randn(3, 1, 5, 6)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(output, network()(image).detach().numpy(), rtol=0, atol=1e-5)


def test_mistakes_are_one_line_errors() -> None:
    with pytest.raises(UsageError, match="half up"):
        SpatialTransformer(None, Affine(), (4, 4), "nearest", rounding="down")
    with pytest.raises(UsageError, match="mode='nearest'"):
        SpatialTransformer(None, Affine(), (4, 4), rounding="half up")
    with pytest.raises(UsageError, match="volumes"):
        KernelTransformer(SpatialTransformer(None, Affine(rank=3), (4, 4, 4)))
    image, grid, phi = torch.zeros(1, 1, 3, 3), torch.zeros(1, 2, 2, 2), torch.ones(())
    with pytest.raises(UsageError, match=r"grid \[N, Ho, Wo, 2\]"):
        sample_with_kernel(image, grid[..., :1], bilinear, phi, phi)
    with pytest.raises(UsageError, match="one weight per distance"):
        sample_with_kernel(image, grid, lambda d, phi: d.sum(), phi, phi)
