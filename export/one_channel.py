"""The gradient of a convolution with respect to an image of one channel, which spatial transformers need in every step.

oneDNN computes it one number at a time: for 32 filters of 9 x 9 it takes 40 ms per batch of 128 on one core, as long as
all the rest of the step. A matrix product and shifted sums take 7.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 16  # samples at a time: their products stay in the cache


class _Convolution(torch.autograd.Function):
    """A convolution of [N, 1, H, W] with stride 1 and no padding."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        images, weight = context.saved_tensors
        (gradient,) = gradients
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, images, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True]
        )
        of_images = _of_images(gradient, weight, images.shape) if context.needs_input_grad[0] else None
        return of_images, of_weight, of_bias


def _of_images(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    filters, _, rows, columns = weight.shape
    height, width = gradient.shape[2:]
    taps = weight.reshape(filters, rows * columns).t().contiguous()
    result = gradient.new_zeros(shape[0], shape[2], shape[3])
    for start in range(0, len(gradient), CHUNK):
        part, sums = gradient[start : start + CHUNK], result[start : start + CHUNK]
        by_filter = part.permute(1, 0, 2, 3).reshape(filters, -1)
        shares = (taps @ by_filter).reshape(rows, columns, len(part), height, width)
        for row in range(rows):
            for column in range(columns):
                sums[:, row : row + height, column : column + width] += shares[row, column]
    return result[:, None]


class OneChannelConv2d(nn.Conv2d):
    """A convolution whose input gradient is computed by a matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, 1, H, W] to [N, filters, H - rows + 1, W - columns + 1]."""
        assert self.bias is not None
        result: Tensor = _Convolution.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def quicken(network: nn.Module) -> None:
    """Let every plain convolution of one channel take the quick gradient; weights and results stay what they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _plain(module):
            module.__class__ = OneChannelConv2d


def _plain(module: nn.Conv2d) -> bool:
    shape = (module.in_channels, module.stride, module.padding, module.dilation, module.groups)
    return shape == (1, (1, 1), (0, 0), (1, 1), 1) and module.bias is not None
