"""A clamp of the reference's grid and the padding mode border in the file are the same, and nothing else is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.fusion.fuse import fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain
from stn_infer.verification.model import verify_model

SHAPE = (1, 7, 9)


class Clamped(nn.Module):
    """An affine grid, clamped to ``limit``; part of it lies outside of the image."""

    def __init__(self, limit: float | None = 1.0) -> None:
        super().__init__()
        self.loc, self.limit = nn.Linear(63, 6), limit
        nn.init.normal_(self.loc.weight, std=0.02)
        self.loc.bias.data = torch.tensor([1.6, 0.2, 0, 0, 1.4, 0.1])

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.loc(x.flatten(1)).view(-1, 2, 3), list(x.size()), align_corners=True)
        if self.limit is not None:
            grid = grid.clamp(-self.limit, self.limit)
        return F.grid_sample(x, grid, align_corners=True)


def test_border_in_place_of_a_clamp_passes() -> None:
    torch.manual_seed(0)
    module = Clamped().eval()
    model, (finding,) = fuse(export_plain(module, [SHAPE]))
    assert finding.fused and "padding_mode border" in finding.message
    (node,) = [node for node in model.graph.node if node.op_type == "SpatialTransformer"]
    padding = next(attribute for attribute in node.attribute if attribute.name == "padding_mode")
    assert padding.s == b"border"
    loaded = LoadedModel("clamped", module, (SHAPE,), ModelMetadata(), "factory")
    assert verify_model(loaded, model).passed
    padding.s = b"zeros"
    assert not verify_model(loaded, model).passed
    free = Clamped(None).eval()
    free.load_state_dict(module.state_dict())
    padding.s = b"border"
    assert not verify_model(LoadedModel("free", free, (SHAPE,), ModelMetadata(), "factory"), model).passed
