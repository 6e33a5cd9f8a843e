"""Convolutions in bfloat16: near those in float32, with float32 weights and gradients, and only where they pay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from export.bfloat16 import CHANNELS, BFloat16Conv2d, convolutions, quick


@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_near_those_of_float32(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 8, 5, stride=2, padding=2, bias=bias)
    half = copy.deepcopy(plain)
    images = torch.randn(4, 16, 11, 12)
    with convolutions(half, "bf16"):
        assert type(half) is BFloat16Conv2d
        found, wanted = half(images), plain(images)
        assert found.dtype == torch.float32 and not torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
        (found.square().sum() + wanted.square().sum()).backward()
    for ours, theirs in zip(half.parameters(), plain.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad, theirs.grad, atol=0.02 * float(theirs.grad.abs().max()), rtol=0)
    assert type(half) is nn.Conv2d


def test_few_channels_other_layers_and_fp32_stay_what_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(CHANNELS - 1, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    with convolutions(network, "bf16"):
        assert [type(module) for module in network] == [nn.Conv2d, nn.ConvTranspose2d, BFloat16Conv2d]
    with convolutions(network, "fp32"):
        assert type(network[2]) is nn.Conv2d


def test_an_interrupted_training_leaves_float32() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3))
    with pytest.raises(KeyboardInterrupt), convolutions(network, "bf16"):
        raise KeyboardInterrupt
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "num_physical_cores": 2}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_f": True}, False),
    ],
)
def test_a_cpu_with_bfloat16_instructions_is_quick(
    capabilities: dict[str, bool | int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert quick() is expected


def test_an_old_pytorch_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert quick()
