"""Small networks whose sampling grids are written in the many ways in which people write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (9, 7)  # height, width: odd, unequal
SHAPE = (2, *SIZE)


class Head(nn.Module):
    """A nonlinear feature layer, then one linear layer of ``outputs`` with small weights."""

    def __init__(self, outputs: int, identity: list[float] | None = None, features: int = 24) -> None:
        super().__init__()
        self.features = nn.Linear(math.prod(SHAPE), features)
        self.head = nn.Linear(features, outputs)
        nn.init.normal_(self.head.weight, std=0.05)
        if identity is not None:
            self.head.bias.data = torch.tensor(identity)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x.flatten(1))))


def mesh(corners: bool = False) -> Tensor:
    """[2, H, W]: x, y."""
    axes = []
    for size in SIZE:
        end = 1.0 if corners else 1.0 - 1.0 / size
        axes.append(torch.linspace(-end, end, size))
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y])


IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


class AffineGrid(nn.Module):
    """``F.affine_grid``, as in the well-known tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(6, IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.loc(x).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)


class BatchedMesh(nn.Module):
    """A homogeneous mesh, made in forward, repeated over the batch, and a batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(6, IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([mesh(corners=True), torch.ones(1, *SIZE)]).flatten(1)
        grid = torch.bmm(self.loc(x).view(-1, 2, 3), points.unsqueeze(0).repeat(x.shape[0], 1, 1))
        return F.grid_sample(x, grid.view(-1, 2, *SIZE).permute(0, 2, 3, 1), align_corners=True)


class AssignedTheta(nn.Module):
    """Attention: theta filled in place, element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(3, [1.0, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        p = self.loc(x)
        theta = torch.zeros(x.shape[0], 2, 3)
        theta[:, 0, 0] = p[:, 0]
        theta[:, 1, 1] = p[:, 0]
        theta[:, :, 2] = p[:, 1:]
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)


class SigmoidAttention(nn.Module):
    """Attention whose parameters go through a sigmoid and a tanh, from two heads that meet in the grid alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = Head(1, [2.0]), Head(2, [0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = torch.sigmoid(self.scale(x)), torch.tanh(self.shift(x))
        grid = mesh().permute(1, 2, 0)[None] * scale[:, :, None, None] + shift[:, None, None, :]
        return F.grid_sample(x, grid, align_corners=False)


class Rotation(nn.Module):
    """An angle's sine and cosine, stacked into theta."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(1, [0.1])

    def forward(self, x: Tensor) -> Tensor:
        angle = self.loc(x)[:, 0]
        c, s, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
        theta = torch.stack([torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)], 1)
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=True), align_corners=True)


