"""Quotients at another opset: nodes keep their division, and their function is written again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.op import is_version_2
from stn_infer.proto.traversal import attributes_of
from stn_infer.repairs.inlined import inlined
from stn_infer.repairs.opset import lower_opset, raise_opset
from tests.support.wrong_files import one_transformer

SIZES = [((12, 16), (10, 12)), ((5, 6, 8), (4, 8, 8))]


@pytest.mark.parametrize(("size", "output_size"), SIZES)
def test_lowered_and_raised_files_compute_the_same(size: tuple[int, ...], output_size: tuple[int, ...]) -> None:
    rank = len(size)
    division = 0.5, (0.25, -0.5, 0.125)[:rank]
    model = one_transformer("projective", size, output_size, opset=22, division=division)
    generator = np.random.default_rng(0)
    theta = generator.standard_normal((3, rank + 1, rank + 5)).astype(np.float32)
    feeds = {"image": generator.standard_normal((3, 2, *size)).astype(np.float32), "theta": theta}
    expected = OrtBackend(model.SerializeToString(), plugin=False).run(feeds)["warped"]
    versions = [lower_opset(model, 20)]
    if rank == 2:  # GridSample has volumes from 20 on
        versions += [lower_opset(model, 16), raise_opset(inlined(lower_opset(model, 16)), 21)]
    for changed in versions:
        onnx.checker.check_model(changed)
        for node in filter(is_version_2, changed.graph.node):
            assert attributes_of(node)["w_min"] == 0.5 and tuple(attributes_of(node)["offset"]) == division[1]
            assert [list(function.attribute).count("w_min") for function in changed.functions] == [1]
        found = OrtBackend(changed.SerializeToString(), plugin=False).run(feeds)["warped"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
