"""Dynamic height and width: exported if the network supports it, fused if the grid has a fixed size, else an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ExportError, StnInferError, UsageError
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain, other_shapes

SHAPE = (1, 16, 16)


class Pooled(nn.Module):
    """A localization network with global pooling and a grid of 8 x 10; it accepts images of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 6)

    def theta(self, x: Tensor) -> Tensor:
        identity = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=x.dtype)
        return (identity + 0.3 * self.head(self.features(x).relu().mean((2, 3)))).unflatten(1, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta(x), [x.shape[0], 1, 8, 10], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class FollowsTheInput(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta(x), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class TakesASizeForANumber(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * int(x.shape[2])


class InPixels(Pooled):
    """Coordinates divided by the image size: the grid depends on the parameters *and* the size."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        grid = F.affine_grid(self.theta(x), [x.shape[0], 1, 8, 10], align_corners=False) * 12
        return F.grid_sample(x, torch.stack([grid[..., 0] / width, grid[..., 1] / height], -1), align_corners=False)


class Flat(Pooled):
    """A linear layer on all pixels: only one size is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(256, 6)

    def theta(self, x: Tensor) -> Tensor:
        return self.flat(x.flatten(1)).unflatten(1, (2, 3))  # type: ignore[no-any-return]


class Pair(Pooled):
    """Two images and a vector."""

    def forward(self, x: Tensor, other: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + other) + shift[:, :, None, None]


def exported(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    plain = export_plain(module.eval(), shapes, "net", True)
    names = [value.name for value in plain.graph.input]
    sizes = [dict(zip(names, each, strict=True)) for each in (shapes, other_shapes(shapes))]
    return fuse(plain, sizes)


def dims(model: onnx.ModelProto) -> list[list[str | int]]:
    return [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]


def check(model: onnx.ModelProto, module: nn.Module, *shapes: tuple[int, ...]) -> None:
    inputs = [torch.randn((3, *shape), generator=torch.Generator().manual_seed(sum(shape))) for shape in shapes]
    feeds = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    (answer,) = OrtBackend(model.SerializeToString(), threads=1).run(feeds).values()
    with torch.no_grad():
        wanted = module(*inputs).numpy()
    np.testing.assert_allclose(answer, wanted, atol=3e-5 * max(1, abs(wanted).max()))


@pytest.fixture(scope="module")
def pooled() -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    return exported(Pooled(), SHAPE)


def test_a_pooled_network_accepts_every_size_and_is_fused(pooled: tuple[onnx.ModelProto, tuple[Finding, ...]]) -> None:
    model, (finding,) = pooled
    assert dims(model) == [["batch", 1, "height", "width"], ["batch", 1, 8, 10]]
    assert finding.fused and finding.kind == "affine"
    onnx.checker.check_model(model, full_check=True)
    for size in ((16, 16), (48, 80), (5, 7), (33, 120)):
        check(model, Pooled().eval(), (1, *size))


def test_a_grid_that_depends_on_the_size_is_not_fused() -> None:
    model, (finding,) = exported(InPixels(), SHAPE)
    assert not finding.fused
    assert "depends on the size of the images" in finding.message
    for size in ((16, 16), (48, 80), (5, 7)):
        check(model, InPixels().eval(), (1, *size))


def test_images_of_one_size_share_their_symbols_and_vectors_have_none() -> None:
    shapes = (SHAPE, SHAPE, (1,))
    model, (finding,) = exported(Pair(), *shapes)
    image: list[str | int] = ["batch", 1, "height", "width"]
    assert dims(model) == [image, image, ["batch", 1], ["batch", 1, 8, 10]]
    assert finding.fused
    check(model, Pair().eval(), (1, 30, 20), (1, 30, 20), (1,))


def test_without_given_shapes_the_pass_finds_sizes_at_which_a_file_runs(
    pooled: tuple[onnx.ModelProto, tuple[Finding, ...]],
) -> None:
    plain = onnx.inliner.inline_local_functions(pooled[0])
    model, (finding,) = fuse(plain)
    assert finding.fused
    check(model, Pooled().eval(), (1, 20, 33))


@pytest.mark.parametrize("relation", ["any", "equal", "at least 200"])
def test_plausible_sizes(relation: str) -> None:
    """A flow of the image's size besides a grid of fixed size, with a condition on the size."""
    flow = "Mul(x, x)" if relation == "any" else "MatMul(x, x)"
    kernel = "[199, 199]" if relation == "at least 200" else "[1, 1]"
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[n, 1, h, w] x, float[n, 2, 3] theta) =>
            (float[n, 1, 4, 5] y, float[n, 1, a, b] z, float[n, 1, c, d] p)
        <int64[4] shape = {{0, 4, 5, 2}}> {{
            product = MatMul(theta, basis)
            turned = Transpose<perm = [0, 2, 1]>(product)
            grid = Reshape(turned, shape)
            y = GridSample<mode = "bilinear">(x, grid)
            z = {flow}
            p = AveragePool<kernel_shape = {kernel}, strides = [8, 8]>(x)
        }}
    """)
    basis = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(basis, "basis"))
    _, (finding,) = fuse(model)
    assert finding.fused, finding.message


def test_a_file_that_runs_at_no_plausible_size_is_not_fused() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[n, 1, h, 7] x) => (float[n, 1, h, 7] y)
        <int64[4] shape = {0, 4, 5, 2}, int64[4] seven = {0, 1, 7, 7}> {
            square = Reshape(x, seven)
            flat = Reshape(square, shape)
            y = GridSample(x, flat)
        }
    """)
    _, (finding,) = fuse(model)
    assert not finding.fused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            FollowsTheInput,
            r"net: .* ties the image's size to constants \(height = 16, width = 16\), as affine_grid",
        ),
        (Flat, r"net: the network accepts images of 16x16 but not of 48x80 \(RuntimeError: mat1 and mat2"),
    ],
)
def test_models_without_dynamic_size_support_give_a_one_line_error(make: type[Pooled], message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export_plain(make().eval(), [SHAPE], "net", True)
    assert "\n" not in str(caught.value)
    assert "without a dynamic size" in str(caught.value)


@pytest.mark.slow
def test_a_size_taken_for_a_number_is_dynamic_too() -> None:
    model, _ = exported(TakesASizeForANumber(), SHAPE)
    for size in ((16, 16), (48, 80)):
        check(model, TakesASizeForANumber().eval(), (1, *size))


def test_a_model_without_images_raises() -> None:
    with pytest.raises(UsageError, match="has no image input"):
        export_plain(nn.Linear(4, 2), [(4,)], "net", True)


def test_other_shapes_differ_on_every_axis_of_an_image() -> None:
    assert other_shapes([(3, 16, 16), (1, 8, 8, 8), (5,), (4, 2)]) == ((3, 48, 80), (1, 24, 40, 56), (5,), (4, 2))


# ---- export, run and verify --------------------------------------------------------------------------------------


def test_the_command_line_exports_a_dynamic_size_and_run_accepts_images_of_all_sizes(tmp_path: Path) -> None:
    from click.testing import CliRunner
    from PIL import Image

    from stn_infer.cli.main import main

    path = tmp_path / "pooled.onnx"
    source = "tests.torch_export.test_plain_dynamic_size:Pooled"
    done = CliRunner().invoke(
        main, ["export", source, "--input-shape", "1,16,16", "--dynamic-size", "-o", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert (
        "[batch, 1, height, width]" in done.output
        and "fused GridSample into stn::SpatialTransformer (affine, " in done.output
    )
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    sizes = {"a": (20, 30), "b": (16, 16), "c": (20, 30), "d": (64, 48)}
    pixels = {name: generator.integers(0, 256, size).astype(np.uint8) for name, size in sizes.items()}
    for name, image in pixels.items():
        Image.fromarray(image).save(pictures / f"{name}.png")
    done = CliRunner().invoke(
        main, ["run", str(path), str(pictures), "-o", str(tmp_path / "out"), "--format", "npz"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    (shard,) = (tmp_path / "out").glob("predictions*.npz")
    answers = np.load(shard)["output"]
    module = Pooled().eval()
    with torch.no_grad():
        for answer, image in zip(answers, pixels.values(), strict=True):
            wanted = module(torch.from_numpy(image / np.float32(255))[None, None].float())
            np.testing.assert_allclose(answer, wanted[0].numpy(), atol=1e-5)


class Labeled(Pooled):
    """A picture, and the number of a class, which selects a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return super().forward(x) + self.table(label)[:, :, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("examples", [False, True])
def test_inputs_of_other_types_keep_them_at_another_size(examples: bool, tmp_path: Path) -> None:
    """And example inputs of one size do not stand in for another size."""
    from click.testing import CliRunner

    from stn_infer.cli.main import main

    source = "tests.torch_export.test_plain_dynamic_size:Labeled"
    given = ["--input", "x:float32:1,16,16", "--input", "label:int64"]
    if examples:
        values = {"x": np.zeros((3, *SHAPE), np.float32), "label": np.array([0, 3, 2])}
        np.savez(tmp_path / "examples.npz", **values)
        given = ["--inputs", str(tmp_path / "examples.npz")]
    line = ["export", source, *given, "--dynamic-size", "-o", str(tmp_path / "m.onnx")]
    done = CliRunner().invoke(main, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    feeds = {"x": np.ones((2, 1, 40, 24), np.float32), "label": np.array([1, 2])}
    with torch.no_grad():
        wanted = Labeled().eval()(*(torch.from_numpy(value) for value in feeds.values()))
    found = OrtBackend(tmp_path / "m.onnx", threads=1).run(feeds)["output"]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_size_baked_in_as_a_value_is_detected_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stn_infer
    from stn_infer.torch_export import plain as export

    original = export.export_program

    def frozen(*args: object, **options: object) -> export.PlainExport:
        """An export that contains the example's image width as a constant."""
        plain = original(LoadedModel("net", Pooled().eval(), (SHAPE,), ModelMetadata(), "factory"), True).model
        constant = onnx.numpy_helper.from_array(np.array([16.0], np.float32), "frozen")
        plain.graph.initializer.append(constant)
        shape = onnx.helper.make_node("Shape", [plain.graph.input[0].name], ["length"], start=3, end=4)
        cast = onnx.helper.make_node("Cast", ["length"], ["width_"], to=onnx.TensorProto.FLOAT)
        ratio = onnx.helper.make_node("Div", ["width_", "frozen"], ["ratio"])
        last = plain.graph.output[0].name
        scaled = onnx.helper.make_node("Mul", [last, "ratio"], ["scaled"])
        plain.graph.node.extend([shape, cast, ratio, scaled])
        plain.graph.output[0].name = "scaled"
        return export.PlainExport(plain)

    monkeypatch.setattr(export, "export_program", frozen)
    with pytest.raises(
        StnInferError,
        match=r"right at the example's size but wrong at 48x80: the exporter baked a size in as a constant",
    ):
        stn_infer.export(
            "tests.torch_export.test_plain_dynamic_size:Pooled",
            tmp_path / "m.onnx",
            input_shapes=[SHAPE],
            dynamic_size=True,
        )
    assert not (tmp_path / "m.onnx").exists()
