"""Text rectifiers rebuilt from their public description: layers and names of tensors as published, weights random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upper_and_lower(count: int, left: float, right: float, top: float, bottom: float) -> Tensor:
    """``count`` points, half of them along the upper edge from left to right, half along the lower."""
    x = torch.linspace(left, right, count // 2, dtype=torch.float64)
    return torch.cat([torch.stack([x, torch.full_like(x, y)], 1) for y in (top, bottom)])


def radii(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b[None]).square().sum(-1).sqrt()


def pictures(seed: int, *shape: int) -> Tensor:
    """Smooth pictures in -1..1, each with a brightness and contrast of its own: a text line has no white noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = F.avg_pool2d(torch.randn(shape, generator=generator), 5, 1, 2)
    light, contrast = torch.randn(2, shape[0], 1, 1, 1, generator=generator).mul(0.3)
    return (noise * (1.5 + contrast) + light).clamp(-1, 1)


def shake(head: nn.Module, last: nn.Linear, start: Tensor, example: Tensor, seed: int) -> None:
    """Weights as of a trained head: normalization statistics that matter, outputs that vary around ``start``."""
    generator = torch.Generator().manual_seed(seed)
    for layer in head.eval().modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.2, 1.5),
                (layer.weight, 0.7, 1.3),
                (layer.bias, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            torch.nn.init.kaiming_uniform_(layer.weight, generator=generator)
    taken: list[Tensor] = []
    hook = last.register_forward_hook(lambda _, inputs, output: taken.append(output))
    with torch.no_grad():
        last.bias.zero_()
        head(example)
        last.weight.mul_(0.03 / taken[0].std(0).mean())
        head(example)
        last.bias.copy_(start.reshape(-1) - taken[1].mean(0))
    hook.remove()


# ---- RARE as the text recognition benchmark has it ---------------------------------------------------------------


class RareGrid(nn.Module):
    """The spline's constants: features (1, x, y, r² log(r + 1e-6)) of each pixel, and the inverse of the system."""

    def __init__(self, points: int, size: tuple[int, int]) -> None:
        super().__init__()
        control = upper_and_lower(points, -1, 1, -1, 1)
        rows, cols = (((2 * torch.arange(n, dtype=torch.float64)) + 1) / n - 1 for n in size)
        pixels = torch.cartesian_prod(rows, cols).flip(1)
        far = radii(pixels, control)
        between = radii(control, control) + torch.eye(points)
        upper = torch.cat([torch.ones(points, 1), control, between**2 * between.log()], 1)
        lower = torch.cat([torch.zeros(3, 3), torch.cat([control.T, torch.ones(1, points)])], 1)
        features = torch.cat([torch.ones(len(pixels), 1), pixels, far**2 * (far + 1e-6).log()], 1)
        self.register_buffer("inv_delta_C", torch.cat([upper, lower]).inverse().float())
        self.register_buffer("P_hat", features.float())

    def forward(self, points: Tensor) -> Tensor:
        padded = torch.cat([points, points.new_zeros(points.shape[0], 3, 2)], 1)
        mapping = self.inv_delta_C @ padded  # type: ignore[operator]
        return self.P_hat @ mapping  # type: ignore[operator, no-any-return]


class RareLocalization(nn.Module):
    """Four convolutions with pooling, two linear layers, F points."""

    def __init__(self, points: int, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        self.conv = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1))
        self.localization_fc1 = nn.Sequential(nn.Linear(widths[-1], 256), nn.ReLU())
        self.localization_fc2 = nn.Linear(256, 2 * points)

    def forward(self, image: Tensor) -> Tensor:
        features = self.localization_fc1(self.conv(image).flatten(1))
        return self.localization_fc2(features).unflatten(1, (-1, 2))  # type: ignore[no-any-return]


