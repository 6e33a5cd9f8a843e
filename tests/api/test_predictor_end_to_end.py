"""From training to labels: drawn signs, checkpoints as people save them, and three ways to predict that agree."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import stn_infer
from stn_infer.arrays import Array
from stn_infer.cli.main import main

pytestmark = pytest.mark.slow  # it trains, and exports three times
HERE = "tests.api.test_predictor_end_to_end"
SIGNS = ("stop", "yield", "no entry", "priority")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 24


class Signs(nn.Module):
    """A spatial transformer before a small network; theta is an affine map that starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.localization = nn.Sequential(
            nn.AvgPool2d(4), nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 6)
        )
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(5)
        )
        self.scores = nn.Sequential(nn.Dropout(0.1), nn.Linear(200, len(SIGNS)))
        last = self.localization[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, image: Tensor) -> Tensor:
        theta = self.localization(image).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [image.shape[0], 3, SIZE, SIZE], align_corners=False)
        found = self.features(F.grid_sample(image, grid, align_corners=False))
        scores: Tensor = self.scores(found.flatten(1))
        return scores


def draw(kind: int, generator: np.random.Generator) -> Image.Image:
    """A sign somewhere on a gray picture, turned a little."""
    picture = Image.new("RGB", (40, 36), tuple(generator.integers(90, 170, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    x, y, radius = (*generator.uniform((14, 12), (26, 24)), generator.uniform(8, 12))
    turn = generator.uniform(-0.2, 0.2)

    def polygon(corners: int, start: float) -> list[tuple[float, float]]:
        angles = [start + turn + 2 * math.pi * corner / corners for corner in range(corners)]
        return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]

    if kind == 0:
        pen.polygon(polygon(8, math.pi / 8), fill=(200, 20, 30), outline=(255, 255, 255))
    elif kind == 1:
        pen.polygon(polygon(3, math.pi / 2), fill=(250, 250, 250), outline=(200, 20, 30), width=3)
    elif kind == 2:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(200, 20, 30))
        pen.rectangle((x - radius * 0.7, y - 2, x + radius * 0.7, y + 2), fill=(255, 255, 255))
    else:
        pen.polygon(polygon(4, 0), fill=(245, 190, 20), outline=(255, 255, 255), width=2)
    return picture


def as_input(picture: Image.Image) -> Array:
    """What someone who knows the training writes by hand."""
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32) / 255
    values: Array = ((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)
    return values


def make() -> nn.Module:
    """A factory, which has other weights each time that it is called with another seed."""
    return Signs()


def trained() -> Signs:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    kinds = np.arange(512) % len(SIGNS)
    images = torch.from_numpy(np.stack([as_input(draw(kind, generator)) for kind in kinds]))
    classes = torch.from_numpy(kinds)
    module = Signs()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(100):
        rows = torch.from_numpy(generator.integers(0, len(kinds), 64))
        optimizer.zero_grad()
        F.cross_entropy(module(images[rows]), classes[rows]).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def module() -> Signs:
    return trained()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signs that the training has not seen."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(1)
    for index in range(40):
        draw(index % len(SIGNS), generator).save(folder / f"{index:02}.png")
    return folder


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    prefixed = {f"model.{name}": value for name, value in state.items()}
    return {
        "state_dict": prefixed,
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
        "hyper_parameters": argparse.Namespace(lr=3e-3),
    }


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    module = Signs()
    module.load_state_dict(state)
    return dict(AveragedModel(module).state_dict())


def other(state: dict[str, Any]) -> dict[str, Any]:
    """Weights that predict something else."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


#: What is saved, and whether it is one that the averaged weights are taken of.
STYLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda state: state,
    "wrapped": lambda state: {"state_dict": state, "epoch": 3},
    "with the optimizer": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "with its arguments": lambda state: {"model": state, "args": argparse.Namespace(lr=3e-3, name="signs")},
    "Lightning": lightning,
    "AveragedModel": averaged,
    "averaged beside raw": lambda state: {"model": other(state), "model_ema": state},
    "counters of thop": lambda state: {**state, "total_ops": torch.zeros(1), "features.total_params": torch.zeros(1)},
}
EXPORTED = ("plain", "averaged beside raw")  # from the command line; the others are compared as they are loaded


def test_every_checkpoint_style_has_the_trained_weights(module: Signs, tmp_path: Path) -> None:
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    paths = {style: tmp_path / f"{index}.pt" for index, style in enumerate(STYLES)}
    for style, path in paths.items():
        torch.save(STYLES[style](state), path)
    paths["safetensors"] = tmp_path / "weights.safetensors"
    save_file(state, paths["safetensors"])
    for style, path in paths.items():
        found = stn_infer.load_source(f"{HERE}:make", weights=path, input_shapes=[(3, SIZE, SIZE)]).module.state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items()), style


def of_onnxruntime(model: Path, photos: Path, *, embedded: bool = False) -> list[str]:
    """Without stn-infer; a file with its preprocessing takes the pixels as they are."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    pictures = [Image.open(path) for path in sorted(photos.iterdir())]
    images = np.stack([np.asarray(picture) if embedded else as_input(picture) for picture in pictures])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    return [SIGNS[index] for index in scores.argmax(axis=1)]


def of_the_command(model: Path, photos: Path, output: Path) -> tuple[list[str], str]:
    done = CliRunner().invoke(main, ["run", str(model), str(photos), "-o", str(output)])
    assert done.exit_code == 0, done.output
    with (output / "predictions-00000.csv").open(newline="") as file:
        return [row["label"] if "label" in row else row["prediction"] for row in csv.DictReader(file)], done.stderr


def of_the_predictor(model: Path, photos: Path) -> list[str | None]:
    with stn_infer.Predictor(model) as predictor:
        return [it.label for it in predictor(photos)]


def test_from_training_to_labels(module: Signs, photos: Path, tmp_path: Path) -> None:
    """A module, and checkpoints from the command line: three ways to predict give the same labels."""
    rule = f"imagenet,size={SIZE}x{SIZE}"
    truth = [SIGNS[index % len(SIGNS)] for index in range(40)]
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    labels = tmp_path / "signs.txt"
    labels.write_text("\n".join(SIGNS))
    files = {"module": tmp_path / "module.onnx"}
    given = torch.from_numpy(np.stack([as_input(Image.open(path)) for path in sorted(photos.iterdir())][:4]))
    stn_infer.export(module, files["module"], example_inputs=given, preprocess=rule, labels=SIGNS)
    files["embedded"] = tmp_path / "embedded.onnx"
    shapes, size = (3, SIZE, SIZE), (36, 40)
    stored: dict[str, Any] = {"preprocess": rule, "labels": SIGNS, "embed_preprocess": True, "source_size": size}
    stn_infer.export(module, files["embedded"], input_shapes=shapes, **stored)
    assert module.training
    for style in EXPORTED:
        checkpoint, files[style] = tmp_path / f"{len(files)}.pt", tmp_path / f"{len(files)}.onnx"
        torch.save(STYLES[style](state), checkpoint)
        source = [f"{HERE}:make", "--weights", str(checkpoint), "--input-shape", f"3,{SIZE},{SIZE}"]
        options = ["--preprocess", rule, "--labels", str(labels), "-o", str(files[style])]
        done = CliRunner().invoke(main, ["export", *source, *options])
        assert done.exit_code == 0 and "assume" not in done.output, done.output
    for style, path in files.items():
        expected = of_onnxruntime(path, photos, embedded=style == "embedded")
        assert sum(map(str.__eq__, expected, truth)) >= 36, style
        found, warnings = of_the_command(path, photos, tmp_path / f"predictions of {style}")
        assert found == expected and "warning" not in warnings, style
        assert of_the_predictor(path, photos) == expected, style

    # without the preset the predictions are others, and the warning is there
    bare = tmp_path / "bare.onnx"
    report = stn_infer.export(module, bare, input_shapes=(3, SIZE, SIZE))
    assert any("does not say what its pixels mean" in note for note in report.notes)
    done = CliRunner().invoke(
        main, ["run", str(bare), str(photos), "-o", str(tmp_path / "bare"), "--preprocess", f"size={SIZE}"]
    )
    assert done.exit_code == 0 and "warning: nothing says what the model takes" in done.stderr
