from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stn_infer.backends.base import TensorSpec
from stn_infer.data.inputs import Sample
from stn_infer.data.loader import Loader, resolve_preprocess
from stn_infer.errors import UsageError
from stn_infer.preprocess.rule import Preprocess

FLOAT32 = np.dtype(np.float32)
GRAY = TensorSpec("input", (None, 1, 4, 5), FLOAT32)
RGB = TensorSpec("input", (None, 3, None, None), FLOAT32)
VECTOR = TensorSpec("scale", (None, 2), FLOAT32)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 4, 5), dtype=np.uint8)


def test_a_batch_keeps_its_order_and_only_bad_rows_fail(tmp_path: Path, pixels: np.ndarray) -> None:
    samples = []
    for i in range(6):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
        samples.append(Sample(f"{i}", str(tmp_path / f"{i}.png")))
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "1.png")
    (tmp_path / "4.png").write_bytes(b"")
    samples[5] = Sample("5", "", error="known before")
    batch = Loader([GRAY], Preprocess()).load(samples)
    assert {row: error.rpartition("/")[2][:5] for row, error in batch.errors.items()} == {
        1: "1.png",
        4: "4.png",
        5: "known",
    }
    (group,) = batch.groups
    assert group.rows == (0, 2, 3)
    assert group.inputs["input"].dtype == np.float32
    assert np.allclose(group.inputs["input"][:, 0], pixels[[0, 2, 3]] / 255.0)


def test_large_and_small_files_come_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spec = TensorSpec("input", (None, 1, 64, 64), FLOAT32)
    pictures = [rng.integers(0, 256, (64, 64), dtype=np.uint8) if i % 2 else np.full((64, 64), i) for i in range(6)]
    samples = []
    for i, picture in enumerate(pictures):
        path = tmp_path / f"{i}.png"
        Image.fromarray(picture.astype(np.uint8)).save(path)
        samples.append(Sample(str(i), str(path)))
    assert {Path(sample.path).stat().st_size > 3000 for sample in samples} == {True, False}
    (group,) = Loader([spec], Preprocess(scale=1.0)).load(samples).groups
    assert np.array_equal(group.inputs["input"][:, 0], np.stack(pictures))


def test_arrays_and_images_may_share_a_batch(tmp_path: Path, pixels: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", pixels[:3, None].astype(np.float32) / 255)
    Image.fromarray(pixels[3]).save(tmp_path / "x.png")
    samples = [
        Sample("a", str(tmp_path / "x.npy"), 2),
        Sample("b", str(tmp_path / "x.png")),
        Sample("c", str(tmp_path / "x.npy"), 0),
    ]
    batch = Loader([GRAY], Preprocess()).load(samples)
    values = {row: group.inputs["input"][i, 0] for group in batch.groups for i, row in enumerate(group.rows)}
    for row, source in ((0, 2), (1, 3), (2, 0)):
        assert np.allclose(values[row], pixels[source] / 255.0)


def test_images_of_several_sizes_make_groups(tmp_path: Path) -> None:
    samples = []
    for i, size in enumerate([(4, 5), (6, 7), (4, 5)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), str(tmp_path / f"{i}.png")))
    batch = Loader([RGB], Preprocess("rgb")).load(samples)
    assert [(group.rows, group.inputs["input"].shape) for group in batch.groups] == [
        ((0, 2), (2, 3, 5, 4)),
        ((1,), (1, 3, 7, 6)),
    ]


def test_a_half_precision_model_gets_half_precision(tmp_path: Path, pixels: np.ndarray) -> None:
    spec = TensorSpec("input", (None, 1, 4, 5), np.dtype(np.float16))
    Image.fromarray(pixels[0]).save(tmp_path / "x.png")
    (group,) = Loader([spec], Preprocess()).load([Sample("x", str(tmp_path / "x.png"))]).groups
    assert group.inputs["input"].dtype == np.float16


def test_the_default_preprocessing() -> None:
    assert resolve_preprocess([GRAY], None, None) == Preprocess("gray")
    assert resolve_preprocess([RGB], None, None) == Preprocess("rgb")
    assert resolve_preprocess([VECTOR], None, None) is None
    assert resolve_preprocess([VECTOR, GRAY], None, None) == Preprocess("gray")


def test_options_override_the_file_and_the_file_overrides_the_default() -> None:
    own = Preprocess("rgb", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    assert resolve_preprocess([RGB], own, None) == own
    assert resolve_preprocess([RGB], own, "scale=1") == Preprocess("rgb", None, 1.0, own.mean, own.std)
    assert resolve_preprocess([RGB], own, Preprocess("rgb")) == Preprocess("rgb")
    any_color = TensorSpec("input", (None, None, None, None), FLOAT32)
    assert resolve_preprocess([any_color], own, "gray,size=8x9") == Preprocess("gray", (8, 9))


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        (GRAY, "rgb", "takes 1 channel, the preprocessing gives rgb"),
        (GRAY, "size=5x4", "takes images of 4x5, the preprocessing makes them 5x4"),
        (VECTOR, "gray", "takes no images"),
        (GRAY, "color=blue", "'gray' or 'rgb'"),
        (GRAY, "hue=3", "unknown preprocess key"),
    ],
)
def test_preprocessing_that_does_not_match_the_model(spec: TensorSpec, given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_preprocess([spec], None, given)


def test_rows_and_images_of_one_size_make_one_group_in_order(tmp_path: Path, pixels: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", pixels[:10])
    samples = [Sample(str(row), str(tmp_path / "x.npy"), row) for row in (3, 4, 5, 9, 9, 0)]
    for i in (20, 21):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
        samples.insert(2, Sample(str(i), str(tmp_path / f"{i}.png")))
    samples.append(Sample("gone", str(tmp_path / "x.npy"), 10))
    batch = Loader([GRAY], Preprocess(scale=1.0)).load(samples)
    (group,) = batch.groups
    assert group.rows == (0, 1, 2, 3, 4, 5, 6, 7)
    assert np.array_equal(group.inputs["input"][:, 0], pixels[[3, 4, 21, 20, 5, 9, 9, 0]])
    assert list(batch.errors) == [8] and "has changed" in batch.errors[8]


def test_many_images_of_a_model_with_dynamic_sizes(tmp_path: Path) -> None:
    rng, samples, sources = np.random.default_rng(0), [], []
    for i in range(23):
        sources.append(rng.integers(0, 256, (200, 90, 3) if i % 3 else (5, 6, 3), dtype=np.uint8))
        Image.fromarray(sources[i]).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), str(tmp_path / f"{i}.png")))
    loader = Loader([RGB], Preprocess("rgb", scale=1.0))
    for _ in range(3):  # memory is used again
        groups = [loader.prepare(group) for group in loader.read(samples).groups]
        for group in groups:
            assert np.array_equal(group.inputs["input"], [sources[row].transpose(2, 0, 1) for row in group.rows])
            loader.release(group)
        assert sorted(row for group in groups for row in group.rows) == list(range(23))
