"""The quick gradient of a convolution of one channel equals PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from export.one_channel import CHUNK, OneChannelConv2d, quicken


@pytest.mark.parametrize("samples", [1, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("kernel", [(9, 9), (1, 1), (3, 5)])
def test_the_gradients_are_those_of_pytorch(samples: int, kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(1, 6, kernel)
    quick = copy.deepcopy(plain)
    quicken(quick)
    assert type(quick) is OneChannelConv2d
    images = torch.randn(samples, 1, 12, 11)
    weights = torch.randn_like(plain(images))
    wanted, found = (_gradients(module, images, weights) for module in (plain, quick))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-5, msg=name)


def test_other_convolutions_stay_what_they_are() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3), nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(1, 2, 3, stride=2)
    )
    quicken(network)
    assert all(type(module) is nn.Conv2d for module in network)


def test_images_that_need_no_gradient_get_none() -> None:
    quick = nn.Conv2d(1, 2, 3)
    quicken(quick)
    quick(torch.randn(2, 1, 5, 5)).sum().backward()
    assert quick.weight.grad is not None and quick.weight.grad.abs().sum() > 0


def _gradients(module: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    images = images.clone().requires_grad_()
    (module(images) * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"images": images.grad, **found}
