"""Samplers of other runtimes become GridSample with what their kernels compute; unknown ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

from stn_infer.api.optimize import optimize
from stn_infer.fusion.samplers import find_samplers
from stn_infer.proto.session import Stored, open_session
from stn_infer.repairs.passes import BEFORE_FUSION, repair
from stn_infer.repairs.result import PassResult
from stn_infer.repairs.samplers import standard_samplers
from stn_infer.samplers import MODES, PADDING_MODES, SamplerSpec
from tests.support.onnx_files import F16, F32, affine_model, constant, make

KEYS = ("interpolation_mode", "padding_mode", "align_corners")
OTHER_KEYS = ("interpolationmode", "paddingmode", "aligncorners")


def sampler_file(
    op_type: str,
    domain: str = "",
    attributes: dict[str, Any] | None = None,
    *,
    rank: int = 2,
    axes_first: bool = False,
    numbers: tuple[int, int, bool] | None = None,
    grid: int = F32,
    opset: int = 16,
    known: bool = True,
) -> onnx.ModelProto:
    """x [n, 2, *in] and a grid; the settings as attributes, or as inputs 2 to 4."""
    size, output = ((5, 6), (3, 4)) if rank == 2 else ((4, 5, 6), (2, 3, 4))
    shape = ["n", rank, *output] if axes_first else ["n", *output, rank]
    settings = zip(("mode", "padding", "aligned"), numbers or (), strict=False)
    weights = [constant(value, name, bool if name == "aligned" else np.int64) for name, value in settings]
    node = helper.make_node(
        op_type, ["x", "grid", *(it.name for it in weights)], ["y"], name="sample", domain=domain, **(attributes or {})
    )
    return make(
        [node],
        {"x": (grid, ["n", 2, *size] if known else None), "grid": (grid, shape if known else None)},
        {"y": (grid, ["n", 2, *output])},
        weights,
        opset=opset,
        ir_version=8,
        domains=(domain,) if domain else (),
    )


def samples(model: onnx.ModelProto, unit: float, axes_first: bool, numbers: tuple[int, int, bool]) -> tuple[Any, Any]:
    """The repaired file's output, and PyTorch's."""
    result = repair(model, BEFORE_FUSION)
    assert result.changed and result.notes[-1].done, result.notes
    onnx.checker.check_model(result.model)
    (sampler,) = find_samplers(result.model)
    assert not sampler.custom and sampler.spec == SamplerSpec.numbered(*numbers)
    shapes = [[dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
    generator = np.random.default_rng(5)
    image = generator.standard_normal(shapes[0]).astype(np.float32)
    grid = (generator.uniform(-1.4, 1.4, shapes[1]) * unit).astype(np.float32)
    points = np.moveaxis(grid, 1, -1) if axes_first else grid
    mode, padding, align = MODES[numbers[0]], PADDING_MODES[numbers[1]], numbers[2]
    expected = F.grid_sample(torch.from_numpy(image), torch.from_numpy(points / unit), mode, padding, align)
    return open_session(Stored(result.model)).run({"x": image, "grid": grid})[0], expected.numpy()


def check(model: onnx.ModelProto, numbers: tuple[int, int, bool], unit: float = 1.0, axes_first: bool = False) -> None:
    found, expected = samples(model, unit, axes_first, numbers)
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("domain", ["", "mmcv", "mmdeploy", "onnxservice"])
@pytest.mark.parametrize("numbers", [(0, 0, False), (1, 1, True), (2, 2, False), (2, 0, True)])
def test_mmcvs_and_mmdeploys_sampler_with_and_without_a_domain(domain: str, numbers: tuple[int, int, bool]) -> None:
    attributes = dict(zip(KEYS, map(int, numbers), strict=True))
    check(sampler_file("grid_sampler", domain, attributes, opset=11), numbers)


def test_a_kernel_that_computes_something_else_is_told() -> None:
    result = standard_samplers(sampler_file("grid_sampler", "mmcv", dict(zip(KEYS, (2, 0, 0), strict=True))))
    assert all(note.done for note in result.notes)
    assert "TensorRT plugins of mmcv and mmdeploy compute bilinear instead of bicubic" in result.notes[0].message
    result = standard_samplers(sampler_file("GridSample3D", "", {"interpolation_mode": 1}, rank=3))
    assert "writes only the first channel" in result.notes[0].message


@pytest.mark.parametrize("keys", [KEYS, OTHER_KEYS])
@pytest.mark.parametrize("numbers", [(0, 2, True), (1, 0, False)])
def test_gridsampler_in_both_spellings_of_its_attributes(keys: tuple[str, ...], numbers: tuple[int, int, bool]) -> None:
    check(sampler_file("GridSampler", "", dict(zip(keys, map(int, numbers), strict=True))), numbers)


@pytest.mark.parametrize(
    ("op_type", "rank", "numbers"),
    [
        ("GridSampler2DTRT", 2, (2, 1, True)),
        ("GridSampler2DTRT2", 2, (0, 0, False)),
        ("GridSampler3DTRT", 3, (0, 2, False)),
        ("GridSamplerTRT", 2, (1, 0, True)),
        ("GridSamplerTRT2", 3, (0, 1, False)),
    ],
)
def test_bevformers_sampler_has_its_axes_first_and_ten_at_the_edge(
    op_type: str, rank: int, numbers: tuple[int, int, bool]
) -> None:
    attributes = dict(zip(KEYS, map(int, numbers), strict=True))
    check(sampler_file(op_type, "", attributes, rank=rank, axes_first=True), numbers, 10.0, True)


def test_a_half_precision_grid_in_other_units() -> None:
    result = standard_samplers(sampler_file("GridSampler2DTRT", "", axes_first=True, grid=F16))
    feeds = {"x": np.ones((1, 2, 5, 6), np.float16), "grid": np.zeros((1, 2, 3, 4), np.float16)}
    np.testing.assert_array_equal(open_session(Stored(result.model)).run(feeds)[0], np.ones((1, 2, 3, 4)))


@pytest.mark.parametrize("numbers", [(0, 0, False), (0, 2, True), (1, 1, False)])
def test_gridsample3d_and_what_it_leaves_out(numbers: tuple[int, int, bool]) -> None:
    attributes = {key: int(value) for key, value in zip(KEYS, numbers, strict=True) if value}
    check(sampler_file("GridSample3D", "", attributes, rank=3, opset=18), numbers)


@pytest.mark.parametrize(
    ("op_type", "domain", "operator"),
    [
        ("grid_sampler", "aten", ""),
        ("ATen", "aten", "grid_sampler"),
        ("ATen", "org.pytorch.aten", "grid_sampler_2d"),
        ("ATen", "at", "grid_sampler"),
    ],
)
def test_atens_sampler_takes_its_settings_from_constants(op_type: str, domain: str, operator: str) -> None:
    attributes = {"operator": operator, "overload_name": ""} if operator else {}
    for numbers in ((0, 2, True), (2, 1, False)):
        check(sampler_file(op_type, domain, attributes, numbers=numbers), numbers)


def left(result: PassResult) -> str:
    """The only note on what stays."""
    (note,) = (note for note in result.notes if not note.done)
    assert note.code == "custom-sampler"
    return note.message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (sampler_file("grid_sampler", "mmdeploy", {"padding_mode": 1}), "lacks interpolation_mode and align_corners"),
        (sampler_file("GridSampler", "", {"interpolation_mode": 7}), "interpolation mode is 7"),
        (sampler_file("GridSampler", "", {"interpolation_mode": 2}), "no bicubic mode"),
        (sampler_file("GridSampler", "", {"interpolation_mode": "linear"}), "not numbers"),
        (sampler_file("ATen", "aten", {"operator": "grid_sampler"}), "it lacks interpolation_mode"),
        (sampler_file("GridSamplerTRT", "", known=False), "whether it samples images or volumes"),
        (sampler_file("GridSample", "their"), "not known here"),
        (sampler_file("MultiScaleDeformableAttnTRT"), "not known here"),
    ],
)
def test_what_is_not_known_stays_and_is_named(model: onnx.ModelProto, words: str) -> None:
    result = standard_samplers(model)
    assert result.model is model and not result.changed
    node = model.graph.node[0]
    assert words in left(result) and left(result).startswith(f"'sample' ({node.domain or 'default domain'}::")


def test_settings_that_are_computed_are_not_known() -> None:
    model = sampler_file("grid_sampler", "aten", numbers=(0, 0, False))
    model.graph.initializer.pop(0)
    model.graph.node.insert(0, helper.make_node("Size", ["x"], ["mode"], name="size"))
    assert "settings are not constants" in left(standard_samplers(model))


def test_a_known_sampler_beside_an_unknown_one_is_replaced() -> None:
    model = sampler_file("GridSampler", "", {"align_corners": 1})
    model.graph.node.append(helper.make_node("ImageWarp", ["x", "grid"], ["z"], name="warp", domain="their"))
    result = standard_samplers(model)
    assert [node.op_type for node in result.model.graph.node] == ["GridSample", "ImageWarp"]
    assert left(result).startswith("'warp' (their::ImageWarp)")


def test_a_function_of_the_file_is_not_an_unknown_operator() -> None:
    model = affine_model()
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "warp", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("warp", ["y"], ["z"], domain="own"))
    assert standard_samplers(model).notes == ()


# ---- PyTorch's fallback with both operators ----------------------------------------------------------------------


def fallback(dynamic: bool, align_corners: bool, rank: int = 2) -> onnx.ModelProto:
    """ATen's affine_grid_generator and grid_sampler; the grid's size is a constant, or has the batch of x."""
    size = (6, 7) if rank == 2 else (4, 6, 7)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"], name="batch"),
        helper.make_node("Concat", ["batch", "rest"], ["size"], name="size", axis=0),
    ]
    weights = [
        constant([0], "zero"),
        constant([1], "one"),
        constant([2, *size], "rest"),
        constant([2, 2, *size], "fixed"),
        constant(0, "mode"),
        constant(1, "padding"),
        constant(align_corners, "aligned"),
    ]
    atens = {"domain": "org.pytorch.aten"}
    nodes = nodes if dynamic else []
    nodes += [
        helper.make_node(
            "ATen",
            ["theta", "size" if dynamic else "fixed", "aligned"],
            ["grid"],
            name="affine",
            operator="affine_grid_generator",
            **atens,
        ),
        helper.make_node(
            "ATen",
            ["x", "grid", "mode", "padding", "aligned"],
            ["y"],
            name="sample",
            operator="grid_sampler",
            **atens,
        ),
    ]
    batch = "n" if dynamic else 2
    return make(
        nodes,
        {"x": (F32, [batch, 2, *size]), "theta": (F32, [batch, rank, rank + 1])},
        {"y": (F32, [batch, 2, *size])},
        weights,
        opset=18,
        domains=("org.pytorch.aten",),
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("align_corners", "rank"), [(False, 2), (True, 2), (True, 3)])
def test_atens_affine_grid_beside_its_sampler(dynamic: bool, align_corners: bool, rank: int, tmp_path: Path) -> None:
    path = tmp_path / "fallback.onnx"
    path.write_bytes(fallback(dynamic, align_corners, rank).SerializeToString())
    report = optimize(path, tmp_path / "out.onnx")
    assert report.fused == 1
    assert "replaced 1 ATen affine_grid_generator by a matrix product" in str(report)
    generator = np.random.default_rng(6)
    size = (6, 7) if rank == 2 else (4, 6, 7)
    theta = generator.uniform(-1, 1, (2, rank, rank + 1)).astype(np.float32)
    x = generator.standard_normal((2, 2, *size)).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta), [2, 2, *size], align_corners)
    expected = F.grid_sample(torch.from_numpy(x), grid, "bilinear", "border", align_corners)
    written = onnx.load(tmp_path / "out.onnx")
    found = open_session(Stored(written)).run({"x": x, "theta": theta})[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-6)


def test_a_size_that_is_not_known_stays() -> None:
    model = fallback(True, False)
    model.graph.input.append(helper.make_tensor_value_info("any", 7, [4]))
    model.graph.node[3].input[1] = "any"
    notes = standard_samplers(model).notes
    assert [note.message for note in notes if not note.done] == [
        "'affine' (org.pytorch.aten::ATen affine_grid_generator): the operator is not known here"
    ]


def test_a_linear_grid_behind_a_custom_sampler_is_fused(tmp_path: Path) -> None:
    model = affine_model(sampler="GridSampler", attributes={"align_corners": 1, "padding_mode": 1})
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    assert optimize(tmp_path / "in.onnx", tmp_path / "out.onnx").fused == 1
