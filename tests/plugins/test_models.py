"""Every shipped model with and without the fused op, in onnxruntime and in PyTorch: equal outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from stn_infer import plugin
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.op import DOMAIN
from stn_infer.layers import SpatialTransformer
from stn_infer.models import SHIPPED
from stn_infer.sources.load import load_source
from tests.support.shared import exported

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)


# In addition to the trained models, one with the projective op.
@pytest.mark.parametrize("name", [*SHIPPED, "st-cnn-projective"])
def test_the_same_file_and_model_with_and_without_the_op(name: str) -> None:
    loaded = load_source(name)
    content = exported(name)
    assert any(node.domain == DOMAIN for node in onnx.load_from_string(content).graph.node)
    rng = np.random.default_rng(0)
    (shape,) = loaded.input_shapes
    images = rng.random((5, *shape), np.float32)
    answers = {}
    for fused in (False, True):
        backend = OrtBackend(content, threads=1, plugin=fused)
        answers[f"onnxruntime, op {fused}"] = backend.run({backend.inputs[0].name: images})[backend.outputs[0].name]
        backend.close()
    module = loaded.module.eval()
    layers = [layer for layer in module.modules() if isinstance(layer, SpatialTransformer)]
    assert layers or name.startswith("tutorial")  # plain PyTorch, which has the op only in onnxruntime
    for fused in (False, True):
        for layer in layers:
            layer.fused = fused
        with torch.inference_mode():
            answers[f"PyTorch, op {fused}"] = module(torch.from_numpy(images)).numpy()
    expected = answers.pop("PyTorch, op False")
    scale = max(1.0, float(np.abs(expected).max()))  # scores are not probabilities, but up to 40
    for variant, answer in answers.items():
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5 * scale, err_msg=variant)
