"""run --save-images, --with-theta and --overwrite."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import stn_infer
from stn_infer.cli.main import main
from stn_infer.errors import ModelError, OutputError, UsageError
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.samplers import with_theta
from stn_infer.torch_export.plain import export_plain
from tests.api.test_metadata import write_pool

HEIGHT, WIDTH = 8, 12


class Crops(nn.Module):
    """Cuts the top left quarter out, turns it around its vertical axis, and samples features; scores are means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Linear(1, 6)
        nn.init.zeros_(self.theta.weight)
        self.theta.bias = nn.Parameter(torch.tensor([0.5, 0, -0.5, 0, 0.5, -0.5]))
        self.turned = nn.Linear(1, 6)
        nn.init.zeros_(self.turned.weight)
        self.turned.bias = nn.Parameter(torch.tensor([-1.0, 0, 0, 0, 1, 0]))
        self.features = nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((1, 2, 3)).unsqueeze(1)
        theta = self.theta(mean).view(-1, 2, 3)
        size = [x.shape[0], x.shape[1], HEIGHT // 2, WIDTH // 2]
        crop = F.grid_sample(x, F.affine_grid(theta, size, align_corners=False), align_corners=False)
        turned = self.turned(mean).view(-1, 2, 3)
        back = F.grid_sample(crop, F.affine_grid(turned, size, align_corners=False), align_corners=False)
        features = self.features(x)
        maps = F.grid_sample(
            features, F.affine_grid(theta, [x.shape[0], 5, 3, 3], align_corners=False), align_corners=False
        )
        return back.mean((2, 3)) + maps.mean((1, 2, 3)).unsqueeze(1), mean


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    torch.manual_seed(0)
    return export_plain(Crops(3).eval(), [(3, HEIGHT, WIDTH)])


@pytest.fixture(scope="module")
def files(plain: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, proto in (("fused", fuse(plain)[0]), ("plain", plain)):
        found[name] = tmp_path_factory.mktemp("model") / "crops.onnx"
        onnx.save(proto, found[name])
        rule = "bgr,mean=0.4:0.5:0.6,std=0.2:0.25:0.3"
        stn_infer.write_metadata(found[name], preprocess=rule, labels=["ü", "b", "c"])
    return found


@pytest.fixture
def model(files: dict[str, Path]) -> Path:
    return files["fused"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a/x.png", "b/x.png", "b/y z.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outlined(found: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[np.ndarray[Any, Any], ...]:
    """Rows and columns of the first transformer's outline."""
    return np.nonzero(np.abs(found.astype(int) - (0xFF, 0x8C, 0x1A)).max(axis=2) < 8)


@pytest.mark.parametrize("name", ["fused", "plain"])
def test_crops_have_the_pictures_colors(files: dict[str, Path], photos: Path, tmp_path: Path, name: str) -> None:
    summary = stn_infer.run(files[name], photos, tmp_path / "out", save_images=tmp_path / "pics", batch_size=2)
    assert summary.ok == 3
    names = ["0000000-x.png", "0000001-x.png", "0000002-y_z.png"]
    assert sorted(path.name for path in (tmp_path / "pics").iterdir()) == [
        "inputs",
        "pictures-00000.csv",
        "warped_1",
        "warped_2",
        "warped_3",
    ]
    with (tmp_path / "pics/pictures-00000.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == names
    assert [row["input"] for row in rows] == [str(photos / name) for name in ("a/x.png", "b/x.png", "b/y z.png")]
    for name, row in zip(names, rows, strict=True):
        quarter = pixels(Path(row["input"]))[: HEIGHT // 2, : WIDTH // 2]
        assert np.array_equal(pixels(tmp_path / "pics/warped_1" / name), quarter)
        assert np.array_equal(pixels(tmp_path / "pics/warped_2" / name), quarter[:, ::-1])
        assert pixels(tmp_path / "pics/warped_3" / name).shape == (3, 3)  # features, in gray


def test_inputs_have_the_outline_and_the_prediction(model: Path, photos: Path, tmp_path: Path) -> None:
    stn_infer.run(model, photos, tmp_path / "out", save_images=tmp_path / "pics")
    found = pixels(tmp_path / "pics/inputs/0000000-x.png")
    scale = 256 // HEIGHT
    assert found.shape == (HEIGHT * scale + 20, WIDTH * scale, 3)
    rows, columns = outlined(found[: HEIGHT * scale])
    # from the centers of the outer pixels of the quarter, drawn 2 pixels wide; the dot has a radius of 4 pixels
    assert (rows.max(), columns.max()) == pytest.approx(((HEIGHT / 2 - 0.5) * scale, (WIDTH / 2 - 0.5) * scale), abs=2)
    assert (rows.min(), columns.min()) == pytest.approx((scale / 2 - 4, scale / 2 - 4), abs=2)
    assert (found[HEIGHT * scale :] < 128).any(), "text"


def test_failed_inputs_are_left_out_and_a_resumed_job_writes_the_same(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "a/broken.png").write_bytes(b"no picture")
    whole = stn_infer.run(model, photos, tmp_path / "out", save_images=tmp_path / "pics", shard_rows=2)
    assert (whole.ok, whole.failed) == (3, 1)
    before = tree(tmp_path / "pics")
    assert "warped_1/0000000-broken.png" not in before and "warped_1/0000001-x.png" in before
    (tmp_path / "out/ledger-00001.csv").unlink()
    for name in before:
        if "0000002" in name or "0000003" in name:
            (tmp_path / "pics" / name).unlink()
    (tmp_path / "pics/inputs/.0000002-x.png.12345678.part").write_bytes(b"half")
    again = stn_infer.run(model, photos, tmp_path / "out", save_images=tmp_path / "pics", shard_rows=2, resume=True)
    assert again.resumed == 2 and tree(tmp_path / "pics") == before
    with pytest.raises(OutputError, match="cannot resume another job: pictures was"):
        stn_infer.run(model, photos, tmp_path / "out", shard_rows=2, resume=True)


def test_rows_of_an_array_file(model: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    np.save(tmp_path / "x.npy", values)
    stn_infer.run(model, tmp_path / "x.npy", tmp_path / "out", save_images=tmp_path / "pics")
    assert np.array_equal(pixels(tmp_path / "pics/warped_1/0000001-x_1.png"), values[1, :4, :6])
    scaled = (values[..., ::-1] / np.float32(255) - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.25, 0.3])
    np.save(tmp_path / "f.npy", scaled.transpose(0, 3, 1, 2).astype(np.float32))
    stn_infer.run(model, tmp_path / "f.npy", tmp_path / "out2", save_images=tmp_path / "pics2")
    assert tree(tmp_path / "pics2/warped_2").values() == tree(tmp_path / "pics/warped_2").values() or [
        *tree(tmp_path / "pics2/warped_2").values()
    ] == [*tree(tmp_path / "pics/warped_2").values()]


@pytest.mark.parametrize("name", ["fused", "plain"])
def test_theta_of_a_file_without_this_output(files: dict[str, Path], photos: Path, tmp_path: Path, name: str) -> None:
    model = files[name]
    before = model.read_bytes()
    summary = stn_infer.run(model, photos, tmp_path / "out", with_theta=True, format="npz")
    with np.load(tmp_path / "out/predictions-00000.npz") as found:
        assert found["theta_0"].shape == (3, 2, 3)
        np.testing.assert_allclose(found["theta_0"][2], [[0.5, 0, -0.5], [0, 0.5, -0.5]], atol=1e-6)
        np.testing.assert_allclose(found["theta_1"][2], [[-1, 0, 0], [0, 1, 0]], atol=1e-6)
    assert summary.ok == 3 and model.read_bytes() == before


def test_a_model_that_has_theta_keeps_it(plain: onnx.ModelProto, tmp_path: Path, photos: Path) -> None:
    onnx.save(with_theta(fuse(plain)[0]), tmp_path / "theta.onnx")
    stn_infer.write_metadata(tmp_path / "theta.onnx", preprocess="0..1")
    for number, more in enumerate((True, False)):
        stn_infer.run(tmp_path / "theta.onnx", photos, tmp_path / str(number), with_theta=more)
    assert (tmp_path / "0/predictions-00000.csv").read_bytes() == (tmp_path / "1/predictions-00000.csv").read_bytes()


def test_overwrite(model: Path, photos: Path, tmp_path: Path) -> None:
    arguments = [
        "run",
        str(model),
        str(photos),
        "-o",
        str(tmp_path / "out"),
        "--save-images",
        str(tmp_path / "out/pics"),
    ]
    done = CliRunner().invoke(main, [*arguments, "--shard-rows", "1"])
    assert done.exit_code == 0 and f"pictures: {tmp_path}/out/pics" in done.stdout
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    (photos / "a/x.png").unlink()
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["ledger-00000.csv", "pics", "predictions-00000.csv", "run.json"]
    assert json.loads((tmp_path / "out/run.json").read_text())["samples"] == 2
    assert len(list((tmp_path / "out/pics").rglob("*.png"))) == 2 * 4
    (tmp_path / "out/mine.txt").write_text("mine")
    (tmp_path / "out/pics/mine.png").write_text("mine")
    before = tree(tmp_path / "out")
    refused = CliRunner().invoke(main, [*arguments, "--overwrite"])
    assert refused.exit_code == 1 and "mine.png" in refused.stderr
    (tmp_path / "out/pics/mine.png").unlink()
    refused = CliRunner().invoke(main, [*arguments, "--overwrite"])
    assert refused.exit_code == 1 and "other files than a job's (mine.txt)" in refused.stderr
    assert tree(tmp_path / "out") == {name: content for name, content in before.items() if name != "pics/mine.png"}


def test_refusals(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="give only one of them"):
        stn_infer.run(model, photos, out, resume=True, overwrite=True)
    with pytest.raises(UsageError, match="use --backend ort"):
        stn_infer.run("st-cnn-affine-rts", photos, out, backend="eager", save_images=tmp_path / "pics")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("a")
    with pytest.raises(OutputError, match="full is not empty"):
        stn_infer.run(model, photos, out, save_images=tmp_path / "full")
    write_pool(tmp_path / "flat.onnx")
    for option in ({"save_images": tmp_path / "pics"}, {"with_theta": True}):
        with pytest.raises(ModelError, match=r"no sampler of images|no spatial transformer is fused"):
            stn_infer.run(tmp_path / "flat.onnx", photos, out, **option)  # type: ignore[arg-type]
    assert not out.exists()


def test_a_file_with_its_preprocessing_has_the_same_crops(model: Path, photos: Path, tmp_path: Path) -> None:
    stn_infer.optimize(model, tmp_path / "embedded.onnx", embed_preprocess=True, source_size=(HEIGHT, WIDTH))
    for name, path in (("plain", model), ("embedded", tmp_path / "embedded.onnx")):
        stn_infer.run(path, photos, tmp_path / name, save_images=tmp_path / f"{name}-pics")
    for folder in ("warped_1", "warped_2"):
        assert tree(tmp_path / "plain-pics" / folder) == tree(tmp_path / "embedded-pics" / folder)
    proto = onnx.load(tmp_path / "embedded.onnx")
    assert sum(node.op_type == "SpatialTransformer" for node in proto.graph.node) == 3


def test_the_outline_lies_in_the_picture_that_the_graph_crops(model: Path, tmp_path: Path) -> None:
    high, wide = 2 * HEIGHT, 2 * WIDTH
    options = {"preprocess": f"crop={HEIGHT}x{WIDTH}", "embed_preprocess": True, "source_size": (high, wide)}
    stn_infer.optimize(model, tmp_path / "crop.onnx", **options)  # type: ignore[arg-type]
    Image.new("RGB", (wide, high)).save(tmp_path / "black.png")
    stn_infer.run(tmp_path / "crop.onnx", tmp_path / "black.png", tmp_path / "out", save_images=tmp_path / "pics")
    scale = 256 // high
    rows, columns = outlined(pixels(tmp_path / "pics/inputs/0000000-black.png")[: high * scale])
    last = ((HEIGHT / 2 + HEIGHT / 2 - 0.5) * scale, (WIDTH / 2 + WIDTH / 2 - 0.5) * scale)
    assert (rows.max(), columns.max()) == pytest.approx(last, abs=2)
