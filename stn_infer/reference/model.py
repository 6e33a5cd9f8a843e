"""The reference for a PyTorch model: eager float64 PyTorch, with each sampler call recorded."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from stn_infer.arrays import Array
from stn_infer.reference.calls import SamplerCall, recorder

if TYPE_CHECKING:
    from torch import nn

    from stn_infer.sources.load import LoadedModel


class ReferenceModel(Protocol):
    """A model whose results are correct by definition."""

    dtype: str

    @property
    def title(self) -> str:
        """Its description in a report."""
        ...

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[SamplerCall]]:
        """Run it and return outputs and sampler calls; ``warps`` replaces the samplers' results, except where None."""
        ...


class Reference:
    """A model in eager PyTorch that records each sampler call; in float64 if the model can run in it, else in float32.

    ``torch.autocast`` has no effect in it, as in the exported file.

    Args:
        module: in evaluation mode; it is copied, not changed.
        shapes: the inputs' shapes without batch, for a trial run in float64.
        name: its name in messages.
        probe: the inputs of the trial run; None: a batch of one, of zeros in float32.
    """

    @classmethod
    def of(cls, loaded: LoadedModel) -> Self:
        """The reference for a source."""
        from stn_infer.sources.inputs import zeros

        return cls(loaded.module, loaded.input_shapes, loaded.name, probe=zeros(loaded))

    def __init__(
        self,
        module: nn.Module,
        shapes: Sequence[tuple[int, ...]],
        name: str = "the model",
        *,
        probe: Sequence[Array] | None = None,
    ) -> None:
        self._name = name
        self.dtype, self._default, self._module = "float32", "float32", module
        probe = [np.zeros((1, *shape), np.float32) for shape in shapes] if probe is None else probe
        for default in ("float64", "float32"):
            try:
                # forward often creates meshes in the default type
                with warnings.catch_warnings():  # an exported program's own classes warn when they are copied
                    warnings.simplefilter("ignore")
                    candidate = copy.deepcopy(module).double()
                self._module, self.dtype, self._default = candidate, "float64", default
                self.run(probe)
                return
            except Exception:  # the user's forward may raise any exception
                continue
        self._module, self.dtype, self._default = module, "float32", "float32"

    @property
    def title(self) -> str:
        """See :class:`ReferenceModel`."""
        return f"{self.dtype} eager PyTorch"

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[SamplerCall]]:
        """Run the model and return its outputs and sampler calls.

        Args:
            inputs: one array per input, [N, ...].
            warps: the warped images [N, C, *out] that replace the samplers' results, in the order in which the samplers
                run; None keeps a sampler's own.

        Raises:
            ModelError: the module's own code fails.
        """
        import torch

        from stn_infer.backends.eager import call_module
        from stn_infer.torch_export.autocast import autocast_off

        dtype = getattr(torch, self.dtype)
        # copied, since a forward may write in place
        tensors = [torch.tensor(value, dtype=dtype if value.dtype.kind == "f" else None) for value in inputs]
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self._default))
        try:
            with torch.no_grad(), warnings.catch_warnings(), autocast_off(), recorder(warps or ()) as recorded:
                warnings.simplefilter("ignore")
                outputs = call_module(self._module, tensors, self._name, f"eager, {self.dtype}")
        finally:
            torch.set_default_dtype(before)
        return [output.numpy() for output in outputs], recorded.calls
