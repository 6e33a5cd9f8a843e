"""Image libraries as variants: their matrices are in pixels, and their images have the channels last.

Inside the timer are the product that computes each sample's matrix from its six numbers, and the library's warp. The
conversion of the layout is outside: these libraries' decoders return images as [N, H, W, C], so inputs are converted
beforehand, and outputs to [N, C, H, W] afterwards, for the comparison with the reference. Copies to and from a GPU are
the same as PyTorch's: pinned, and inside the timer at the host boundary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.warps import Call, folded, require_warp, theta_of
from stn_infer.arrays import Array
from stn_infer.backends.device import Device
from stn_infer.benchmarking.harness.variant import BoundVariant, Inspection
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.benchmarking.variants.pytorch import TorchVariant

#: Warps images [N, H, W, C] by matrices [N, 2, 3] from output pixels to image pixels, both on PyTorch's device.
Warp = Callable[[Tensor, Tensor], Tensor]


class PixelVariant(TorchVariant):
    """A library's affine warp of the images of :mod:`benchmarks.peers.warps`.

    Attributes:
        library: its name and version.
        op: the name of its function.
        origin: the coordinate of the first pixel's center: 0, or 0.5 if 0 is that pixel's edge.
    """

    library: str
    op: str
    origin: float

    def __init__(self, setup: Setup) -> None:
        require_warp(setup.prepared, self.library)
        super().__init__("eager", setup)
        self.threads = setup.threads
        self.module = self.plain = Call(self._forward)
        self._label = f"{setup.prepared.name} fails in {self.library}"
        self._ready: dict[torch.Size, tuple[Tensor, Tensor, Warp]] = {}

    @abstractmethod
    def make(self, shape: torch.Size) -> Warp:
        """Make a warp of images of ``shape`` [N, H, W, C], float32, on ``self.device``; called in the first call."""

    def _forward(self, image: Tensor, change: Tensor) -> Tensor:
        if image.shape not in self._ready:
            height, width = image.shape[1:3]
            scale, shift = (it.to(image.device) for it in pixel_map(height, width, self.origin))
            self._ready[image.shape] = (scale, shift, self.make(image.shape))
        scale, shift, warp = self._ready[image.shape]
        return warp(image, torch.addmm(shift, change, scale).view(-1, 2, 3))

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        bound = super().bind([np.ascontiguousarray(np.moveaxis(inputs[0], 1, 3)), inputs[1]])
        outputs = bound.outputs
        bound.outputs = lambda: [np.moveaxis(output, 3, 1) for output in outputs()]  # type: ignore[method-assign]
        seen = Inspection(
            (SamplerPlacement("warp", self.op, self.device),), left_out={"stages": "a warp alone is one stage"}
        )
        bound.inspect = lambda: seen  # type: ignore[method-assign]
        bound.concurrent = False
        return bound

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return {**super().describe(), "runtime": self.library, "images": "channels last, laid out beforehand"}

    def close(self) -> None:
        """Release the library's buffers too."""
        self._ready.clear()
        super().close()


def pixel_map(height: int, width: int, origin: float) -> tuple[Tensor, Tensor]:
    """The map from a sample's six numbers to its matrix in pixels: scale [6, 6] and shift [6] of :func:`folded`.

    theta maps between coordinates that are -1 and 1 at the centers of the corner pixels. With ``pixels`` from these
    coordinates to pixels, the same for both images, the matrix in pixels is ``pixels · theta · pixels⁻¹``.
    """
    half = torch.tensor([width - 1, height - 1]).double() / 2
    pixels = torch.diag(torch.cat([half, torch.ones(1)]))
    pixels[:2, 2] = half + origin

    def matrix(change: Tensor) -> Tensor:
        return pixels[:2, :2] @ theta_of(change) @ pixels.inverse() + pixels[:2, 2:] @ pixels.inverse()[2:]

    return folded(matrix)


def device_index(device: str) -> int | None:
    """N of ``cuda:N``; None for the CPU."""
    return None if device == "cpu" else Device.parse(device).index


def as_fed(tensor: Tensor) -> Any:
    """A tensor as the libraries accept it: as a numpy array in main memory, unchanged on a GPU."""
    return tensor if tensor.is_cuda else tensor.numpy()
