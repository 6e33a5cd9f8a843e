"""Pictures: the arrays that they show, and the files."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from stn_infer.api.show import look, show
from stn_infer.errors import MissingDependencyError, ModelError, OutputError
from stn_infer.extras import install
from stn_infer.fusion.fuse import fuse
from stn_infer.layers import SpatialTransformer
from stn_infer.pictures.drawing import draw
from stn_infer.pictures.look import Look, WarpView
from stn_infer.torch_export.plain import export_plain
from stn_infer.transforms import Projective, RationalPolynomial, ThinPlateSpline, Transformation, Translation


class Shift(nn.Module):
    """Shifts each image by its own mean, so that the sampling points are known."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(1, 2, bias=False)
        nn.init.constant_(self.place.weight, 1.0)
        self.warp = SpatialTransformer(None, Translation(), (8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3), keepdim=True).flatten(1)
        return self.warp(x, self.place(mean)).flatten(1)[:, :3]


class Twice(nn.Module):
    """Two transformers, one after the other, on three channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8)), Projective(), (5, 5))
        self.second = SpatialTransformer(
            nn.Sequential(nn.Flatten(), nn.Linear(4 * 25, 8)), ThinPlateSpline((2, 2)), (7, 7), align_corners=True
        )
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(x)))


class Flow(nn.Module):
    """A dense flow field, which has no theta."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, self.conv(x).tanh().permute(0, 2, 3, 1), align_corners=False)


