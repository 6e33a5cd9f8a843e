"""Which inputs ``show`` draws: right and wrong predictions, a random choice, and inputs that cannot be read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from stn_infer.api.metadata import write_metadata
from stn_infer.api.show import look, show
from stn_infer.cli.show import command
from stn_infer.errors import InputError, UsageError
from stn_infer.fusion.fuse import fuse
from stn_infer.layers import SpatialTransformer
from stn_infer.torch_export.plain import export_plain
from stn_infer.transforms import Translation


class Brightness(nn.Module):
    """The classes dark, gray and bright of images of any size, behind a transformer that leaves them as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(1, 2)
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)
        self.warp = SpatialTransformer(None, Translation(), (4, 6))
        self.score = nn.Linear(1, 3)
        with torch.no_grad():
            self.score.weight.copy_(torch.tensor([[-20.0], [0.0], [20.0]]))
            self.score.bias.copy_(torch.tensor([5.0, 0.0, -15.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))[:, None]
        return self.score(self.warp(x, self.place(mean)).mean((1, 2, 3))[:, None])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    fused, _ = fuse(export_plain(Brightness().eval(), [(1, 4, 6)]))
    onnx.save(fused, folder / "plain.onnx")
    names = ["dark", "gray", "bright"]
    write_metadata(
        folder / "plain.onnx", folder / "named.onnx", preprocess="gray,0..1", labels=names, activation="softmax"
    )
    return folder / "named.onnx"


def write(path: Path, value: int, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures in folders of their classes; the fourth one of ``bright`` is dark."""
    for name, value in (("dark", 10), ("gray", 128), ("bright", 240)):
        for index in range(3):
            write(tmp_path / "photos" / name / f"{index}.png", value + index)
    write(tmp_path / "photos" / "bright" / "3.png", 5)
    return tmp_path / "photos"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)


def test_class_folders_are_the_truth(model: Path, photos: Path, tmp_path: Path) -> None:
    done = invoke(model, photos, "-o", tmp_path / "picture.png", "--count", "10")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[3] == "3.png: dark 99% (wrong: bright)"
    assert done.stdout.splitlines()[4] == "0.png: dark 99% (right)"
    assert "9 of 10 predictions are right" in done.stdout.splitlines()
    looks = look(model, [photos], count=10)
    assert [it.is_right for it in looks] == [True] * 3 + [False] + [True] * 6
    assert [it.truth for it in looks] == ["bright"] * 4 + ["dark"] * 3 + ["gray"] * 3


def test_folders_that_are_no_classes_are_no_truth(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "dark").rename(photos / "2026")
    assert {it.truth for it in look(model, [photos], count=10)} == {None}
    done = invoke(model, photos, "-o", tmp_path / "picture.png")
    assert "(right)" not in done.stdout and "(wrong" not in done.stdout and "are right" not in done.stdout
    (photos / "2026").rename(photos / "dark")
    write(photos / "loose.png", 0)
    assert {it.truth for it in look(model, [photos], count=10)} == {None}


def test_a_table_is_the_truth(model: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nphotos/dark/0.png,dark\nphotos/gray/1.png,bright\n")
    assert [it.is_right for it in look(model, [table])] == [True, False]
    table.write_text("path,label\nphotos/dark/0.png,dim\n")
    with pytest.raises(
        InputError, match=r"labels\.csv has the unknown class 'dim'; the model's classes are dark, gray"
    ):
        look(model, [table])
    table.write_text("path,left,top,right,bottom\nphotos/dark/0.png,0,0,2,2\n")
    assert [it.truth for it in look(model, [table])] == [None]


def test_a_random_choice_says_its_seed(model: Path, photos: Path, tmp_path: Path) -> None:
    chosen = [it.name + str(it.truth) for it in look(model, [photos], sample=4, seed=7)]
    names = [f"{it.name}{it.truth}" for it in look(model, [photos], count=10)]
    assert chosen == [names[at] for at in sorted(random.Random(7).sample(range(10), 4))]
    assert chosen != [it.name + str(it.truth) for it in look(model, [photos], sample=4)]
    done = invoke(model, photos, "-o", tmp_path / "picture.png", "--sample", "4")
    assert "4 of 10 inputs, chosen at random with seed 0" in done.stdout.splitlines()
    again = show(model, photos, tmp_path / "again.png", sample=4, seed=0)
    assert again.sampled == (10, 0)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    assert len(look(model, [photos], sample=64)) == 10
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"photos/dark/{index % 3}.png,dark\n" for index in range(9)))
    assert show(model, table, tmp_path / "again.png", sample=2, seed=5).sampled == (9, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 2, "sample": 2}, "give one of them"),
        ({"seed": 1}, "give --sample N too"),
        ({"count": 0}, "at least 1 input is drawn, not 0"),
        ({"sample": -1}, "at least 1 input is drawn, not -1"),
    ],
)
def test_numbers_that_do_not_go_together(model: Path, photos: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        look(model, [photos], **options)  # type: ignore[arg-type]


def test_a_broken_file_costs_its_own_column(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "dark" / "1.png").write_bytes(b"not an image")
    output = tmp_path / "picture.png"
    done = invoke(model, photos / "dark", "-o", output)
    assert done.exit_code == 4
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["0.png", "2.png", f"wrote {output}"]
    assert done.stderr.splitlines() == ["failed: 1.png is not an image that Pillow can read"]
    report = show(model, photos / "dark", output)
    assert [it.name for it in report.looks] == ["0.png", "1.png", "2.png"]
    assert report.failures == (("1.png", "1.png is not an image that Pillow can read"),)
    assert report.looks[1].warps == () and report.looks[1].is_right is None
    moving = show(model, photos / "dark", tmp_path / "moving.webp", frames=3)
    assert len(moving.failures) == 1


def test_all_broken_files_are_an_error(model: Path, tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"0\.png is not an image that Pillow can read \(and 2 more inputs\)"):
        show(model, [tmp_path / f"{index}.png" for index in range(3)], tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_scores_that_are_not_numbers_cost_their_own_prediction(model: Path, tmp_path: Path) -> None:
    images = np.full((2, 1, 4, 6), 0.9, np.float32)
    images[0, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", images)
    assert [it.prediction for it in look(model, [tmp_path / "x.npy"])] == ["", "bright"]


def test_inputs_of_several_sizes_have_panels_of_their_own_sizes(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    for axis, name in ((2, "height"), (3, "width")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(proto, tmp_path / "any.onnx")
    paths = [write(tmp_path / "a.png", 10), write(tmp_path / "b.png", 240, (30, 20)), write(tmp_path / "c.png", 128)]
    report = show(tmp_path / "any.onnx", paths, tmp_path / "picture.png")
    assert [it.prediction for it in report.looks] == ["dark", "bright", "gray"]
    assert [it.warps[0].source.shape for it in report.looks] == [(1, 4, 6), (1, 20, 30), (1, 4, 6)]
