"""NVIDIA DALI's warp with the same images and matrices, on a CPU or a GPU; see :mod:`benchmarks.peers.pixels`.

Its matrices map output pixels to image pixels, and coordinate 0 is the first pixel's edge. With a fill value, each
neighbor outside the image has that value, as with ``padding_mode="zeros"``.

On a CPU, it computes a pixel's coordinates from the previous pixel's by adding a float32 step, so errors accumulate
along a row. The error of the outputs was 2e-5 of their scale at width 28, and 8e-4 at width 224, which exceeds the
tolerance. On a GPU, each pixel's coordinates are computed independently.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.pixels import PixelVariant, Warp, as_fed, device_index
from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.errors import MissingDependencyError
from stn_infer.extras import install


def warp_affine(setup: Setup) -> OpenVariant:
    """``nvidia.dali.fn.warp_affine`` in a pipeline that shares PyTorch's memory, one batch per run, no prefetching.

    Raises:
        MissingDependencyError: DALI is not installed.
        ModelError: the model is not a warp of :mod:`benchmarks.peers.warps`.
    """
    try:
        import nvidia.dali as dali
    except ImportError as error:
        raise MissingDependencyError(
            f"DALI cannot be imported ({error}); {install('peers-gpu')}, or nvidia-dali-cuda120 for CUDA 12"
        ) from None

    class DaliVariant(PixelVariant):
        library = f"DALI {dali.__version__}"
        op = "nvidia.dali.fn.warp_affine"
        origin = 0.5

        def make(self, shape: torch.Size) -> Warp:
            pipeline = pipeline_of(shape[0], self.threads, self.device)
            on_gpu = self.device != "cpu"

            def warp(image: Tensor, matrices: Tensor) -> Tensor:
                # On a GPU, inputs are read and outputs are ready in the order of PyTorch's stream.
                stream = torch.cuda.current_stream(self.device) if on_gpu else None
                (output,) = pipeline.run(stream, image=as_fed(image), matrix=as_fed(matrices))
                return torch.utils.dlpack.from_dlpack(output.as_tensor())

            return warp

    return DaliVariant(setup)


def pipeline_of(batch: int, threads: int, device: str):  # type: ignore[no-untyped-def]
    """The pipeline: ``image`` [H, W, C] and ``matrix`` [2, 3] of each sample in, the warped image out."""
    from nvidia.dali import Pipeline, fn, types

    kind = "cpu" if device == "cpu" else "gpu"
    pipeline = Pipeline(
        batch_size=batch,
        num_threads=threads,
        device_id=device_index(device),
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    with pipeline:
        image = fn.external_source(name="image", device=kind, layout="HWC", no_copy=True)
        matrix = fn.external_source(name="matrix", device=kind, no_copy=True)
        pipeline.set_outputs(fn.warp_affine(image, matrix, fill_value=0.0, interp_type=types.INTERP_LINEAR))
    return pipeline
