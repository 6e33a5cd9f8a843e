"""The plugin library as onnxruntime custom ops: the same file with and without it, and ONNX's test cases."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer import plugin
from stn_infer.fusion.op import (
    DOMAIN,
    PROJECTIVE,
    SPATIAL,
    attach_functions,
    node_attributes,
    op_of,
    tensor_product_shapes,
)
from stn_infer.fusion.samplers import spec_of
from stn_infer.repairs.inlined import inlined
from stn_infer.samplers import SamplerSpec
from tests.support import reference
from tests.support.onnx_files import F16, F32, sampler_model
from tests.support.plugin_cases import random_grid

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

BF16 = TensorProto.BFLOAT16
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def session(model: onnx.ModelProto, fused: bool, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if fused:
        options.register_custom_ops_library(str(plugin.library_path()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_node(
    kind: str,
    basis: Array,
    output_size: tuple[int, ...],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    opset: int = 18,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """A portable file with one spatial transformer; casts to half types are inside, so that inputs are float32."""
    rank, rows = len(output_size), 3 if kind == "projective" else len(output_size)
    attributes = node_attributes(kind, output_size, SamplerSpec(mode, padding_mode, align_corners), opset)  # type: ignore[arg-type]
    op_type = PROJECTIVE if kind == "projective" else SPATIAL
    nodes = [
        helper.make_node("Cast", ["input"], ["image"], to=TYPES[dtype]),
        helper.make_node(op_type, ["image", "theta", "basis"], ["warped"], domain=DOMAIN, **attributes),
        helper.make_node("Cast", ["warped"], ["output"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", "c", *["s"] * rank]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["n", rows, len(basis)]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(basis.astype(np.float32), "basis")],
    )
    for index, size in enumerate(graph.input[0].type.tensor_type.shape.dim):
        size.dim_param = f"s{index}" if index else "n"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach_functions(model)
    return model


def canonical(output_size: tuple[int, ...]) -> Array:
    """The rows x, y(, z), 1 at pixel centers."""
    mesh = np.meshgrid(*[reference.centers(size, False) for size in output_size], indexing="ij")[::-1]
    return np.stack([axis.ravel() for axis in mesh] + [np.ones(mesh[0].size)])


def random_theta(rng: np.random.Generator, rank: int, rows: int, batch: int) -> Array:
    theta = np.concatenate([np.eye(rank), np.zeros((rank, rows - rank))], axis=1)[None]
    return (theta + 0.3 * rng.standard_normal((batch, rank, rows))).astype(np.float32)


def both(model: onnx.ModelProto, feeds: dict[str, Array], threads: int = 1) -> tuple[Array, Array]:
    plain, fused = (session(model, fused, threads).run(None, feeds)[0] for fused in (False, True))
    return plain, fused


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("rank", [2, 3])
def test_the_same_file_with_and_without_the_library(rank: int, opset: int) -> None:
    """All samplers; random thetas give no ties, so nearest is compared too."""
    rng = np.random.default_rng(1)
    size, output_size = (9, 12, 7)[:rank], (8, 10, 5)[:rank]
    if rank == 3 and opset == 18:
        modes: tuple[str, ...] = ("bilinear",)
    else:
        modes = ("bilinear", "nearest", "bicubic")[: 5 - rank]
    image = rng.standard_normal((3, 2, *size)).astype(np.float32)
    for mode, padding_mode, align_corners in product(modes, ("zeros", "border", "reflection"), (False, True)):
        theta = random_theta(rng, rank, rank + 1, 3)
        model = one_node("affine", canonical(output_size), output_size, mode, padding_mode, align_corners, opset)
        plain, fused = both(model, {"input": image, "theta": theta})
        if mode == "nearest":  # onnxruntime rounds before it pads
            assert np.mean(np.abs(plain - fused) > 1e-5) < 0.002
        else:
            np.testing.assert_allclose(fused, plain, atol=1e-5)


def test_basis_and_projective() -> None:
    rng = np.random.default_rng(2)
    image = rng.standard_normal((2, 3, 16, 20)).astype(np.float32)
    basis = rng.standard_normal((9, 12 * 11)).astype(np.float32)
    theta = (0.2 * rng.standard_normal((2, 2, 9))).astype(np.float32)
    plain, fused = both(one_node("basis", basis, (12, 11)), {"input": image, "theta": theta})
    np.testing.assert_allclose(fused, plain, atol=2e-5)
    theta = (np.eye(3)[None] + 0.1 * rng.standard_normal((2, 3, 3))).astype(np.float32)
    plain, fused = both(one_node("projective", canonical((12, 11)), (12, 11)), {"input": image, "theta": theta})
    np.testing.assert_allclose(fused, plain, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_half_types(dtype: str, tolerance: float, kind: str) -> None:
    rng = np.random.default_rng(3)
    image = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    theta = random_theta(rng, 2, 3, 2)
    if kind == "projective":
        theta = np.concatenate([theta, np.tile([[[0.0, 0.0, 1.0]]], (2, 1, 1))], axis=1).astype(np.float32)
    plain, fused = both(one_node(kind, canonical((6, 7)), (6, 7), dtype=dtype), {"input": image, "theta": theta})
    np.testing.assert_allclose(fused, plain, atol=tolerance)


def test_threads_and_batches() -> None:
    """The session's threads share the work, for any batch size."""
    rng = np.random.default_rng(4)
    model = one_node("affine", canonical((28, 28)), (28, 28))
    fused = session(model, True, threads=2)
    for batch in (0, 1, 3, 300):
        image, theta = rng.standard_normal((batch, 2, 28, 28)).astype(np.float32), random_theta(rng, 2, 3, batch)
        answer = fused.run(None, {"input": image, "theta": theta})[0]
        assert answer.shape == (batch, 2, 28, 28)
        expected = reference.grid_sample(image, reference.affine_grid(theta, (28, 28)))
        np.testing.assert_allclose(answer, expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["affine", "basis", "projective"])
