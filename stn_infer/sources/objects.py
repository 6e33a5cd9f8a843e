"""Copies of PyTorch modules that a program holds; the originals stay as they are."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from stn_infer.errors import SourceError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_module(value: object) -> TypeGuard[nn.Module]:
    """Whether ``value`` is an instance of ``torch.nn.Module``; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside the wrappers of DataParallel, AveragedModel and torch.compile, which cannot be exported."""
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile's
            module = inner
        else:
            return module


def cpu_copy(module: nn.Module) -> nn.Module:
    """A copy of a module on the CPU, hooks and attributes included, that shares no tensor with it.

    What an attribute holds that cannot be copied, such as a lock or a logger, is shared.

    Raises:
        SourceError: it is a TorchScript module, has weights without values or shapes, or cannot be copied.
    """
    from torch import jit

    name = type(module).__name__
    if isinstance(module, jit.ScriptModule):
        raise SourceError(f"{name} is a TorchScript module, which cannot be exported; give the module it was made from")
    memo = _copied_tensors(module)
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception:  # an attribute's own code may raise anything
        memo.update(_not_copied(module, memo))
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise SourceError(
            f"{name} cannot be copied ({type(error).__name__}: {one_line(error, 120)}); remove the attribute that "
            "cannot, or give it a __deepcopy__"
        ) from error


def _copied_tensors(module: nn.Module) -> dict[int, Any]:
    """By identity, a copy on the CPU of each tensor of a module; deepcopy would copy them on their device.

    It also refuses tensors that are computed from others, such as those of weight normalization.
    """
    from torch import nn
    from torch.nn.parameter import is_lazy

    copies: dict[int, Any] = {}
    for key, tensor in _tensors(module):
        if is_lazy(tensor):
            raise SourceError(f"{type(module).__name__}: {key} has no shape yet; run the module once on an input")
        if tensor.is_meta:
            raise SourceError(f"{type(module).__name__}: {key} has no values (it is on the meta device); load them")
        copied = tensor.detach().cpu().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, tensor.requires_grad)
        copies[id(tensor)] = copied
    return copies


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, and tensors in other attributes, with their names."""
    from torch import Tensor

    yield from module.named_parameters()
    yield from module.named_buffers()
    for prefix, each in module.named_modules():
        for name, value in _attributes(each).items():
            held = (
                value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
            )
            yield from ((f"{prefix}.{name}".lstrip("."), it) for it in held if isinstance(it, Tensor))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes but for those that every module has."""
    from torch import nn

    every = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in every}


def _not_copied(module: nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    """By identity, the attributes that cannot be copied."""
    shared = {}
    for each in module.modules():
        for value in _attributes(each).values():
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # an attribute's own code may raise anything
                shared[id(value)] = value
    return shared


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """PyTorch's settings of the process as this package needs them, and restored afterwards with the random states.

    They are the default type and device, inference mode, gradients and autocast; random states are those of PyTorch on
    the CPU, NumPy and Python.
    """
    import torch

    dtype = torch.get_default_dtype()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if torch.is_autocast_enabled("cpu"):
                stack.enter_context(torch.autocast("cpu", enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python)
        np.random.set_state(numpy)
