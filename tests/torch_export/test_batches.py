"""Inputs with batches of their own: found, exported, run by every backend; no boxes give no rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stn_infer
from stn_infer.backends.base import Backend
from stn_infer.backends.eager import EagerBackend
from stn_infer.backends.ort import OrtBackend
from stn_infer.data.batches import load_for_file
from stn_infer.errors import InputError
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.batches import find_batch_axes

IMAGE, BOX = (2, 8, 9), (5,)


class Boxes(nn.Module):
    """Crops: each box has the number of its image, and x0, y0, x1, y1 in [-1, 1]."""

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        number, corners = boxes[:, 0].long(), boxes[:, 1:]
        half, center = (corners[:, 2:] - corners[:, :2]) / 2, (corners[:, 2:] + corners[:, :2]) / 2
        theta = torch.stack([half[:, :1] * torch.tensor([1.0, 0]), half[:, 1:] * torch.tensor([0, 1.0])], 1)
        theta = torch.cat([theta, center[:, :, None]], 2)
        grid = F.affine_grid(theta, [boxes.shape[0], 2, 4, 4], align_corners=False)
        return F.grid_sample(image[number], grid, align_corners=False).amax((2, 3))


class Tied(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a + b + c.mean()


class Pairs(nn.Module):
    """Two of three share an axis that is not the first one's."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b * c).sum(1, keepdim=True) * a.mean()


def loaded(module: nn.Module, *shapes: tuple[int, ...]) -> LoadedModel:
    return LoadedModel("net", module.eval(), shapes, ModelMetadata(), "factory")


@pytest.mark.parametrize(
    ("module", "shapes", "axes"),
    [
        (Boxes(), (IMAGE, BOX), ("batch", "y_batch")),
        (Tied(), ((3,), (3,), (3,)), ("batch", "batch", "z_batch")),
        (Pairs(), ((3,), (3,), (3,)), ("batch", "y_batch", "y_batch")),
        (nn.Bilinear(3, 3, 2), ((3,), (3,)), ()),
        (nn.Linear(3, 2), ((3,),), ()),
    ],
)
def test_axes(module: nn.Module, shapes: tuple[tuple[int, ...], ...], axes: tuple[str, ...]) -> None:
    assert find_batch_axes(loaded(module, *shapes), "xyz"[: len(shapes)]) == axes


def boxes(count: int, images: int) -> np.ndarray:  # type: ignore[type-arg]
    generator = np.random.default_rng(count)
    low = generator.uniform(-1, 0, (count, 2))
    found = np.concatenate([generator.integers(0, images, (count, 1)), low, low + generator.random((count, 2))], 1)
    return found.astype(np.float32)


def crops(image: np.ndarray, given: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Eager PyTorch, whose affine_grid refuses no boxes."""
    if not len(given):
        return np.zeros((0, 2), np.float32)
    found: Tensor = Boxes()(torch.from_numpy(image), torch.from_numpy(given))
    return found.numpy()


def test_images_and_boxes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.onnx"
    report = stn_infer.export("tests.torch_export.test_batches:Boxes", path, input_shapes=[IMAGE, BOX])
    assert report.inputs == ("image [batch, 2, 8, 9]", "boxes [boxes_batch, 5]")
    assert report.outputs == ("output [boxes_batch, 2]",)
    assert "the inputs have batches of their own: batch, boxes_batch" in report.notes
    image = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype(np.float32)
    backends: list[Backend] = [OrtBackend(path, threads=1, plugin=False), EagerBackend(loaded(Boxes(), IMAGE, BOX))]
    if stn_infer.plugin.info().onnxruntime:
        backends.append(OrtBackend(path, threads=1, plugin=True))
    for backend in backends:
        assert [spec.batch for spec in (*backend.inputs, *backend.outputs)] == ["batch", "boxes_batch", "boxes_batch"]
        for count in (10, 3, 1, 0):
            given = boxes(count, 2)
            (found,) = backend.run({"image": image, "boxes": given}).values()
            np.testing.assert_allclose(found, crops(image, given), atol=1e-5)
        with pytest.raises(InputError, match="takes shape"):
            backend.run({"image": image, "boxes": boxes(3, 2)[:, :4]})
    rows = {"a": 5, "b": 0, "c": 3}
    files = {name: tmp_path / f"{name}.npz" for name in rows}
    for name, count in rows.items():
        np.savez(files[name], image=image * (count + 1), boxes=boxes(count, 2))
    summary = stn_infer.run(path, list(files.values()), tmp_path / "out", format="npz", batch_size=2)
    assert (summary.total, summary.ok) == (8, 8)
    (shard,) = (tmp_path / "out").glob("predictions*.npz")
    wanted = [crops(image * (count + 1), boxes(count, 2)) for count in rows.values()]
    np.testing.assert_allclose(np.load(shard)["output"], np.concatenate(wanted), atol=1e-4)
    # verify reads such a file as run does, although its boxes name images that a first row alone has not
    found = stn_infer.verify(
        path, inputs=[files["a"]], backends=["ort"], source="tests.torch_export.test_batches:Boxes"
    )
    assert found.passed and found.reference == "float64"
    onnx_only = tmp_path / "other.onnx"
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, onnx_only)
    found = stn_infer.verify(onnx_only, inputs=[files["a"], files["c"]], backends=["ort"])
    assert found.passed and found.reference == "float64" and not any("cannot be evaluated" in it for it in found.notes)
    calibration = load_for_file([files["a"], files["c"]], model, None, most=32)
    assert calibration.samples == 8
    assert [batch["boxes"].shape for batch in calibration.batches] == [(5, 5), (3, 5)]
