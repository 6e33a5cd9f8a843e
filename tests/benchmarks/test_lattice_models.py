"""The models of suites/lattices.toml get the op that their plain form can afford."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import lattice_models
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import fuse
from stn_infer.torch_export.plain import export_plain

SMALL = {
    "bilinear": (lambda: lattice_models.Coarse((9, 7), (48, 40), "bilinear"), "TensorProductTransformer", (48, 40)),
    "bicubic": (lambda: lattice_models.Coarse((9, 7), (48, 40), "bicubic"), "TensorProductTransformer", (48, 40)),
    "bspline": (lambda: lattice_models.Spline((9, 8), 8), "TensorProductTransformer", (48, 40)),
    # its selection copies both coordinates at once, which the plain body of a LatticeTransformer does not
    "mesh": (lambda: lattice_models.Mesh((6, 7), (48, 40)), "SpatialTransformer", (48, 40)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_models_fuse(name: str) -> None:
    torch.manual_seed(0)
    make, op, size = SMALL[name]
    module = make().eval()
    plain = export_plain(module, [(3, *size)])
    model, (finding,) = fuse(plain)
    assert finding.op == op, finding.message
    image = np.random.default_rng(0).random((2, 3, *size)).astype(np.float32)
    found = OrtBackend(model.SerializeToString()).run({plain.graph.input[0].name: image})
    with torch.inference_mode():
        expected = module.double()(torch.from_numpy(image).double())
    np.testing.assert_allclose(next(iter(found.values())), expected.numpy(), atol=2e-5)
