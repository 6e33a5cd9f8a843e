"""Files that preprocess pictures themselves, in every command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

import stn_infer
from stn_infer.cli.main import main
from stn_infer.errors import UsageError
from stn_infer.preprocess.rule import Embedded
from stn_infer.proto.session import open_session
from tests.api.test_metadata import write_pool

RULE = "imagenet,size=9x8,resize=shortest,crop=6x8,interpolation=bicubic"
SIZE = (30, 41)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model alone, with its preprocessing at a size, and with that of resized pictures."""
    folder = tmp_path_factory.mktemp("models")
    plain = write_pool(folder / "plain.onnx")
    model = onnx.load(plain)
    weights = np.float32([[1, -1], [-0.6, 0.6], [-0.3, 0.3]])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weight"))
    onnx.save(model, plain)
    stn_infer.write_metadata(plain, preprocess=RULE, labels=["cat", "dog"], activation="softmax")
    sized, free = folder / "sized.onnx", folder / "free.onnx"
    stn_infer.optimize(plain, sized, embed_preprocess=True, source_size=SIZE)
    stn_infer.optimize(plain, free, embed_preprocess=True)
    return {"plain": plain, "sized": sized, "free": free}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(6):
        path = folder / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        shade = rng.integers(40, 216, 3)
        Image.fromarray((shade + rng.integers(-40, 40, (*SIZE, 3))).astype(np.uint8)).save(path)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions-00000.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["sized", "free"])
def test_run_gives_the_same(files: dict[str, Path], photos: Path, tmp_path: Path, name: str) -> None:
    for each in ("plain", name):
        assert stn_infer.run(files[each], photos, tmp_path / each, batch_size=4).ok == 6
    wanted, found = rows(tmp_path / "plain"), rows(tmp_path / name)
    assert [row["label"] for row in found] == [row["label"] for row in wanted]
    assert {row["label"] for row in wanted} == {"cat", "dog"}
    limit = 1e-6 if name == "free" else 2 / 255 / 0.2  # a level of Pillow, through the mean and std of a color
    for one, other in zip(wanted, found, strict=True):
        assert float(one["scores_0"]) == pytest.approx(float(other["scores_0"]), abs=limit)


def test_the_file_alone_takes_pictures(files: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    session = open_session(files["sized"])
    (given,) = session.raw.get_inputs()
    assert (given.type, given.shape[1:]) == ("tensor(uint8)", [*SIZE, 3])
    pictures = [np.asarray(Image.open(path)) for path in sorted(photos.rglob("*.png"))]
    scores = session.run({given.name: np.stack(pictures)})[0]
    stn_infer.run(files["sized"], photos, tmp_path / "out")
    assert scores.argmax(axis=1).tolist() == [int(row["prediction"]) for row in rows(tmp_path / "out")]


def test_metadata_say_it(files: dict[str, Path]) -> None:
    assert stn_infer.read_metadata(files["sized"]).embedded == Embedded(SIZE)
    assert stn_infer.read_metadata(files["free"]).embedded == Embedded()
    lines = CliRunner().invoke(main, ["metadata", str(files["sized"])]).stdout.splitlines()
    assert lines[1] == "  in the graph: the input is uint8 [N, H, W, C], pictures of 30x41 pixels"
    assert (
        "that the caller has resized and cropped" in CliRunner().invoke(main, ["metadata", str(files["free"])]).stdout
    )
    printed = json.loads(CliRunner().invoke(main, ["metadata", str(files["sized"]), "--json"]).stdout)
    assert printed["embedded"] == {"size": [*SIZE]}


def test_eval_predictor_and_verify(files: dict[str, Path], photos: Path) -> None:
    plain, sized = (stn_infer.evaluate(files[name], photos).classification for name in ("plain", "sized"))
    assert plain is not None and sized is not None and plain.confusion == sized.confusion
    paths = sorted(photos.rglob("*.png"))
    with stn_infer.Predictor(files["plain"]) as one, stn_infer.Predictor(files["sized"]) as other:
        assert [each.label for each in one(paths)] == [each.label for each in other(paths)]
    assert stn_infer.verify(files["sized"], backends=["ort"]).passed
    assert stn_infer.verify(files["sized"], backends=["ort"], inputs=[photos]).passed


def test_refusals(files: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preprocessing in its graph, so --preprocess cannot change the values"):
        stn_infer.run(files["sized"], photos, tmp_path / "out", preprocess="0..1")
    with pytest.raises(UsageError, match="in its graph, which stays as it is"):
        stn_infer.write_metadata(files["sized"], tmp_path / "x.onnx", preprocess="0..1")
    with pytest.raises(UsageError, match="in its graph already"):
        stn_infer.optimize(files["sized"], tmp_path / "x.onnx", embed_preprocess=True)
    with pytest.raises(UsageError, match="omit --source"):
        stn_infer.verify(files["sized"], source="st-cnn")
    unknown = write_pool(tmp_path / "unknown.onnx")
    with pytest.raises(UsageError, match="needs --preprocess: nothing says how pictures become inputs"):
        stn_infer.optimize(unknown, tmp_path / "x.onnx", embed_preprocess=True)
    with pytest.raises(UsageError, match="give both"):
        stn_infer.optimize(unknown, tmp_path / "x.onnx", source_size=(4, 4))
    assert not (tmp_path / "x.onnx").exists()
    Image.new("RGB", (8, 6)).save(tmp_path / "small.png")
    summary = stn_infer.run(files["sized"], tmp_path / "small.png", tmp_path / "out")
    assert summary.failures[0][1].startswith(f"{tmp_path}/small.png is 6x8 (height x width), the model takes 30x41")


def test_damaged_metadata_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    for damage in ('{"size": [0, 4]}', '{"size": "x"}', "[]"):
        model = onnx.load(files["sized"])
        next(entry for entry in model.metadata_props if entry.key == "stn_infer.embedded").value = damage
        onnx.save(model, tmp_path / "damaged.onnx")
        with pytest.raises(UsageError, match="metadata is damaged"):
            stn_infer.read_metadata(tmp_path / "damaged.onnx")
