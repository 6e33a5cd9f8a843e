"""The samples of a model whose inputs do not share one batch axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from stn_infer.api.bench import resolve_case
from stn_infer.benchmarking.prepare.inputs import Feeds
from stn_infer.benchmarking.prepare.references import file_reference
from stn_infer.benchmarking.request import Case
from tests.support.batch_axes import arrays_of, file_of, output_of


class Boxes(nn.Module):
    """Samples the mean of some images at each of the boxes, whose number is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        theta = self.head(boxes).view(-1, 2, 3)
        size = [len(boxes), *images.shape[1:]]
        grid = torch.nn.functional.affine_grid(theta, size, align_corners=False)
        mean = images.mean(0, keepdim=True).expand(size)
        return torch.nn.functional.grid_sample(mean, grid, align_corners=False)


def feeds_of(kind: str, folder: Path, *inputs: Path) -> Feeds:
    file = folder / "m.onnx"
    onnx.save(file_of(kind), file)
    rule = file_reference(file, Case(str(file)))[-1]
    return Feeds(rule, file, [str(path) for path in inputs] or None, 0)


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_only_inputs_with_samples_are_repeated(kind: str, tmp_path: Path) -> None:
    arrays = arrays_of(kind, 3)
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    feeds = feeds_of(kind, tmp_path, tmp_path / "s.npz")
    assert feeds.described == "3 samples of your own"
    batch = dict(zip(arrays, feeds.batch(5), strict=True))
    per_sample = "theta" if kind == "own" else "image"
    for name, values in arrays.items():
        np.testing.assert_array_equal(batch[name], values[[0, 1, 2, 0, 1]] if name == per_sample else values)
    assert output_of(kind, batch).shape == (5, 1, 4, 4)
    assert feeds.notes(5) == ["3 samples, fewer than batch 5: repeated in it"]


def test_samples_of_other_values_are_told(tmp_path: Path) -> None:
    for seed in (0, 1):
        np.savez(tmp_path / f"{seed}.npz", **arrays_of("own", 3 + seed, seed))  # type: ignore[arg-type]
    feeds = feeds_of("own", tmp_path, tmp_path / "0.npz", tmp_path / "1.npz")
    image, theta = feeds.batch(3)
    np.testing.assert_array_equal(image, arrays_of("own", 3)["image"])
    np.testing.assert_array_equal(theta, arrays_of("own", 3)["theta"])
    assert feeds.notes(3) == ["only 3 of 7 samples are fed: the others have another image"]


@pytest.mark.parametrize("size", [1, 4])
def test_made_up_values_have_the_files_shapes(size: int, tmp_path: Path) -> None:
    gain, theta, image = feeds_of("shared", tmp_path).batch(size)
    assert (gain.shape, theta.shape, image.shape) == ((), (2, 3), (size, 1, 4, 4))


def test_calibration_counts_samples_where_the_first_input_is_a_number(tmp_path: Path) -> None:
    found = feeds_of("shared", tmp_path).calibration(2, made_up=True)
    assert found is not None and found.samples == 64
    assert [values.shape for values in found.batches[0].values()] == [(), (2, 3), (64, 1, 4, 4)]


def test_the_axes_of_a_module_are_found(tmp_path: Path) -> None:
    loaded = resolve_case(Case(f"{__name__}:Boxes", input_shapes=((1, 8, 8), (4,)))).loaded
    assert loaded is not None
    images = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "s.npz", images=images, boxes=boxes)
    fed = Feeds(loaded, None, [str(tmp_path / "s.npz")], 0).batch(4)
    np.testing.assert_array_equal(fed[0], images)
    np.testing.assert_array_equal(fed[1], boxes[[0, 1, 2, 0]])
