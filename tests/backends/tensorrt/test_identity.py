"""Which models have the same graph, and which weights of them differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stn_infer.backends.tensorrt.identity import hashes, structure, weight_hashes
from tests.backends.tensorrt.test_builder import model


def weights(change: onnx.ModelProto) -> None:
    change.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((3, 16), np.float32), "basis"))


def metadata(change: onnx.ModelProto) -> None:
    change.metadata_props.add(key="stn_infer.labels", value="[]")
    change.producer_version = "2"
    change.graph.node[0].doc_string = "line 7"


def shape(change: onnx.ModelProto) -> None:
    change.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 15), np.float32), "basis"))


def attribute(change: onnx.ModelProto) -> None:
    change.graph.node[0].attribute[0].i += 1


def function(change: onnx.ModelProto) -> None:
    change.functions[0].node[0].op_type = "Gemm"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (weights, {"graph", "structure"}),
        (metadata, {"weights", "structure", "each"}),
        (shape, set()),
        (attribute, {"weights", "each"}),
        (function, {"weights", "each"}),
    ],
)
def test_what_a_change_leaves_the_same(change: Callable[[onnx.ModelProto], None], same: set[str]) -> None:
    before, after = model(), model()
    change(after)
    found = [
        dict(zip(("graph", "weights"), hashes(it), strict=True))
        | {"structure": structure(it), "each": str(weight_hashes(it))}
        for it in (before, after)
    ]
    assert {name for name in found[0] if found[0][name] == found[1][name]} == same
    assert after.graph.initializer[0].raw_data, "the model itself is not changed"


def test_each_weight_has_a_hash() -> None:
    two = model()
    two.graph.initializer.append(numpy_helper.from_array(np.arange(3, dtype=np.float32), "a"))
    found = weight_hashes(two)
    assert list(found) == ["a", "basis"] and found["basis"] == weight_hashes(model())["basis"]
    two.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.arange(3, dtype=np.int32), "a"))
    assert weight_hashes(two)["a"] != found["a"], "the type counts"
