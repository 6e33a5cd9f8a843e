"""Runs a model in eager bfloat16 PyTorch with given float32 grids; no ONNX runtime supports bfloat16 on a CPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.arrays import Array

if TYPE_CHECKING:
    from torch import nn


class EagerBf16:
    """Runs a module in bfloat16, except for its samplers.

    A plain bfloat16 module also computes its grid in bfloat16, with errors of several pixels. An exported file does
    not, so every sampler gets the file's grid and samples in float32.

    Args:
        module: in evaluation mode, float32; it is copied, not changed.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module).bfloat16()

    def run(self, inputs: Sequence[Array], grids: Sequence[Array]) -> list[Array] | None:
        """Returns the outputs, floats as float32. None if the module can't run this way.

        Args:
            inputs: one float32 array per input.
            grids: one sampling grid [N, *out, D] per sampler, in the order in which the module runs the samplers.
        """
        import torch
        from torch.utils import _pytree as pytree

        tensors = [torch.tensor(value) for value in inputs]  # copies: a forward method may write in place
        tensors = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in tensors]
        context = _at_grids([torch.from_numpy(np.ascontiguousarray(grid, np.float32)) for grid in grids])
        try:
            with torch.no_grad(), warnings.catch_warnings(), context:
                warnings.simplefilter("ignore")
                outputs = pytree.tree_leaves(self._module(*tensors))
        except Exception:  # the module may reject the type, or call its samplers differently from the file
            return None
        if context.used != len(grids):
            return None
        return [(output.float() if output.is_floating_point() else output).numpy() for output in outputs]


def _at_grids(grids: Sequence[Any]) -> Any:
    """Returns a context in which the samplers use ``grids``, in order, and compute in float32."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    samplers = (torch.ops.aten.grid_sampler_2d.default, torch.ops.aten.grid_sampler_3d.default)

    class AtGrids(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Replaces the grid of each sampler that runs in the context."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.used = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func not in samplers:
                return func(*args, **(kwargs or {}))
            image, own = args[:2]
            given = grids[self.used]
            if given.shape != own.shape:
                raise ValueError("the file's grid has a different shape")
            self.used += 1
            return func(image.float(), given, *args[2:], **(kwargs or {})).to(image.dtype)

    return AtGrids()