def save(path: Path, module: nn.Module, shape: tuple[int, ...]) -> Path:
    model, _ = fuse(export_plain(module.eval(), [shape]))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "shift.onnx", Shift(), (1, 8, 6))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three constant gray 8x6 images."""
    paths = []
    for index, value in enumerate((0, 51, 102)):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((8, 6), value, np.uint8)).save(path)
        paths.append(path)
    return paths


def test_points_are_where_the_model_samples(shift: Path, images: list[Path]) -> None:
    looks = look(shift, images, labels=["a", "b", "c"])
    assert [item.name for item in looks] == ["0.png", "1.png", "2.png"]
    for item, value in zip(looks, (0.0, 0.2, 0.4), strict=True):
        (warp,) = item.warps
        assert warp.straight
        assert warp.source.shape == (1, 8, 6) and warp.warped.shape == (1, 8, 6)
        # a translation by t moves the sampling points by t * size / 2 pixels
        np.testing.assert_allclose(warp.points[0, 0], (value * 3, value * 4), atol=1e-5)
        np.testing.assert_allclose(warp.points[-1, -1], (5 + value * 3, 7 + value * 4), atol=1e-5)
        np.testing.assert_allclose(warp.source, value, atol=1e-6)
    assert looks[0].prediction == "a"


def test_a_plain_export_is_fused_before_it_is_drawn(tmp_path: Path, shift: Path, images: list[Path]) -> None:
    plain = tmp_path / "plain.onnx"
    onnx.save(export_plain(Shift().eval(), [(1, 8, 6)]), plain)
    expected, actual = look(shift, images), look(plain, images)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(one.warps[0].points, other.warps[0].points, atol=1e-5)


def test_several_transformers_on_feature_maps(tmp_path: Path) -> None:
    model = save(tmp_path / "twice.onnx", Twice(), (3, 6, 6))
    np.save(tmp_path / "batch.npy", np.random.default_rng(0).random((2, 3, 6, 6), dtype=np.float32))
    output = tmp_path / "twice.svg"
    report = show(model, tmp_path / "batch.npy", output)
    looks = report.looks
    assert len(looks) == 2
    assert str(report).splitlines() == [
        "batch.npy[0]: no class prediction",
        "batch.npy[1]: no class prediction",
        f"wrote {output}",
    ]
    assert report._repr_html_().startswith('<img src="data:image/svg+xml;base64,')
    first, second = looks[0].warps
    assert (first.source.shape, first.warped.shape) == ((3, 6, 6), (3, 5, 5))
    assert (second.source.shape, second.warped.shape) == ((4, 5, 5), (4, 7, 7))
    assert not first.straight and not second.straight
    assert first.w is not None and first.w.shape == (5, 5) and second.w is None and first.tensor != second.tensor
    # identity at the start; corners map to corners under align_corners
    np.testing.assert_allclose(second.points[[0, -1], [0, -1]], [[0, 0], [4, 4]], atol=1e-4)
    assert looks[0].prediction == ""
    assert b"<svg" in output.read_bytes()


def test_the_picture_is_as_wide_as_there_are_samples(shift: Path, images: list[Path], tmp_path: Path) -> None:
    widths = []
    for count in (1, 3):
        output = tmp_path / f"picture-{count}.png"
        assert len(show(shift, images, output, count=count).looks) == count
        with Image.open(output) as picture:
            widths.append(picture.width)
    assert widths[1] > 2 * widths[0]


def test_points_outside_the_source_and_non_finite_points_are_drawn() -> None:
    points = np.full((4, 4, 2), 1e30)
    points[0, 0] = np.nan
    points[1, 1] = np.inf
    flat = np.zeros((1, 4, 4), np.float32)
    content = draw([Look("a" * 40, "", (WarpView(flat, points, flat, straight=False),))], ".png")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"


def test_a_flow_field_is_drawn_with_its_mesh(tmp_path: Path, images: list[Path]) -> None:
    torch.manual_seed(0)
    flow = Flow().eval()
    looks = look(save(tmp_path / "flow.onnx", flow, (1, 8, 6)), images)
    for item, value in zip(looks, (0.0, 0.2, 0.4), strict=True):
        (warp,) = item.warps
        assert not warp.straight
        grid = flow.conv(torch.full((1, 1, 8, 6), value)).tanh().permute(0, 2, 3, 1)[0].detach().numpy()
        np.testing.assert_allclose(warp.points, ((grid + 1) * np.array([6, 8]) - 1) / 2, atol=1e-4)


class Lens(nn.Module):
    """A quotient whose coefficients are the images' mean and constants."""

    def __init__(self, family: Transformation) -> None:
        super().__init__()
        self.place = nn.Linear(1, family.num_parameters)
        self.warp = SpatialTransformer(None, family, (8, 6))
        nn.init.constant_(self.place.weight, 0.5)
        with torch.no_grad():
            self.place.bias.copy_(family.identity())

    def parameters_of(self, x: torch.Tensor) -> torch.Tensor:
        return self.place(x.mean((1, 2, 3), keepdim=True).flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.warp(x, self.parameters_of(x))


@pytest.mark.parametrize("family", [Projective(w_min=0.9), pytest.param(RationalPolynomial(2), marks=pytest.mark.slow)])
def test_quotients_are_drawn_where_they_sample(family: Transformation, tmp_path: Path, images: list[Path]) -> None:
    """Their meshes are drawn whole, and a clamped denominator has no other side."""
    model = Lens(family).eval()
    looks = look(save(tmp_path / "lens.onnx", model, (1, 8, 6)), images)
    exact = Lens(family).double()
    for item, value in zip(looks, (0.0, 0.2, 0.4), strict=True):
        (warp,) = item.warps
        assert not warp.straight and (warp.w is None) == (family.w_min is not None)  # type: ignore[attr-defined]
        image = torch.full((1, 1, 8, 6), value, dtype=torch.float64)
        grid = exact.warp.grid(exact.warp.theta(exact.parameters_of(image)))[0].detach().numpy()
        np.testing.assert_allclose(warp.points, ((grid + 1) * np.array([6, 8]) - 1) / 2, atol=1e-4)


def test_models_without_a_known_transformer_are_refused(tmp_path: Path, images: list[Path]) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 8, 6])],
    )
    path = tmp_path / "neg.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(ModelError, match="no GridSample"):
        look(path, images)


def test_wrong_files_are_one_line_errors(
    shift: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"\.docx; give a \.png"):
        show(shift, images, tmp_path / "picture.docx")
    with pytest.raises(OutputError, match="no such folder"):
        show(shift, images, tmp_path / "nowhere" / "picture.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install("report"))):
        show(shift, images, tmp_path / "picture.png")


def test_the_command_prints_predictions_and_the_file(shift: Path, images: list[Path], tmp_path: Path) -> None:
    from stn_infer.cli.show import command

    output = tmp_path / "picture.png"
    arguments = [str(shift), *map(str, images), "-o", str(output), "--count", "2"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.fullmatch(r"0\.png: 0 \d+%", done.output.splitlines()[0])
    assert len(done.stdout.splitlines()) == 3 and "confidences assume a softmax" in done.stderr
    assert output.stat().st_size > 1000
