"""The reference that everything is compared with: a model in eager float64 PyTorch, and the grids it samples."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """One call of grid_sample as eager PyTorch made it.

    Attributes:
        grid: [N, *out, D].
        size: the sampled image's spatial size.
        mode: bilinear, nearest or bicubic.
        align_corners: the sampler's convention.
    """

    grid: Array
    size: tuple[int, ...]
    mode: str
    align_corners: bool

    def pixels(self, grid: Array) -> Array:
        """Coordinates [-1, 1] of a grid on the same image as fractional pixel indices, (x, y[, z]), in grid's type."""
        sizes = np.array(self.size[::-1], grid.dtype)
        return np.asarray((grid + 1) / 2 * (sizes - 1) if self.align_corners else ((grid + 1) * sizes - 1) / 2)

    def at_pixels(self, indices: Array) -> Array:
        """The grid whose points lie at these pixel indices: :meth:`pixels` backwards, in float64."""
        sizes = np.array(self.size[::-1], np.float64)
        if self.align_corners:
            return np.asarray(2 * indices / np.maximum(sizes - 1, 1) - 1)
        return np.asarray((2 * indices + 1) / sizes - 1)


class Reference:
    """A model in eager PyTorch, in float64 where it can be run so, that notes each sampling grid.

    Args:
        module: in evaluation mode; it is copied, not changed.
        shapes: the inputs' shapes without batch, to find out whether float64 works.
    """

    def __init__(self, module: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
        self.dtype, self._default, self._module = "float32", "float32", module
        probe = [np.zeros((1, *shape), np.float32) for shape in shapes]
        for default in ("float64", "float32"):
            try:
                # mesh code often creates tensors of the default type in forward
                candidate = copy.deepcopy(module).double()
                self._module, self.dtype, self._default = candidate, "float64", default
                self.run(probe)
                return
            except Exception:  # the user's forward may raise anything
                continue
        self._module, self.dtype, self._default = module, "float32", "float32"

    def run(
        self, inputs: Sequence[Array], grids: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[Sampling]]:
        """Outputs and samplings for float inputs [N, ...].

        Args:
            inputs: one array an input.
            grids: sampling grids to use instead of the model's own, in the samplers' order; None keeps one.
        """
        import torch
        from torch.utils import _pytree as pytree

        dtype = getattr(torch, self.dtype)
        tensors = [
            torch.from_numpy(value).to(dtype) if value.dtype.kind == "f" else torch.from_numpy(value)
            for value in inputs
        ]
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self._default))
        try:
            with torch.no_grad(), warnings.catch_warnings(), _recorder(grids or ()) as samplings:
                warnings.simplefilter("ignore")
                outputs = pytree.tree_leaves(self._module(*tensors))
        finally:
            torch.set_default_dtype(before)
        return [output.numpy() for output in outputs], samplings.calls


def _recorder(grids: Sequence[Array | None]) -> Any:
    """A context in which every grid sampler's arguments are noted, in ``calls``, and ``grids`` replace its grids."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    modes = ("bilinear", "nearest", "bicubic")
    samplers = (torch.ops.aten.grid_sampler_2d.default, torch.ops.aten.grid_sampler_3d.default)

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Notes the arguments of every grid sampler that runs inside it."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.calls: list[Sampling] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in samplers:
                image, grid, mode, _, align_corners = args[:5]
                # the tensors are owned by the run: copied, since a later operator may write in place
                values = grid.detach().clone().numpy()
                self.calls.append(Sampling(values, tuple(image.shape[2:]), modes[mode], bool(align_corners)))
                given = grids[len(self.calls) - 1] if grids else None
                if given is not None:
                    args = (image, torch.from_numpy(given).to(grid), *args[2:])
            return func(*args, **(kwargs or {}))

    return Recorder()
