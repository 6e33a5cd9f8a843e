"""Preprocessing in the graph against Pillow's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stn_infer.data.images import from_array
from stn_infer.errors import UsageError
from stn_infer.preprocess.geometry import Placement
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.resampling import resampling_matrix
from stn_infer.preprocess.rule import INTERPOLATIONS, Preprocess
from stn_infer.proto.embed import embed
from stn_infer.proto.session import Stored, open_session

#: Pictures' size, the rule's geometry, the model's size.
GEOMETRY = {
    "down": ((37, 53), "size=20x30", (20, 30)),
    "up": ((20, 30), "size=47x61", (47, 61)),
    "far down": ((301, 200), "size=14x21", (14, 21)),
    "one axis": ((33, 33), "size=33x40", (33, 40)),
    "cover and crop": ((61, 90), "size=40,resize=shortest,crop=33", (33, 33)),
    "fit and pad": ((61, 90), "size=40,resize=longest,pad=#102030", (40, 40)),
    "crop and pad": ((20, 91), "size=40,resize=shortest,crop=50x60,pad=#c02030", (50, 60)),
    "none": ((12, 9), "crop=8x9", (8, 9)),
}


def identity(channels: int, height: Any, width: Any, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    shape = ["n", channels, height, width]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(model, full_check=True)
    found: np.ndarray[Any, Any] = open_session(Stored(model)).run({"image": pixels})[0]
    return found


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", GEOMETRY)
def test_within_one_level_of_pillow(name: str, interpolation: str) -> None:
    size, text, model_size = GEOMETRY[name]
    rng = np.random.default_rng(0)
    for color in ("rgb", "bgr", "gray"):
        rule = Preprocess.parse(f"{color},{text},interpolation={interpolation},scale=1")
        noise = rng.integers(0, 256, (*size, rule.channels), np.uint8)
        pixels = np.stack([noise, (noise > 127) * np.uint8(255), np.full_like(noise, 201)])
        found = run(embed(identity(rule.channels, *model_size), rule, size), pixels)
        wanted = np.stack([from_array(each, rule, model_size, name) for each in pixels])
        assert found.shape == wanted.shape
        difference = np.abs(found - wanted)
        assert difference.max() <= 1 and (found == found.round()).all()
        assert difference[2].max() == 0, "a plain picture stays as it is"
        if interpolation == "nearest" or name == "none":
            assert difference.max() == 0


@pytest.mark.parametrize(
    "text", ["imagenet", "bgr,mean=0.1:0.2:0.3,std=0.5:0.6:0.7", "gray,gamma=2.2,scale=1/127", "rgb,scale=1"]
)
def test_values_equal_the_rules_to_the_bit(text: str) -> None:
    rule = Preprocess.parse(text)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, rule.channels), np.uint8)
    found = run(embed(identity(rule.channels, "h", "w"), rule, None), pixels)
    wanted = normalize(np.stack([from_array(each, rule, (None, None), "x") for each in pixels]), rule)
    if rule.gamma == 1:
        assert np.array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_sums_are_exact_in_float32() -> None:
    for interpolation in INTERPOLATIONS:
        weights = resampling_matrix(Placement(1000, 37, 37, 0), interpolation)
        steps = weights.astype(np.float64) * 2**15
        assert (steps == steps.round()).all() and (weights.astype(np.float64).sum(axis=1) == 1).all()
        assert np.abs(steps).sum(axis=1).max() * 255 < 2**24


def test_the_copy_has_new_names_and_the_old_type() -> None:
    model = identity(3, 4, 4, TensorProto.FLOAT16)
    model.graph.node[0].name = "image"
    model.graph.node.append(helper.make_node("Identity", ["x"], ["image"]))
    before = model.SerializeToString()
    made = embed(model, Preprocess("rgb", (4, 4)), (8, 8))
    assert model.SerializeToString() == before
    (given,) = made.graph.input
    assert given.name == "image_" and given.type.tensor_type.elem_type == TensorProto.UINT8
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize(
    ("model", "rule", "message"),
    [
        (identity(3, 4, 4), Preprocess("gray"), "takes 3 channels, the preprocessing gives 1"),
        (identity(3, 4, 5), Preprocess("rgb", (4, 4)), "become 4x4 by rgb,size=4x4, but the model takes 4x5"),
        (identity(3, 4, 4, TensorProto.UINT8), Preprocess("rgb"), "float32 or float16"),
    ],
)
def test_refusals(model: onnx.ModelProto, rule: Preprocess, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        embed(model, rule, (8, 8))
