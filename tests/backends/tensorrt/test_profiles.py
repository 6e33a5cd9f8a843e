"""Optimization profiles: which shapes of which inputs a user's texts are, and that TensorRT's builder takes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from stn_infer.backends.tensorrt.engine_cache import load_engine
from stn_infer.backends.tensorrt.profiles import Profile, resolve_profiles
from stn_infer.backends.tensorrt.runtime import TensorRT
from stn_infer.cli.main import main
from stn_infer.errors import UsageError
from stn_infer.fusion.fuse import fuse
from tests.backends.tensorrt.test_builder import model as spatial_transformer


def crops_model() -> onnx.ModelProto:
    """Crops [boxes_batch, 2, 3, 3] of images [batch, 2, height, 5] at boxes (number of the image, x, y, size)."""
    nodes = [
        helper.make_node("Slice", ["boxes", "zero", "one", "one"], ["column"]),
        helper.make_node("Cast", ["column"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["numbers", "one"], ["number"]),
        helper.make_node("Gather", ["image", "number"], ["images"], axis=0),
        helper.make_node("Slice", ["boxes", "one", "four", "one"], ["places"]),
        helper.make_node("MatMul", ["places", "mesh"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["grid"]),
        helper.make_node("GridSample", ["images", "grid"], ["output"], name="sample", mode="bilinear"),
    ]
    mesh = np.random.default_rng(0).standard_normal((3, 18)).astype(np.float32)
    constants = {"zero": [0], "one": [1], "four": [4], "shape": [0, 3, 3, 2]}
    graph = helper.make_graph(
        nodes,
        "crops",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, "height", 5]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["boxes_batch", 4]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["boxes_batch", 2, 3, 3])],
        [numpy_helper.from_array(mesh, "mesh")]
        + [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_each_axis_has_its_profile_and_the_real_builder_takes_them(rtx: TensorRT, tmp_path: Path) -> None:
    path, output = tmp_path / "crops.onnx", tmp_path / "crops.engine"
    onnx.save(fuse(crops_model())[0], path)
    arguments = ["build", str(path), "-o", str(output), "--runtime", "tensorrt-rtx", "--target", "sm89"]
    arguments += ["--cache", str(tmp_path / "cache")]
    for profile in ("batch=1:4:8", "boxes_batch=2:100:1000", "height=4:4:64"):
        arguments += ["--profile", profile]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "profile image=1x2x4x5:4x2x4x5:8x2x64x5" in result.output
    assert "profile boxes=2x4:100x4:1000x4" in result.output
    _, sidecar = load_engine(output)
    assert sidecar is not None
    assert sidecar.batch_axes == {"image": "batch", "boxes": "boxes_batch", "output": "boxes_batch"}


@pytest.mark.parametrize(
    "texts, wanted",
    [
        (["1x2x4x5:4x2x4x5:8x2x8x5", "boxes=1:2:3"], [(8, 2, 8, 5), (3, 4)]),
        (["height=4:4:8"], [(256, 2, 8, 5), (256, 4)]),
        (["1:2:3", "height=4:4:8", "boxes=5:6:7"], [(3, 2, 8, 5), (7, 4)]),
        (["image=1x2x4x5:4x2x4x5:8x2x8x5", "batch=1:1:2"], [(2, 2, 8, 5), (256, 4)]),
    ],
)
def test_profiles_by_axis_and_by_input(texts: list[str], wanted: list[tuple[int, ...]]) -> None:
    (found,) = resolve_profiles(crops_model(), tuple(map(Profile.parse, texts)))
    assert [profile.max for profile in found] == wanted


@pytest.mark.parametrize(
    "texts, wanted",
    [
        (["height=4:4:8", "1:1:1", "2:3:9"], [[(1, 2, 8, 5), (1, 4)], [(9, 2, 8, 5), (9, 4)]]),
        (["1:1:1", "height=4:4:8", "2:3:9", "height=9:9:9"], [[(1, 2, 8, 5), (1, 4)], [(9, 2, 9, 5), (9, 4)]]),
        (
            ["height=4:4:8", "1:2:3", "boxes=1:1:4", "boxes=5:6:7", "batch=5:6:9", "boxes=8:8:8"],
            [[(3, 2, 8, 5), (4, 4)], [(9, 2, 8, 5), (7, 4)], [(9, 2, 8, 5), (8, 4)]],
        ),
    ],
)
def test_a_name_that_is_given_again_begins_the_next_profile(
    texts: list[str], wanted: list[list[tuple[int, ...]]]
) -> None:
    found = resolve_profiles(crops_model(), tuple(map(Profile.parse, texts)))
    assert [[each.max for each in profile] for profile in found] == wanted


def test_the_real_builder_takes_several_profiles(rtx: TensorRT, tmp_path: Path) -> None:
    model, output = tmp_path / "m.onnx", tmp_path / "m.engine"
    onnx.save(spatial_transformer(), model)
    arguments = ["build", str(model), "-o", str(output), "--runtime", "tensorrt-rtx", "--target", "sm89"]
    arguments += ["--cache", str(tmp_path / "cache"), "--profile", "1:1:1", "--profile", "2:64:64"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith("profile")] == [
        "profile 0: input=1x1x4x4:1x1x4x4:1x1x4x4",
        "profile 0: theta=1x2x3:1x2x3:1x2x3",
        "profile 1: input=2x1x4x4:64x1x4x4:64x1x4x4",
        "profile 1: theta=2x2x3:64x2x3:64x2x3",
    ]
    again = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (again["built"], again["reason"]) == (False, "it is up to date")
    profiles = again["sidecar"]["key"]["profiles"]
    assert [[each["opt"][0] for each in profile] for profile in profiles] == [[1, 1], [64, 64]]
    one = load_engine(output)[1]
    other = CliRunner().invoke(main, [*arguments, "--profile", "65:65:65"])
    assert "since it was last built: the optimization profiles changed from input=1x1x4x4" in other.stdout
    two = load_engine(output)[1]
    assert one is not None and two is not None and two.engine_size > one.engine_size and len(two.key.profiles) == 3


@pytest.mark.parametrize(
    "texts, message",
    [
        (["batch=1:2:3"], r"input 'image' is \?x2x\?x5: --profile needs complete shapes.* e.g. height=64:224:512"),
        (["rows=1:2:3"], "no dynamic axis or input 'rows'; its dynamic axes are batch, boxes_batch, height"),
        (["height=4:4:8", "1:2:3", "1:2:3"], "two optimization profiles are equal: image=1x2x4x5:2x2x4x5:3x2x8x5, b"),
        (["1:2:3", "1:2:4", "height=4:4:8"], r"input 'image' is \?x2x\?x5: --profile needs"),
        (["1:2:3", "height=4:4:8", "1:2:4", "rows=1:1:1"], "no dynamic axis or input 'rows'"),
        (["height=1x2:1x2:1x2"], "height is an axis, which has one size"),
        (["boxes=1x5:1x5:1x5", "height=4:4:8"], r"input 'boxes' is \?x4, but --profile has boxes=1x5"),
        (["1x2x4x5:4x2x4x5:8x2x8x5"], r"input 'boxes' is \?x4, but --profile has 1x2x4x5"),
    ],
)
def test_profiles_that_do_not_fit(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_profiles(crops_model(), tuple(map(Profile.parse, texts)))


@pytest.mark.parametrize("text", ["=1:2:3", "x=", "1:2", "a:b:c", "0:1:2", "4:2:8", "1:8:4", "1x1:2:3", "", "1:2:3:4"])
def test_a_malformed_profile_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Profile.parse(text)
