"""The shipped affine networks with ``affine_grid``, the usual way to write the layer: the same weights and results.

stn-infer's own layer computes its grid with one matrix product, so its plain export is as fast as the portable file.
These models are for ``suites/portable_vs_plain.toml``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.layers import SpatialTransformer
from stn_infer.sources.load import load_source


class AffineGrid(SpatialTransformer):
    """Replaces the class of a :class:`SpatialTransformer` of kind affine."""

    def grid(self, theta: Tensor) -> Tensor:
        """The sampling grid [N, H, W, 2] of ``theta`` [N, 2, 3]."""
        return F.affine_grid(theta, [theta.shape[0], 1, *self.output_size], align_corners=self.grid_align_corners)


def st_cnn_affine_rts() -> nn.Module:
    """For [1, 42, 42]."""
    return _rewritten("st-cnn-affine-rts")


def st_fcn_affine_r() -> nn.Module:
    """For [1, 28, 28]."""
    return _rewritten("st-fcn-affine-r")


def _rewritten(name: str) -> nn.Module:
    module = load_source(name).module
    for layer in module.modules():
        if isinstance(layer, SpatialTransformer):
            layer.__class__ = AffineGrid
    return module
