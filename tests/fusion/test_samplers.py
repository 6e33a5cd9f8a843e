"""The samplers of a file: reading their settings, and theta as an output."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ModelError
from stn_infer.fusion.samplers import find_samplers, spatial_nodes, with_theta
from stn_infer.samplers import SamplerSpec
from tests.support.wrong_files import one_transformer


def test_spatial_nodes_reads_back_what_was_written() -> None:
    (node,) = spatial_nodes(one_transformer("projective", (5, 7), (4, 6), mode="nearest"))
    assert node.basis is not None and node.basis.kind == "projective" and node.spec == SamplerSpec("nearest")
    assert node.basis.output_size == (4, 6)
    theta = np.array([[[1, 0, 0.5], [0, 1, 0], [0, 0, 2]]], np.float32)
    grid = node.basis.grid(theta)
    assert grid.shape == (1, 4, 6, 2)
    np.testing.assert_allclose(grid[0, :, :, 0], np.tile(((np.arange(6) * 2 + 1) / 6 - 1 + 0.5) / 2, (4, 1)))


def test_spatial_nodes_of_a_damaged_node() -> None:
    model = one_transformer("affine", (5, 7), (4, 6))
    del model.graph.initializer[:]
    with pytest.raises(ModelError, match="lacks 'basis'"):
        spatial_nodes(model)


def test_with_theta_adds_outputs_and_keeps_names_apart() -> None:
    model = one_transformer("affine", (5, 7), (4, 6))
    model.graph.output[0].name = "theta_"
    model.graph.node[0].output[0] = "theta_"
    copy = with_theta(model)
    assert [value.name for value in copy.graph.output] == ["theta_", "theta__"]
    assert [value.name for value in model.graph.output] == ["theta_"]
    theta = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    images = np.zeros((2, 2, 5, 7), np.float32)
    result = OrtBackend(copy.SerializeToString()).run({"image": images, "theta": theta})
    np.testing.assert_array_equal(result["theta__"], theta)


@pytest.mark.parametrize("opset", [18, 22])
def test_a_samplers_settings_are_the_same_in_every_spelling(opset: int) -> None:
    model = one_transformer(mode="bicubic", padding_mode="border", align_corners=True, opset=opset)
    (found,), (node,) = find_samplers(model), spatial_nodes(model)
    assert found.spec == node.spec == SamplerSpec("bicubic", "border", True)
    assert found.spelling == node.spelling == ("cubic" if opset >= 20 else "bicubic")
    assert (found.input, found.grid, found.theta, found.output) == ("image", "", "theta", "warped")
    assert found.fused and not found.custom and found.basis is None