class Rare(nn.Module):
    """The rectifier: border padding, corners in the sampler, centers in the grid."""

    def __init__(
        self,
        points: int = 20,
        size: tuple[int, int] = (32, 100),
        channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.size = size
        self.LocalizationNetwork = RareLocalization(points, channels, widths)
        self.GridGenerator = RareGrid(points, size)
        start = upper_and_lower(points, -0.9, 0.9, -0.7, 0.8)
        network = self.LocalizationNetwork
        shake(network, network.localization_fc2, start, pictures(seed, 8, channels, 32, 100), seed)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        grid = self.GridGenerator(self.LocalizationNetwork(image)).unflatten(1, self.size)
        return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def small_rare() -> Rare:
    """A factory, as a user of the published code would write it."""
    return Rare(widths=(16, 24, 32, 48))


class Recognizer(nn.Module):
    """A larger model around a rectifier."""

    def __init__(self, rectifier: nn.Module) -> None:
        super().__init__()
        self.Transformation = rectifier
        self.FeatureExtraction = nn.Conv2d(1, 4, 3)
        self.Prediction = nn.Linear(4, 37)


# ---- ASTER's PyTorch port ----------------------------------------------------------------------------------------


class AsterSpline(nn.Module):
    """The spline over 0..1 with its control points inside the margins; clamps its grid."""

    def __init__(self, points: int, size: tuple[int, int], margins: tuple[float, float], corners: bool) -> None:
        super().__init__()
        self.size, self.corners = size, corners
        control = upper_and_lower(points, margins[0], 1 - margins[0], margins[1], 1 - margins[1])
        rows, cols = (torch.arange(n, dtype=torch.float64) / (n - 1) for n in size)
        pixels = torch.cartesian_prod(rows, cols).flip(1)

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            squared = radii(a, b).square()
            return 0.5 * torch.xlogy(squared, squared)

        right = torch.cat([torch.ones(points, 1), control], 1)
        system = torch.cat(
            [torch.cat([kernel(control, control), right], 1), torch.cat([right.T, torch.zeros(3, 3)], 1)]
        )
        features = torch.cat([kernel(pixels, control), torch.ones(len(pixels), 1), pixels], 1)
        self.register_buffer("inverse_kernel", system.inverse().float())
        self.register_buffer("padding_matrix", torch.zeros(3, 2))
        self.register_buffer("target_coordinate_repr", features.float())
        self.register_buffer("target_control_points", control.float())

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        padding = self.padding_matrix.expand(len(points), 3, 2)  # type: ignore[operator]
        mapping = self.inverse_kernel @ torch.cat([points, padding], 1)  # type: ignore[operator]
        grid = (self.target_coordinate_repr @ mapping).unflatten(1, self.size).clamp(0, 1) * 2 - 1  # type: ignore[operator]
        return F.grid_sample(image, grid, align_corners=self.corners)


class AsterHead(nn.Module):
    """Six convolutions, five poolings, two linear layers."""

    def __init__(self, points: int, channels: int, sigmoid: bool) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        layers: list[nn.Module] = []
        widths = (32, 64, 128, 256, 256, 256)
        for before, width in zip((channels, *widths), widths, strict=False):
            layers += [nn.Sequential(nn.Conv2d(before, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())]
            layers += [nn.MaxPool2d(2)]
        self.stn_convnet = nn.Sequential(*layers[:-1])
        self.stn_fc1 = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU())
        self.stn_fc2 = nn.Linear(512, 2 * points)

    def forward(self, image: Tensor) -> Tensor:
        points = self.stn_fc2(0.1 * self.stn_fc1(self.stn_convnet(image).flatten(1)))
        return (points.sigmoid() if self.sigmoid else points).unflatten(1, (-1, 2))  # type: ignore[no-any-return]


class Aster(nn.Module):
    """Head on the resized image, spline on the image itself. ``corners``: as on torch 1.2 and before."""

    def __init__(
        self,
        points: int = 20,
        size: tuple[int, int] = (32, 100),
        channels: int = 3,
        margins: tuple[float, float] = (0.05, 0.05),
        sigmoid: bool = False,
        corners: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.stn_head = AsterHead(points, channels, sigmoid)
        self.tps = AsterSpline(points, size, margins, corners)
        start = upper_and_lower(points, 0.01, 0.99, 0.05, 0.9)
        example = pictures(seed, 8, channels, 32, 64)
        shake(self.stn_head, self.stn_head.stn_fc2, torch.logit(start) if sigmoid else start, example, seed)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        small = F.interpolate(image, (32, 64), mode="bilinear", align_corners=True)
        return self.tps(image, self.stn_head(small))  # type: ignore[no-any-return]
