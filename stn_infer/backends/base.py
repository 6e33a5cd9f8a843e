"""The interface of a backend: named inputs and outputs, and one call that maps arrays to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output.

    Attributes:
        name: its name in the graph.
        shape: axis lengths; None for a dynamic axis, such as axis 0, the batch. A scalar has none.
        dtype: the numpy dtype; bfloat16 has none and is represented as uint16.
        batch: the name of axis 0; tensors whose names differ may have different lengths there.
        raw: whether the values are pixels 0 to 255, which the graph normalizes.
        batch_axis: of an input whose axis 0 has a fixed length, the axis with the length of the others' batch; else 0.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    batch: str = field(default="batch", compare=False)
    raw: bool = field(default=False, compare=False)
    batch_axis: int = field(default=0, compare=False)


@runtime_checkable
class Backend(Protocol):
    """One model in one runtime on one device. ``run`` may be called from several threads at once."""

    name: str  # "ort", "eager", "compile"
    device: str  # "cpu", "cuda:0"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: ModelMetadata

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, batch on axis 0, for inputs by name.

        The memory of the inputs is the caller's, who may use it for other inputs after the call.

        Raises:
            InputError: a name is missing or unknown, or a shape or dtype does not match the backend's ``inputs``.
            ModelError: the runtime failed, or the backend is closed.
        """
        ...

    def describe(self) -> dict[str, str]:
        """The runtime for reports: name and version, execution providers in use, threads."""
        ...

    def close(self) -> None:
        """Release the device memory; the backend cannot be used afterwards."""
        ...


@runtime_checkable
class BatchingBackend(Backend, Protocol):
    """A backend that tells how many inputs are best run on it."""

    in_flight: int  # the number of calls to make at once: copies to and from its device overlap with the computation
    full_batches: bool  # whether each batch size costs a plan, graph or program of its own: smaller ones are padded


@runtime_checkable
class PixelBackend(Backend, Protocol):
    """A backend that normalizes images on its device: a quarter of the bytes go there."""

    takes_pixels: bool  # whether that is faster than normalizing them before, as on a GPU

    def run_pixels(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        """:meth:`Backend.run` for a model with one input.

        Args:
            pixels: uint8 [N, C, H, W] in any memory layout, for an input [N, C, H, W]; the caller's, as in ``run``.
            preprocess: its ``scale``, ``gamma``, ``mean`` and ``std`` remain to be applied, in float32.

        Raises:
            InputError, ModelError: as for :meth:`Backend.run`.
        """
        ...
