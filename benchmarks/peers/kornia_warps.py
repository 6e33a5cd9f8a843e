"""kornia's warp with the same images and matrices; a variant for :mod:`benchmarks.peers.warps`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from benchmarks.peers.warps import Call, require_warp, theta_of
from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.benchmarking.variants.pytorch import TorchVariant
from stn_infer.errors import MissingDependencyError
from stn_infer.extras import install


def homography_warp(setup: Setup) -> OpenVariant:
    """``kornia.geometry.transform.homography_warp`` on theta with a third row; in eager PyTorch.

    Raises:
        MissingDependencyError: kornia is not installed.
        ModelError: the model is not a warp of this folder.
    """
    try:
        from kornia.geometry.transform import homography_warp as warp
    except ImportError:
        raise MissingDependencyError(f"kornia is not installed; {install('peers')}") from None
    require_warp(setup.prepared, "kornia")
    variant = TorchVariant("eager", setup)

    def forward(image: Any, change: Any) -> Any:
        import torch

        theta = theta_of(change)
        last = torch.tensor([0.0, 0.0, 1.0], dtype=theta.dtype, device=theta.device).expand(len(theta), 1, 3)
        return warp(image, torch.cat([theta, last], dim=1), tuple(image.shape[2:]), align_corners=True)

    variant.module = variant.plain = Call(forward)
    describe = variant.describe
    variant.describe = lambda: {**describe(), "runtime": f"kornia {version('kornia')}"}  # type: ignore[method-assign]
    return variant
