"""Convolutions in bfloat16 with float32 weights, for training: twice as quick on a CPU with AVX512-BF16.

On a CPU without such instructions they take ten times as long as in float32. Only convolutions of many channels change;
grids, losses, weights, and all that is measured stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CHANNELS = 8  # with fewer, the conversion costs what the convolution gains


def quick() -> bool:
    """Whether this CPU has instructions that multiply bfloat16 numbers; True where PyTorch is too old to say."""
    capabilities = getattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})()
    return any(there is True for name, there in capabilities.items() if name.endswith("bf16"))


class BFloat16Conv2d(nn.Conv2d):
    """A convolution that multiplies bfloat16 numbers and adds them in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] float32 to [N, filters, ...] float32."""
        bias = None if self.bias is None else self.bias.bfloat16()
        result: Tensor = self._conv_forward(input.bfloat16(), self.weight.bfloat16(), bias).float()
        return result


@contextmanager
def convolutions(network: nn.Module, precision: str) -> Iterator[None]:
    """Within it, the network's convolutions compute in ``precision``, ``fp32`` or ``bf16``."""
    chosen = [
        module
        for module in network.modules()
        if precision == "bf16" and type(module) is nn.Conv2d and module.in_channels >= CHANNELS
    ]
    for module in chosen:
        module.__class__ = BFloat16Conv2d
    try:
        yield
    finally:
        for module in chosen:
            module.__class__ = nn.Conv2d
