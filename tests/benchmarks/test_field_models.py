"""Every benchmarked model with a new kind of grid is fused, by the operators that its name promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import field_models
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import fuse
from stn_infer.torch_export.plain import export_plain

CASES = {
    "coarse_bilinear": ("Resize", 36),
    "coarse_bicubic": ("Resize", 49),
    "b_spline": ("ConvTranspose", 49),
    "mesh": ("Gather", 27),
    "about_center": ("Mul", 3),
}


QUICK = "mesh"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != QUICK]


@pytest.mark.parametrize("name", [QUICK, *SLOW])
def test_the_grid_is_fused(name: str) -> None:
    operator, rows = CASES[name]
    module = getattr(field_models, name)().eval()
    plain = export_plain(module, [(3, 64, 64)])
    model, (finding,) = fuse(plain)
    assert finding.fused and finding.basis_rows == rows, finding.message
    assert any(operator in node.op_type for node in plain.graph.node)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module(images).numpy()
    backend = OrtBackend(model.SerializeToString(), threads=1)
    (found,) = backend.run({plain.graph.input[0].name: images.numpy()}).values()
    np.testing.assert_allclose(found, expected, atol=2e-5)
