"""The reference that everything is compared with: a model in eager float64 PyTorch, and what its samplers do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stn_infer.arrays import Array
from stn_infer.samplers import MODES, PADDING_MODES, SamplerSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Sampling:
    """One call of a grid sampler.

    Attributes:
        grid: [N, *out, D].
        size: the sampled image's spatial size.
        mode: bilinear, nearest or bicubic.
        align_corners: the sampler's convention.
        padding_mode: zeros, border or reflection.
        image: [N, C, *in], what is sampled; None where that is not noted.
    """

    grid: Array
    size: tuple[int, ...]
    mode: str
    align_corners: bool
    padding_mode: str = "zeros"
    image: Array | None = None

    @property
    def sampler(self) -> SamplerSpec:
        """How the grid is read."""
        return SamplerSpec.of(self.mode, self.padding_mode, self.align_corners)

    def pixels(self, grid: Array) -> Array:
        """Coordinates [-1, 1] of a grid on the same image as fractional pixel indices, (x, y[, z]), in grid's type."""
        return self.sampler.pixels(grid, self.size)


class ReferenceModel(Protocol):
    """A model that is right by definition."""

    dtype: str

    @property
    def title(self) -> str:
        """What it is, for a report."""
        ...

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[Sampling]]:
        """Outputs and samplings; ``warps`` replaces what the samplers return, None keeping one."""
        ...


class Reference:
    """A model in eager PyTorch, in float64 where it can be run so, that notes each sampling.

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
                with warnings.catch_warnings():  # an exported program's own classes warn of themselves when copied
                    warnings.simplefilter("ignore")
                    candidate = copy.deepcopy(module).double()
                self._module, self.dtype, self._default = candidate, "float64", default
                self.run(probe)
                return
            except Exception:  # the user's forward may raise anything
                continue
        self._module, self.dtype, self._default = module, "float32", "float32"

    @property
    def title(self) -> str:
        """For a report."""
        return f"{self.dtype} eager PyTorch"

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[Sampling]]:
        """Outputs and samplings for float inputs [N, ...].

        Args:
            inputs: one array an input.
            warps: what the samplers return instead of their own [N, C, *out], in the order in which they run; None
                keeps one.
        """
        import torch
        from torch.utils import _pytree as pytree

        dtype = getattr(torch, self.dtype)
        # copied, since a forward may write in place
        tensors = [torch.tensor(value, dtype=dtype if value.dtype.kind == "f" else None) for value in inputs]
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self._default))
        try:
            with torch.no_grad(), warnings.catch_warnings(), _recorder(warps or ()) as samplings:
                warnings.simplefilter("ignore")
                outputs = pytree.tree_leaves(self._module(*tensors))
        finally:
            torch.set_default_dtype(before)
        return [output.numpy() for output in outputs], samplings.calls


def _recorder(warps: Sequence[Array | None]) -> Any:
    """A context in which every grid sampler's arguments are noted, in ``calls``, and ``warps`` replace its results."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    samplers = (torch.ops.aten.grid_sampler_2d.default, torch.ops.aten.grid_sampler_3d.default)

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Notes the arguments of every grid sampler that runs inside it."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.calls: list[Sampling] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in samplers:
                image, grid, mode, padding, align_corners = args[:5]
                # the tensors are owned by the run: copied, since a later operator may write in place
                values, source = grid.detach().clone().numpy(), image.detach().clone().numpy()
                size = tuple(image.shape[2:])
                self.calls.append(
                    Sampling(values, size, MODES[mode], bool(align_corners), PADDING_MODES[padding], source)
                )
                index = len(self.calls) - 1
                given = warps[index] if index < len(warps) else None
                if given is not None and given.shape == tuple(result.shape):
                    return torch.from_numpy(np.ascontiguousarray(given)).to(result)
            return result

    return Recorder()
