"""CV-CUDA's warp with the same images and matrices, on a GPU; see :mod:`benchmarks.peers.pixels`.

One matrix per image requires a batch of variable shape, whose images have 1, 3 or 4 channels. With the flag
``WARP_INVERSE_MAP``, matrices map output pixels to image pixels; coordinate 0 is the first pixel's center, as in
OpenCV. With a constant border, each neighbor outside the image has the border's value, as with
``padding_mode="zeros"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.pixels import PixelVariant, Warp
from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.errors import MissingDependencyError, ModelError
from stn_infer.extras import install

_CHANNELS = (1, 3, 4)


def warp_affine(setup: Setup) -> OpenVariant:
    """``cvcuda.warp_affine_into`` on PyTorch's stream, from PyTorch's memory to PyTorch's memory.

    Raises:
        MissingDependencyError: the device is a CPU, or CV-CUDA cannot be imported.
        ModelError: the model is not a warp of :mod:`benchmarks.peers.warps`, or has another number of channels.
    """
    if setup.device == "cpu":
        raise MissingDependencyError("CV-CUDA needs a GPU, the device is cpu")
    try:
        import cvcuda
    except ImportError as error:
        raise MissingDependencyError(
            f"CV-CUDA cannot be imported ({error}); {install('peers-gpu')}, or cvcuda-cu12 for CUDA 12"
        ) from None
    channels = setup.prepared.input_shapes[0][0]
    if channels not in _CHANNELS:
        raise ModelError(
            f"CV-CUDA's warp with a matrix per image takes 1, 3 or 4 channels, these images have {channels}"
        )

    class CvCudaVariant(PixelVariant):
        library = f"CV-CUDA {cvcuda.__version__}"
        op = "cvcuda.warp_affine"
        origin = 0.0

        def make(self, shape: torch.Size) -> Warp:
            def stream() -> int:
                return int(torch.cuda.current_stream(self.device).cuda_stream)

            return batch_warp(cvcuda, shape, self.device, stream)

    return CvCudaVariant(setup)


def batch_warp(cvcuda: Any, shape: torch.Size, device: str, stream_of: Callable[[], int]) -> Warp:
    """Make the warp for batches of one shape.

    Images and output memory are wrapped once and reused, as a program with fixed buffers would do, because wrapping
    hundreds of images in Python takes longer than warping them.

    Args:
        cvcuda: the module.
        shape: [N, H, W, C].
        device: where PyTorch's tensors are.
        stream_of: the handle of the CUDA stream to run on.
    """
    flags = int(cvcuda.Interp.LINEAR) | int(cvcuda.Interp.WARP_INVERSE_MAP)
    border = np.zeros(shape[-1], dtype=np.float32)
    output = torch.empty(shape, device=device)
    target = cvcuda.as_images(list(output))
    sources: dict[int, Any] = {}

    def warp(image: Tensor, matrices: Tensor) -> Tensor:
        if image.data_ptr() not in sources:
            sources.clear()
            sources[image.data_ptr()] = cvcuda.as_images(list(image))
        cvcuda.warp_affine_into(
            dst=target,
            src=sources[image.data_ptr()],
            xform=cvcuda.as_tensor(matrices.view(-1, 6), "NC"),
            flags=flags,
            border_mode=cvcuda.Border.CONSTANT,
            border_value=border,
            stream=cvcuda.as_stream(stream_of()),
        )
        return output

    return warp