def test_no_samples_have_no_rows(kind: str) -> None:
    rows = 3 if kind == "projective" else 2
    feeds = {"input": np.zeros((0, 2, 9, 8), np.float32), "theta": np.zeros((0, rows, 3), np.float32)}
    check_no_samples(one_node(kind, canonical((4, 5)), (4, 5)), feeds, (0, 2, 4, 5))


def test_a_library_serves_many_sessions() -> None:
    model = one_node("affine", canonical((4, 4)), (4, 4))
    sessions = [session(model, True) for _ in range(5)]
    feeds = {"input": np.ones((1, 1, 4, 4), np.float32), "theta": np.eye(2, 3, dtype=np.float32)[None]}
    for one in sessions:
        np.testing.assert_allclose(one.run(None, feeds)[0], feeds["input"], atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("kind", "output_size"), [("affine", (6, 8)), ("affine", (4, 5, 6)), ("basis", (6, 8)), ("projective", (6, 8))]
)
def test_the_output_has_a_shape_before_anything_runs(kind: str, output_size: tuple[int, ...], dtype: str) -> None:
    """The file does not contain it: batch and channels come from the input, the other sizes from grid_shape."""
    model = one_node(kind, canonical(output_size), output_size, dtype=dtype)
    assert not model.graph.value_info and not model.graph.output[0].type.tensor_type.HasField("shape")
    assert session(model, True).get_outputs()[0].shape == ["n", "s1", *output_size]
    for index, size in enumerate((2, 3)):
        model.graph.input[0].type.tensor_type.shape.dim[index].dim_value = size
    assert session(model, True).get_outputs()[0].shape == [2, 3, *output_size]


@pytest.mark.parametrize("rank", [None, 4])
def test_an_input_of_unknown_shape_is_supported(rank: int | None) -> None:
    model = one_node("affine", canonical((4, 4)), (4, 4))
    known = model.graph.input[0].type.tensor_type
    known.ClearField("shape")
    for _ in range(rank or 0):
        known.shape.dim.add()
    image = np.random.default_rng(0).random((2, 1, 5, 5), np.float32)
    plain, fused = both(model, {"input": image, "theta": random_theta(np.random.default_rng(1), 2, 3, 2)})
    np.testing.assert_allclose(fused, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "lanczos"}, "expected mode"),
        ({"padding_mode": "wrap"}, "expected padding_mode"),
        ({"kind": "spline"}, "expected kind"),
        ({"grid_shape": [0, 4, 2]}, "expected grid_shape"),
        ({"grid_shape": [0, 4, 4, 3]}, "the last entry of grid_shape"),
    ],
)
def test_bad_attributes_are_rejected_at_load(change: dict[str, Any], message: str) -> None:
    model = one_node("affine", canonical((4, 4)), (4, 4))
    node = model.graph.node[1]
    kept = [attribute for attribute in node.attribute if attribute.name not in change]
    del node.attribute[:]
    node.attribute.extend(kept + [helper.make_attribute(name, value) for name, value in change.items()])
    with pytest.raises(Exception, match=message):
        session(model, True)


