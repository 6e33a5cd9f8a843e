"""Inception with batch normalization (Ioffe and Szegedy 2015), the trunk of the bird networks.

Its 3 x 3 branches are factorized as in that paper's appendix: a reduction by a 1 x 1 convolution, then one 3 x 3
convolution, or two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Module:
    """Filters of one Inception module; a stride of 2 has no 1 x 1 branch, and passes its input on by max pooling.

    Attributes:
        single: of the 1 x 1 branch.
        one: reduction and filters of the branch with one 3 x 3 convolution.
        two: reduction and filters of the branch with two.
        pool: of the projection after pooling; 0 passes the pooled input on.
        stride: 1 or 2.
        average: pool by averages instead of maxima.
    """

    single: int
    one: tuple[int, int]
    two: tuple[int, int]
    pool: int
    stride: int = 1
    average: bool = True


MODULES = (
    Module(64, (64, 64), (64, 96), 32),
    Module(64, (64, 96), (64, 96), 64),
    Module(0, (128, 160), (64, 96), 0, stride=2, average=False),
    Module(224, (64, 96), (96, 128), 128),
    Module(192, (96, 128), (96, 128), 128),
    Module(160, (128, 160), (128, 160), 128),
    Module(96, (128, 192), (160, 192), 128),
    Module(0, (128, 192), (192, 256), 0, stride=2, average=False),
    Module(352, (192, 320), (160, 224), 128),
    Module(352, (192, 320), (192, 224), 128, average=False),
)


def inception(channels: int = 3, width: float = 1.0) -> tuple[nn.Sequential, int]:
    """(trunk, features): [N, C, H, W] to [N, features, H / 32, W / 32]; 1024 features at full width.

    Args:
        channels: C.
        width: factor on the numbers of filters.
    """

    def scaled(count: int) -> int:
        return max(1, round(count * width))

    layers: list[nn.Module] = [
        _convolution(channels, scaled(64), 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _convolution(scaled(64), scaled(64), 1),
        _convolution(scaled(64), scaled(192), 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]
    count = scaled(192)
    for module in MODULES:
        block = InceptionModule(count, module, scaled)
        layers.append(block)
        count = block.features
    return nn.Sequential(*layers), count


class InceptionModule(nn.Module):
    """Parallel branches, concatenated along the channels; ``features`` is their sum."""

    def __init__(self, channels: int, spec: Module, scaled: Callable[[int], int]) -> None:
        super().__init__()
        stride = spec.stride
        branches: list[nn.Module] = []
        if spec.single:
            branches.append(_convolution(channels, scaled(spec.single), 1))
        reduction, filters = map(scaled, spec.one)
        branches.append(
            nn.Sequential(_convolution(channels, reduction, 1), _convolution(reduction, filters, 3, stride))
        )
        reduction, deep = map(scaled, spec.two)
        branches.append(
            nn.Sequential(
                _convolution(channels, reduction, 1),
                _convolution(reduction, deep, 3),
                _convolution(deep, deep, 3, stride),
            )
        )
        pool: nn.Module = nn.AvgPool2d(3, stride, 1) if spec.average else nn.MaxPool2d(3, stride, 1)
        projected = scaled(spec.pool) if spec.pool else channels
        branches.append(nn.Sequential(pool, _convolution(channels, projected, 1)) if spec.pool else pool)
        self.branches = nn.ModuleList(branches)
        self.features = (scaled(spec.single) if spec.single else 0) + filters + deep + projected

    def forward(self, input: Tensor) -> Tensor:
        """[N, features, H, W]; H and W are halved, rounded up, with a stride of 2."""
        return torch.cat([branch(input) for branch in self.branches], dim=1)


def _convolution(channels: int, filters: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, size, stride, size // 2, bias=False), nn.BatchNorm2d(filters), nn.ReLU()
    )
