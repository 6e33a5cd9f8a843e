"""Files whose graph preprocesses pictures, for code that reads pictures: their input looks like one of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, BatchingBackend, TensorSpec
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess


class PixelInput:
    """A backend for a file with embedded preprocessing, whose input uint8 [N, H, W, C] appears as images [N, C, H, W].

    Args:
        opened: the file in a backend, with ``metadata.embedded``.
    """

    def __init__(self, opened: Backend) -> None:
        rule, embedded = opened.metadata.preprocess, opened.metadata.embedded
        assert rule is not None and embedded is not None
        self._opened = opened
        self.name, self.device, self.outputs = opened.name, opened.device, opened.outputs
        self.inputs: tuple[TensorSpec, ...] = (as_images(*opened.inputs),)
        telling = opened if isinstance(opened, BatchingBackend) else None
        self.in_flight = 1 if telling is None else telling.in_flight
        self.full_batches = telling is not None and telling.full_batches
        #: What remains to be done with pictures.
        self.metadata: ModelMetadata = replace(opened.metadata, preprocess=rule.outside(embedded))

    takes_pixels = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs for values 0 to 255, which are rounded; raises as the backend does."""
        return self._opened.run({name: interleaved(array) for name, array in inputs.items()})

    def run_pixels(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        """Outputs for pixels; ``preprocess`` leaves them as they are. Raises as the backend does."""
        return self._opened.run({self.inputs[0].name: interleaved(pixels)})

    def describe(self) -> dict[str, str]:
        """The runtime's description."""
        return self._opened.describe()

    def close(self) -> None:
        """Release the backend."""
        self._opened.close()


def taking_pictures(opened: Backend) -> Backend:
    """``opened``, or what shows its input as images if its graph preprocesses them."""
    return opened if opened.metadata.embedded is None else PixelInput(opened)


def as_images(spec: TensorSpec) -> TensorSpec:
    """The input uint8 [N, H, W, C] of such a file as one of images [N, C, H, W]."""
    batch, height, width, channels = spec.shape
    return TensorSpec(spec.name, (batch, channels, height, width), np.dtype(np.float32), spec.batch, raw=True)


def interleaved(values: Array) -> NDArray[np.uint8]:
    """Pixels or values 0 to 255, which are rounded, [N, C, H, W] as the file takes them."""
    pixels = values if values.dtype == np.uint8 else np.rint(values).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