@pytest.mark.parametrize(
    ("theta", "message"),
    [((2, 2, 3), r"expected theta \[1, 2, K\], got \[2, 2, 3\]"), ((1, 3, 3), "Got invalid dimensions|expected theta")],
)
def test_bad_shapes_are_rejected_at_run(theta: tuple[int, ...], message: str) -> None:
    model = one_node("affine", canonical((4, 4)), (4, 4))
    feeds = {"input": np.ones((1, 1, 4, 4), np.float32), "theta": np.ones(theta, np.float32)}
    with pytest.raises(Exception, match=message):
        session(model, True).run(None, feeds)


def grid_sample_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators overflow intentionally while they are created
        collected = collect_testcases(None)
    cases = [case for case in collected if case.name.startswith(("test_gridsample", "test_affine_grid"))]
    return [case for case in cases if not case.name.endswith("_expanded")]


@pytest.mark.parametrize("case", grid_sample_cases(), ids=lambda case: case.name)
def test_onnx_node_tests(case: Any) -> None:
    """ONNX's test cases with the stn op: the grid is a theta [N, D, P] with the unit basis [P, P].

    An AffineGrid case gives theta; its grid is the sampling of a ramp image, whose values are the coordinates.
    """
    node = case.model.graph.node[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs, outputs = case.data_sets[0]
    if node.op_type == "AffineGrid":
        check_affine_grid(inputs, outputs[0], bool(attributes.get("align_corners", 0)))
        return
    image, grid = inputs
    output_size = grid.shape[1:-1]
    pixels = int(np.prod(output_size))
    mode = attributes.get("mode", b"linear").decode()
    padding_mode = attributes.get("padding_mode", b"zeros").decode()
    align_corners = bool(attributes.get("align_corners", 0))
    model = one_node("basis", np.eye(pixels), output_size, mode, padding_mode, align_corners, opset=20)
    theta = np.moveaxis(grid.reshape(len(grid), pixels, -1), 1, 2).astype(np.float32)
    answer = session(model, True).run(None, {"input": image.astype(np.float32), "theta": theta})[0]
    np.testing.assert_allclose(answer, outputs[0], atol=5e-5 if "bicubic" in case.name else 1e-6)


@pytest.mark.parametrize(
    "case",
    [case for case in grid_sample_cases() if case.name.startswith("test_gridsample")],
    ids=lambda case: case.name,
)
def test_onnx_node_tests_with_the_sampler(case: Any) -> None:
    """The same cases at their own grids."""
    (image, grid), outputs = case.data_sets[0]
    node = case.model.graph.node[0]
    model = sampler_model(size=image.shape[2:], opset=20, spec=spec_of(node))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = image.shape[1]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = image.shape[1]
    feeds = {"image": image.astype(np.float32), "points": grid.astype(np.float32)}
    answer = session(model, True).run(None, feeds)[0]
    np.testing.assert_allclose(answer, outputs[0], atol=5e-5 if "bicubic" in case.name else 1e-6)


@pytest.mark.parametrize("types", list(product((F32, F16, BF16), repeat=2)))
@pytest.mark.parametrize("size", [(7, 9), (4, 5, 6)], ids=["image", "volume"])
def test_the_sampler_in_every_mode_and_type(size: tuple[int, ...], types: tuple[int, int]) -> None:
    """Against the float64 reference at the stored values of image and grid, which are kept clear of ties."""
    modes = ("bilinear", "nearest", "bicubic")[: 5 - len(size)]
    rng = np.random.default_rng(5)
    image = rng.uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    stored = image.astype(helper.tensor_dtype_to_np_dtype(types[0])).astype(np.float32)
    for mode, padding_mode, align_corners in product(modes, ("zeros", "border", "reflection"), (False, True)):
        spec = SamplerSpec(mode, padding_mode, align_corners)
        grid = random_grid((2, *(n + 2 for n in size), len(size)), size, align_corners)
        exact = grid.astype(helper.tensor_dtype_to_np_dtype(types[1])).astype(np.float32)
        one = session(sampler_model(*types, size=size, spec=spec), True, threads=2)
        answer = one.run(None, {"image": image, "points": grid})[0]
        expected = reference.grid_sample(stored, exact, mode, padding_mode, align_corners)
        wrong = np.abs(answer - expected) > {F32: 2e-5, F16: 2e-3, BF16: 2e-2}[types[0]]
        # A half-precision grid may round to a tie, at which the reference rounds in float64.
        assert wrong.mean() <= (0.01 if mode == "nearest" and types[1] != F32 else 0), spec


@pytest.mark.parametrize("size", [(7, 9), (4, 5, 6)], ids=["image", "volume"])
def test_the_samplers_output_has_the_grids_sizes_before_anything_runs(size: tuple[int, ...]) -> None:
    model = sampler_model(size=size)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert session(model, True).get_outputs()[0].shape == ["batch", 3, *(f"out{axis}" for axis in range(len(size)))]


@pytest.mark.parametrize(
    ("image", "grid", "message"),
    [
        (
            (2, 3, 7, 9),
            (1, 5, 6, 2),
            r"expected a grid \[2, H, W, 2\] for the input \[2, 3, 7, 9\], got \[1, 5, 6, 2\]",
        ),
        ((2, 3, 7, 9), (2, 5, 6, 3), r"expected a grid \[2, H, W, 2\].*got \[2, 5, 6, 3\]"),
        ((2, 3, 4, 5, 6), (2, 5, 6, 2), r"expected a grid \[2, D, H, W, 3\].*got \[2, 5, 6, 2\]"),
        ((2, 3, 7), (2, 5, 2), r"expected an input \[N, C, H, W\] or \[N, C, D, H, W\], got \[2, 3, 7\]"),
        ((1, 1, 0, 9), (1, 5, 6, 2), "a size is negative, or two sizes are inconsistent"),
    ],
)
def test_shapes_that_do_not_fit_are_rejected_at_run(
    image: tuple[int, ...], grid: tuple[int, ...], message: str
) -> None:
    model = sampler_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match="stn::Sampler: " + message):
        session(model, True).run(None, {"image": np.ones(image, np.float32), "points": np.ones(grid, np.float32)})


