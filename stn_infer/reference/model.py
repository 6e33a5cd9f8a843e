"""The reference that everything is compared with: a model in eager float64 PyTorch, and what its samplers do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stn_infer.arrays import Array
from stn_infer.reference.calls import SamplerCall, recorder

if TYPE_CHECKING:
    from torch import nn


class ReferenceModel(Protocol):
    """A model that is right by definition."""

    dtype: str

    @property
    def title(self) -> str:
        """What it is, for a report."""
        ...

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[SamplerCall]]:
        """Outputs and calls; ``warps`` replaces what the samplers return, None keeping one."""
        ...


class Reference:
    """A model in eager PyTorch, in float64 where it can be run so, that notes each call of a sampler.

    Args:
        module: in evaluation mode; it is copied, not changed.
        shapes: the inputs' shapes without batch, to find out whether float64 works.
        name: what messages call it.
    """

    def __init__(self, module: nn.Module, shapes: Sequence[tuple[int, ...]], name: str = "the model") -> None:
        self._name = name
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
    ) -> tuple[list[Array], list[SamplerCall]]:
        """Outputs and calls for float inputs [N, ...].

        Args:
            inputs: one array an input.
            warps: what the samplers return instead of their own [N, C, *out], in the order in which they run; None
                keeps one.

        Raises:
            ModelError: the module's own code fails.
        """
        import torch

        from stn_infer.backends.eager import call_module

        dtype = getattr(torch, self.dtype)
        # copied, since a forward may write in place
        tensors = [torch.tensor(value, dtype=dtype if value.dtype.kind == "f" else None) for value in inputs]
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self._default))
        try:
            with torch.no_grad(), warnings.catch_warnings(), recorder(warps or ()) as recorded:
                warnings.simplefilter("ignore")
                outputs = call_module(self._module, tensors, self._name, f"eager, {self.dtype}")
        finally:
            torch.set_default_dtype(before)
        return [output.numpy() for output in outputs], recorded.calls