class Homography(nn.Module):
    """Eight parameters and a one; x and y divided by w."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(8, [*IDENTITY, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.loc(x), torch.ones(x.shape[0], 1)], 1).view(-1, 3, 3)
        q = h @ torch.cat([mesh(), torch.ones(1, *SIZE)]).flatten(1)
        grid = (q[:, :2] / q[:, 2:]).transpose(1, 2).reshape(-1, *SIZE, 2)
        return F.grid_sample(x, grid, align_corners=False)


class ReciprocalHomography(nn.Module):
    """The same by a reciprocal, a product and separate coordinates, plus a constant half pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(8, [*IDENTITY, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        p = self.loc(x)[:, :, None, None]
        mx, my = mesh()
        w = torch.reciprocal(p[:, 6] * mx + p[:, 7] * my + 1.0)
        gx = (p[:, 0] * mx + p[:, 1] * my + p[:, 2]) * w + 1.0 / SIZE[1]
        gy = (p[:, 3] * mx + p[:, 4] * my + p[:, 5]) * w
        return F.grid_sample(x, torch.stack([gx, gy], -1), align_corners=False)


class RectifierTPS(nn.Module):
    """A thin plate spline as text rectifiers write it: buffers with an inverse, and zeros joined in forward."""

    def __init__(self, points: int = 6) -> None:
        super().__init__()
        row = torch.linspace(-1, 1, points // 2)
        control = torch.cat([torch.stack([row, torch.full_like(row, end)], 1) for end in (-1.0, 1.0)]).double()
        delta = torch.zeros(points + 3, points + 3, dtype=torch.float64)
        delta[:points, :points] = self._kernel(control, control)
        delta[:points, points:] = torch.cat([torch.ones(points, 1), control], 1)
        delta[points:, :points] = delta[:points, points:].T
        target = mesh().flatten(1).T.double()
        terms = torch.cat([self._kernel(target, control), torch.ones(len(target), 1), target], 1)
        self.register_buffer("inverse", torch.linalg.inv(delta).float())
        self.register_buffer("terms", terms.float())
        self.loc = Head(2 * points, control.flatten().tolist(), features=32)

    @staticmethod
    def _kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = ((a[:, None] - b[None]) ** 2).sum(-1)
        return torch.where(squared == 0, torch.zeros(()).double(), squared * torch.log(squared.clamp_min(1e-30)))

    def forward(self, x: Tensor) -> Tensor:
        points = self.loc(x).view(x.shape[0], -1, 2)
        padded = torch.cat([points, torch.zeros(x.shape[0], 3, 2)], dim=1)
        grid = torch.bmm(self.terms.repeat(x.shape[0], 1, 1), torch.matmul(self.inverse, padded))
        return F.grid_sample(x, grid.view(-1, *SIZE, 2), padding_mode="border", align_corners=True)


class TwoTransformers(nn.Module):
    """Two in parallel on one input, and a third on the second's output with the first's theta."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Head(6, IDENTITY), Head(6, IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        shape = list(x.size())
        first = F.affine_grid(self.first(x).view(-1, 2, 3), shape, align_corners=False)
        second = F.affine_grid(self.second(x).view(-1, 2, 3), shape, align_corners=False)
        a = F.grid_sample(x, first, align_corners=False)
        b = F.grid_sample(x, second, mode="bicubic", align_corners=False)
        return torch.cat([a, b, F.grid_sample(b, first, padding_mode="reflection", align_corners=False)], 1)


class Volume(nn.Module):
    """A 3-D affine transformer on the input repeated in depth."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(12, [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0])

    def forward(self, x: Tensor) -> Tensor:
        volume = x[:, :, None].expand(-1, -1, 4, -1, -1) * torch.arange(1.0, 5.0)[:, None, None]
        grid = F.affine_grid(self.loc(x).view(-1, 3, 4), list(volume.size()), align_corners=False)
        return F.grid_sample(volume, grid, align_corners=False).flatten(1)


class ClampedGrid(AffineGrid):
    """A clamp at values that no test would reach."""

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.loc(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        return F.grid_sample(x, grid.clamp(-10, 10), align_corners=False)


class ChosenGrid(AffineGrid):
    """A where that depends on the grid itself."""

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.loc(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        return F.grid_sample(x, torch.where(grid > 50, grid * 2, grid), align_corners=False)


class ProductAfterCut(nn.Module):
    """A bilinear surface in parameters that multiply each other at each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = Head(4, [1.0, 0.0, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        p = self.loc(x)[:, :, None, None]
        warped = p[:, 0] * mesh()[0] + p[:, 1]
        product = warped * (p[:, 2] * mesh()[1] + p[:, 3])
        return F.grid_sample(x, torch.stack([warped, product], -1), align_corners=False)


class DenseFlow(nn.Module):
    """A flow field from a convolution, added to the identity mesh."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.Conv2d(SHAPE[0], 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, (self.flow(x) * 0.1 + mesh()).permute(0, 2, 3, 1), align_corners=False)


class MixedSamples(AffineGrid):
    """Each sample's theta less the batch's mean."""

    def forward(self, x: Tensor) -> Tensor:
        theta = self.loc(x).view(-1, 2, 3)
        theta = theta - theta.mean(dim=0, keepdim=True) + torch.eye(2, 3)
        grid = F.affine_grid(theta, list(x.size()), align_corners=False)
        return F.grid_sample(x, grid - 0.01 * grid.mean(dim=0, keepdim=True), align_corners=False)


class BentGrid(AffineGrid):
    """A nonlinear function of each point."""

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.loc(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        return F.grid_sample(x, torch.tanh(grid), align_corners=False)


class BatchSized(AffineGrid):
    """Scales by the number of samples, up to sixteen: constant in every small batch."""

    def forward(self, x: Tensor) -> Tensor:
        count = torch.ones(x.shape[0]).cumsum(0)[-1]
        grid = F.affine_grid(self.loc(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        return F.grid_sample(x, grid * (count / 16).clamp(min=1.0), align_corners=False)


class LearnedGrid(nn.Module):
    """One theta for all inputs: a parameter, not a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([IDENTITY]).view(1, 2, 3) * 0.9)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta.expand(x.shape[0], -1, -1)
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)


FUSED = {
    # style: (kind, K, values at the cut)
    AffineGrid: ("affine", 3, 6),
    BatchedMesh: ("affine", 3, 6),
    AssignedTheta: ("affine", 3, 3),
    SigmoidAttention: ("affine", 3, 3),
    Rotation: ("affine", 3, 2),
    Homography: ("projective", 3, 8),
    ReciprocalHomography: ("projective", 3, 8),
    RectifierTPS: ("basis", 6, 12),
    Volume: ("affine", 4, 12),
    ProductAfterCut: ("basis", 4, 4),
}

NOT_FUSED = {
    # style: what the finding names
    ClampedGrid: "Clip",
    ChosenGrid: "Where",
    DenseFlow: "Conv",
    MixedSamples: "samples of a batch",
    BentGrid: "Tanh",
    BatchSized: "computed from the batch size",
    LearnedGrid: "depends on no input",
}