@pytest.mark.parametrize("columns", [10, 17])
def test_a_basis_of_another_length_is_rejected_at_run(columns: int) -> None:
    model = one_node("basis", np.ones((3, columns)), (4, 4))
    feeds = {"input": np.ones((1, 1, 4, 4), np.float32), "theta": np.ones((1, 2, 3), np.float32)}
    with pytest.raises(Exception, match=rf"expected basis \[3, 16\] for theta .* got \[3, {columns}\]"):
        session(model, True).run(None, feeds)


def check_affine_grid(inputs: list[Array], expected: Array, align_corners: bool) -> None:
    """Sample the image whose value is its own normalized coordinate, one axis at a time; it is linear, so exact."""
    theta, size = inputs
    output_size = tuple(int(length) for length in size[2:])
    rank = len(output_size)
    axes = [reference.centers(length, align_corners) for length in output_size]
    mesh = np.meshgrid(*axes, indexing="ij")[::-1]
    basis = np.stack([axis.ravel() for axis in mesh] + [np.ones(mesh[0].size)])
    side = 3  # pixel centers at -1, 0 and 1
    ramp = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * rank, indexing="ij")[::-1])
    image = np.tile(ramp[None], (len(theta), *[1] * (rank + 1))).astype(np.float32)
    scale = np.abs(expected).max() * 1.01  # brings the coordinates into the image
    model = one_node("basis", basis, output_size, "bilinear", "border", True, opset=20)
    answer = session(model, True).run(None, {"input": image, "theta": (theta / scale).astype(np.float32)})[0]
    np.testing.assert_allclose(np.moveaxis(answer, 1, -1) * scale, expected, atol=1e-5)


# ---- lattices ------------------------------------------------------------------------------------------------------


