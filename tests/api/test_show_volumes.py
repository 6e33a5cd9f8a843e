"""Volumes: slices through the sampled box, and where the box lies in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stn_infer.api.show import look, show
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine
from tests.api.test_show import save


class Zoom(nn.Module):
    """Samples a box of half the volume's size whose center's x is the volume's mean; two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(1, 12)
        with torch.no_grad():
            self.place.weight.zero_()
            self.place.weight[3] = 1.0
            self.place.bias.copy_(torch.tensor([0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0]))
        self.warp = SpatialTransformer(None, Affine(rank=3), (3, 4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3, 4))[:, None]
        return self.warp(x, self.place(mean)).flatten(1)[:, :2]


@pytest.fixture(scope="module")
def zoom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "zoom.onnx", Zoom(), (1, 6, 8, 10))


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    path = tmp_path / "volumes.npy"
    np.save(path, np.random.default_rng(0).random((2, 1, 6, 8, 10), dtype=np.float32))
    return path


def test_points_are_where_the_model_samples(zoom: Path, volumes: Path) -> None:
    means = np.load(volumes).mean(axis=(1, 2, 3, 4))
    for item, mean in zip(look(zoom, [volumes]), means, strict=True):
        (warp,) = item.warps
        assert warp.straight and warp.source.shape == (1, 6, 8, 10) and warp.warped.shape == (1, 3, 4, 5)
        assert warp.points.shape == (3, 4, 5, 3)
        # output centers are (2 i + 1) / n - 1 in the output's box, half as wide as the volume
        first = ((np.array([1 / 5, 1 / 4, 1 / 3]) - 1) / 2 + [mean, 0, 0] + 1) / 2 * [10, 8, 6] - 0.5
        np.testing.assert_allclose(warp.points[0, 0, 0], first, atol=1e-5)
        assert item.prediction in ("0", "1")


def test_one_volume_has_no_batch_axis(zoom: Path, volumes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.load(volumes)[1])
    (item,) = look(zoom, [tmp_path / "one.npy"])
    np.testing.assert_array_equal(item.warps[0].source, np.load(volumes)[1])


def test_a_picture_of_slices_and_a_moving_one(zoom: Path, volumes: Path, tmp_path: Path) -> None:
    show(zoom, [volumes], tmp_path / "still.png", count=1)
    show(zoom, [volumes], tmp_path / "moving.gif", count=1, frames=3)
    with Image.open(tmp_path / "still.png") as still, Image.open(tmp_path / "moving.gif") as moving:
        assert still.height > 4 * still.width, "six panels below each other"
        assert moving.height > 4 * moving.width and moving.n_frames == 3  # type: ignore[attr-defined]
