"""stn-infer's warp in a PyTorch program, for :mod:`benchmarks.peers.warps`, whose models have no layer to fuse."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.warps import Call, folded, require_warp, theta_of
from stn_infer import plugin
from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.benchmarking.variants.pytorch import TorchVariant
from stn_infer.errors import MissingDependencyError
from stn_infer.transforms.base import canonical_basis, center_to_grid


def fused_warp(setup: Setup) -> OpenVariant:
    """``stn_infer.fused.spatial_transformer``, called as an operator.

    Raises:
        MissingDependencyError: the plugin library has no kernels for the device.
        ModelError: the model is not a warp of this folder.
    """
    return _open("eager", setup)


def fused_warp_graph(setup: Setup) -> OpenVariant:
    """The same in a CUDA graph; raises as :func:`fused_warp`, and on a CPU."""
    if setup.device == "cpu":
        raise MissingDependencyError("CUDA graphs need a GPU, the device is cpu")
    return _open("graph", setup)


def _open(name: str, setup: Setup) -> OpenVariant:
    from stn_infer.fused import spatial_transformer
    from stn_infer.samplers import SamplerSpec

    prepared, device = setup.prepared, setup.device
    require_warp(prepared, "the fused warp")
    target = torch.device(device)
    plugin.require(target.type, target.index or 0)
    size = prepared.input_shapes[0][1:]
    # The kernel's basis has -1 and 1 at the image's edges, the models' meshes at the outermost pixel centers: theta
    # is converted.
    factors = center_to_grid(size, grid_align_corners=True)
    scale, shift = (it.to(device) for it in folded(lambda change: theta_of(change) * factors))
    basis = canonical_basis(size).float().to(device)
    variant = TorchVariant(name, setup)

    def forward(image: Tensor, change: Tensor) -> Tensor:
        theta = torch.addmm(shift, change, scale).view(-1, 2, 3)
        return spatial_transformer(image, theta, basis, "affine", image.shape[2:], SamplerSpec(align_corners=True))

    variant.module = variant.plain = Call(forward)
    describe = variant.describe
    variant.describe = lambda: {**describe(), "plugin": "libstn_plugins.so"}  # type: ignore[method-assign]
    return variant
