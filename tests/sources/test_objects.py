"""Copies of modules, and what they leave as it was."""

from __future__ import annotations

import random
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stn_infer.errors import SourceError, UsageError
from stn_infer.sources.load import load_source
from stn_infer.sources.objects import cpu_copy, undisturbed, unwrapped


class Net(nn.Module):
    """Tied weights, a buffer that is not stored, a tensor in a list, a computed tensor, and what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.arange(3.0), persistent=False)
        self.scales = [torch.full((3,), 2.0)]
        self.computed = self.first.weight * 1.0
        self.lock = threading.Lock()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.norm(self.second(self.first(x))) * self.scales[0] + self.offset + self.computed[0]


def test_a_copy_shares_no_tensor_and_keeps_what_is_tied() -> None:
    module = Net().train()
    module.first.bias.requires_grad_(False)
    copied: Any = cpu_copy(module)
    given = torch.randn(4, 3)
    assert torch.equal(copied.eval()(given), module.eval()(given))
    assert copied.first.weight is copied.second.weight and not copied.first.bias.requires_grad
    theirs = {it.data_ptr() for it in (*module.parameters(), *module.buffers(), *module.scales, module.computed)}
    ours = {it.data_ptr() for it in (*copied.parameters(), *copied.buffers(), *copied.scales, copied.computed)}
    assert not theirs & ours
    assert copied.lock is module.lock


def test_a_hook_belongs_to_the_copy() -> None:
    module = Net().eval()
    module.second.register_forward_hook(lambda layer, inputs, output: output * 3)
    module.first.register_forward_pre_hook(Doubled(module))
    given = torch.randn(4, 3)
    copied: Any = cpu_copy(module)
    assert torch.equal(copied(given), module(given))
    (hook,) = copied.first._forward_pre_hooks.values()
    assert hook.owner is copied


class Doubled:
    """A hook that knows the module it belongs to."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * 2,)


def test_wrappers_are_removed() -> None:
    module = nn.Linear(2, 2)
    wrapped = torch.compile(nn.DataParallel(AveragedModel(nn.DataParallel(module))), backend="eager")
    assert isinstance(wrapped, nn.Module)
    found = unwrapped(wrapped)
    assert isinstance(found, nn.Linear) and torch.equal(found.weight, module.weight)


class Broken(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("not to be copied")


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: nn.LazyLinear(2), "LazyLinear: weight has no shape yet; run the module once"),
        (lambda: nn.Linear(2, 2, device="meta"), "Linear: weight has no values"),
        (scripted, "TorchScript module, which cannot be exported; give the module it was made from"),
        (Broken, "Broken cannot be copied (RuntimeError: not to be copied)"),
    ],
)
def test_modules_that_cannot_be_copied(module: Any, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        load_source(module(), input_shapes=[(2,)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Net(), "Net: a module does not define its inputs' shapes; give input_shapes"),
        (Net, "got the class Net; give an instance of it"),
        (None, "expected a module, or the name or path of a source, got NoneType"),
        (lambda: None, "got function"),
    ],
)
def test_what_is_no_source(source: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_source(source)
    assert message in str(caught.value)


def test_the_process_is_left_as_it_was() -> None:
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # type: ignore[func-returns-value]
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # type: ignore[func-returns-value]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            with undisturbed():
                made = torch.rand(5)
                assert made.dtype == torch.float32 and made.device.type == "cpu" and not made.is_inference()
                assert (made[:, None] @ made[None]).dtype == torch.float32
                random.random(), np.random.rand()
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            assert torch.empty(1).device.type == "meta"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]