def lattice_node(kind: str, constants: dict[str, Array], count: int, size: tuple[int, ...], **shapes: Any) -> Any:
    """A portable file with one node that computes its grid from a lattice of ``count`` points."""
    attributes = node_attributes(kind, size, SamplerSpec("bilinear", "border", True)) | shapes  # type: ignore[arg-type]
    node = helper.make_node(op_of(kind), ["input", "theta", *constants], ["output"], domain=DOMAIN, **attributes)  # type: ignore[arg-type]
    info, rank = helper.make_tensor_value_info, len(size)
    inputs = [
        info("input", TensorProto.FLOAT, ["n", "c", *(f"s{axis}" for axis in range(rank))]),
        info("theta", TensorProto.FLOAT, ["n", rank, count]),
    ]
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph([node], "one", inputs, [info("output", TensorProto.FLOAT, None)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    attach_functions(model)
    return model


def product_constants(size: tuple[int, ...], lattice: tuple[int, int, int]) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    depth, height, width = (1, *size)[-3:]
    shapes = {"planes": (depth, lattice[0]), "rows": (height, lattice[1]), "columns": (lattice[2], width)}
    constants = {name: (rng.random(shape) / max(shape)).astype(np.float32) for name, shape in shapes.items()}
    return constants if len(size) == 3 else constants | {"planes": np.ones((1, 1), np.float32)}


def check_no_samples(model: onnx.ModelProto, feeds: dict[str, Array], expected: tuple[int, ...]) -> None:
    """Plain, with kernels, and with the function bodies inlined."""
    for rows in (*both(model, feeds), session(inlined(model), False).run(None, feeds)[0]):
        assert rows.shape == expected


@pytest.mark.parametrize(("size", "lattice"), [((13, 40), (1, 4, 5)), ((5, 6, 17), (2, 3, 4))])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_tensor_product_with_and_without_the_library(
    size: tuple[int, ...], lattice: tuple[int, int, int], batch: int
) -> None:
    rng = np.random.default_rng(8)
    count, rank = int(np.prod(lattice)), len(size)
    shapes = tensor_product_shapes(lattice, size)
    model = lattice_node("tensor_product", product_constants(size, lattice), count, size, **shapes)
    image = rng.standard_normal((batch, 3, *(6, 7, 8)[:rank])).astype(np.float32)
    theta = rng.standard_normal((batch, rank, count)).astype(np.float32)
    plain, fused = both(model, {"input": image, "theta": theta}, threads=2)
    assert plain.shape == fused.shape == (batch, 3, *size)
    np.testing.assert_allclose(fused, plain, atol=2e-5)
    check_no_samples(model, {"input": image[:0], "theta": theta[:0]}, (0, 3, *size))


@pytest.mark.parametrize("size", [(13, 40), (5, 6, 17)])
def test_a_lattice_with_and_without_the_library(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(9)
    points, rank = int(np.prod(size)), len(size)
    constants = {"index": rng.integers(0, 11, (4, points)).astype(np.int32)}
    constants["weight"] = rng.dirichlet(np.ones(4), points).T.astype(np.float32)
    image = rng.standard_normal((2, 3, *(6, 7, 8)[:rank])).astype(np.float32)
    theta = rng.standard_normal((2, rank, 11)).astype(np.float32)
    model = lattice_node("lattice", constants, 11, size)
    plain, fused = both(model, {"input": image, "theta": theta})
    np.testing.assert_allclose(fused, plain, atol=2e-5)
    check_no_samples(model, {"input": image[:0], "theta": theta[:0]}, (0, 3, *size))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("rows", (13, 5), "expected theta with as many points as planes"),
        ("rows", (12, 4), r"expected planes \[1, d\], rows \[13, h\] and columns \[w, 40\] for grid_shape"),
        ("columns", (5, 41), "expected planes"),
        ("planes", (1, 2), "expected theta with as many points"),
        ("planes", (1,), "expected planes"),
    ],
)
def test_matrices_that_do_not_fit_are_rejected(name: str, shape: tuple[int, ...], message: str) -> None:
    constants = product_constants((13, 40), (1, 4, 5)) | {name: np.ones(shape, np.float32)}
    model = lattice_node("tensor_product", constants, 20, (13, 40), **tensor_product_shapes((1, 4, 5), (13, 40)))
    feeds = {"input": np.zeros((1, 1, 4, 4), np.float32), "theta": np.zeros((1, 2, 20), np.float32)}
    with pytest.raises(Exception, match=f"stn::TensorProductTransformer: {message}"):
        session(model, True).run(None, feeds)


@pytest.mark.parametrize(
    ("index", "weight"), [((3, 19), (3, 20)), ((3, 20), (2, 20)), ((65, 20), (65, 20)), ((20,), (3, 20))]
)
def test_an_index_that_does_not_fit_is_rejected(index: tuple[int, ...], weight: tuple[int, ...]) -> None:
    constants = {"index": np.zeros(index, np.int32), "weight": np.zeros(weight, np.float32)}
    feeds = {"input": np.zeros((1, 1, 4, 4), np.float32), "theta": np.zeros((1, 2, 9), np.float32)}
    with pytest.raises(Exception, match=r"stn::LatticeTransformer: expected index and weight \[J, 20\]"):
        session(lattice_node("lattice", constants, 9, (4, 5)), True).run(None, feeds)
