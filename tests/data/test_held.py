"""Samples in memory: what an array of pixels is, and that nothing else is guessed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.held import Held, Layout, Samples
from stn_infer.data.inputs import Sample
from stn_infer.data.loader import Loader
from stn_infer.errors import UsageError
from stn_infer.preprocess.rule import Preprocess

FLOAT32 = np.dtype(np.float32)
RAW = "scale=1"


def loaded(given: object, rule: str = f"rgb,{RAW}", shape: Any = (3, None, None), **named: Any) -> tuple[Any, Any]:
    """The names with their inputs [C, H, W], or errors."""
    preprocess = Preprocess.parse(rule)
    loader = Loader([TensorSpec("image", (None, *shape), FLOAT32)], preprocess)
    samples = list(
        Samples(loader.arrays, [TensorSpec("image", (None, *shape), FLOAT32)], preprocess).of(given, **named)
    )
    batch = loader.load(samples)
    found: list[Any] = [batch.errors.get(index) for index in range(len(samples))]
    for group in batch.groups:
        for row, index in enumerate(group.rows):
            found[index] = group.inputs["image"][row]
    return [sample.name for sample in samples], found


def pixels(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


COLOR = pixels(5, 6, 3)


@pytest.mark.parametrize(
    ("given", "layout", "expected"),
    [
        (COLOR, None, [COLOR]),
        (COLOR.transpose(2, 0, 1), None, [COLOR]),
        (torch.from_numpy(COLOR.transpose(2, 0, 1).copy()), None, [COLOR]),
        (np.stack([COLOR, COLOR[::-1]]), None, [COLOR, COLOR[::-1]]),
        (np.stack([COLOR, COLOR[::-1]]).transpose(0, 3, 1, 2), None, [COLOR, COLOR[::-1]]),
        (COLOR[..., :1], None, [np.repeat(COLOR[..., :1], 3, 2)]),
        (COLOR[..., 0], None, [np.repeat(COLOR[..., :1], 3, 2)]),
        (np.dstack([COLOR, COLOR[..., :1]]), None, [COLOR]),  # alpha is dropped, as in a file
        (pixels(3, 5, 3), "HWC", [pixels(3, 5, 3)]),
        (pixels(3, 5, 3), "CHW", [pixels(3, 5, 3).transpose(1, 2, 0)]),
        (COLOR.transpose(2, 0, 1), "NHW", [np.repeat(COLOR[..., c : c + 1], 3, 2) for c in range(3)]),
        (pixels(0, 5, 6, 3), None, []),
    ],
)
def test_pixels(given: Any, layout: Layout | None, expected: list[Array]) -> None:
    names, found = loaded(given, layout=layout)
    assert names == [f"[{index}]" for index in range(len(expected))]
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(values, wanted.transpose(2, 0, 1))


def test_gray_pictures_without_an_axis_of_colors() -> None:
    batch = pixels(4, 5, 6)
    _, found = loaded(batch, f"gray,{RAW}", (1, 5, 6))
    np.testing.assert_array_equal(np.stack(found)[:, 0], batch)
    _, found = loaded(batch[:1], f"gray,{RAW}", (1, 5, 6))  # one of them, or one channel: the same
    np.testing.assert_array_equal(found[0], batch[:1])


def test_floating_point_is_an_input() -> None:
    given = np.random.default_rng(0).standard_normal((2, 3, 5, 6))
    for values in (given, torch.from_numpy(given).bfloat16(), given.astype(np.float16)):
        _, found = loaded(values, "imagenet", (3, 5, 6))
        assert all(it.dtype == np.float32 for it in found)
        np.testing.assert_allclose(np.stack(found), given, atol=0.02)
    names, found = loaded([given[0], given[1]], "imagenet", (3, 5, 6))
    assert names == ["[0]", "[1]"]
    np.testing.assert_array_equal(found[1], given[1].astype(np.float32))


@pytest.mark.parametrize(
    ("given", "rule", "message"),
    [
        (pixels(3, 5, 3), "rgb", "[0]: uint8 [3, 5, 3] can be HWC or CHW; say which with layout='HWC' or layout='CHW'"),
        (pixels(2, 3, 5, 3), "rgb", "[0]: uint8 [2, 3, 5, 3] can be NHWC or NCHW; say which"),
        (pixels(3, 5, 6), "gray", "[0]: uint8 [3, 5, 6] can be CHW or NHW; say which"),
        (pixels(4, 5, 6), "rgb", "[0]: uint8 [4, 5, 6] has no axis of 1, 3 or 4 colors at the end"),
        (pixels(2, 2, 5, 6), "rgb", "[0]: uint8 [2, 2, 5, 6] has no axis of 1, 3 or 4 colors at the end"),
        (pixels(7), "rgb", "[0]: pixels are [H, W], [H, W, C], [C, H, W] or a batch of these, found [7]"),
        (pixels(5, 6, 3).astype(int), "rgb", "[0]: an array of int64 is neither pixels, which are uint8, nor an input"),
        (pixels(5, 6, 3) > 9, "rgb", "[0]: an array of bool is neither pixels, which are uint8, nor an input"),
        (
            pixels(5, 6, 3) / 255,
            "rgb",
            "preprocessed already, [3, 5, 6] or [N, 3, 5, 6]; found [5, 6, 3]; pixels of any",
        ),
        (np.full((3, 5, 6), np.nan), "rgb", "[0]: expected finite numbers, found NaN or infinity"),
        (pixels(5, 7, 3), "rgb", "[0] is 5x7 (height x width), the model takes 5x6"),
        (pixels(0, 6, 3), "rgb", "[0]: its samples are empty"),
        ([None], "rgb", "[0]: expected a path, a picture, an array or a tensor, got NoneType"),
        ([[COLOR]], "rgb", "got list; give its elements one after the other"),
        (b"no picture", "rgb", "[0] is not an image that Pillow can read"),
        ("missing.png", "rgb", "no such file: missing.png"),
        ("missing/*.png", "rgb", "no file matches 'missing/*.png'"),
    ],
)
def test_what_cannot_be_used_is_one_sample_with_an_error(given: Any, rule: str, message: str) -> None:
    shape = (1 if rule == "gray" else 3, 5, 6)
    (_,), (found,) = loaded(given, rule, shape)
    assert isinstance(found, str) and message in found and "\n" not in found


def test_a_row_with_an_error_has_its_own_name() -> None:
    given = np.zeros((4, 3, 5, 6))
    given[2, 0, 0, 0] = np.inf
    _, found = loaded(given, shape=(3, 5, 6))
    assert found[2].startswith("[2]: expected finite numbers") and found[3].shape == (3, 5, 6)


@pytest.mark.parametrize(
    ("given", "layout", "message"),
    [
        (3, None, "expected a path, a picture, an array, a tensor or an iterable of these, got int"),
        (Image.Image, None, "got Image"),
        (COLOR, "HCW", "a layout is one of HW, HWC, CHW, NHW, NHWC, NCHW, not 'HCW'"),
    ],
)
def test_what_is_no_input_at_all(given: Any, layout: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loaded(given, layout=layout)


def test_a_layout_that_does_not_fit() -> None:
    _, found = loaded(COLOR, layout="NHWC")
    assert found == ["[0]: the layout NHWC has 4 axes, but the array is [5, 6, 3]"]
    _, found = loaded(COLOR.transpose(2, 0, 1), layout="HWC")
    assert found == ["[0]: HWC pixels have 1, 3 or 4 colors, found [1, 3, 5, 6] as [N, H, W, C]"]


def photograph(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels(24, 36, 3)).save(path, exif=exif, quality=95)


def test_every_way_to_give_a_picture_is_the_same(tmp_path: Path) -> None:
    """A photo is turned, resized and cropped as from its path; names are those of files where there are some."""
    paths = [tmp_path / f"{turn}.jpg" for turn in (1, 6, 8)]
    for path, turn in zip(paths, (1, 6, 8), strict=True):
        photograph(path, turn)

    def opened() -> Iterator[Image.Image]:
        for path in paths:
            with Image.open(path) as image:
                yield image  # closed when the next one is asked for

    rule, shape = "rgb,size=20,resize=shortest,crop=16x16", (3, 16, 16)
    names, expected = loaded(tmp_path, rule, shape)
    assert names == list(map(str, paths))
    ways = [paths, map(str, paths), [Image.open(path) for path in paths], opened(), (it.read_bytes() for it in paths)]
    for given in ways:
        names, found = loaded(given, rule, shape)
        assert names in (list(map(str, paths)), ["[0]", "[1]", "[2]"])
        np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    assert not np.array_equal(expected[0], expected[1])


def test_memory_of_an_iterator_may_be_used_again() -> None:
    frame = np.zeros((5, 6, 3), np.uint8)

    def frames() -> Iterator[Array]:
        for value in (10, 20, 30):
            frame[:] = value
            yield frame

    class Camera:
        def __iter__(self) -> Iterator[Array]:
            return frames()

    for given in (frames(), Camera()):
        _, found = loaded(given, shape=(3, 5, 6))
        assert [int(it.max()) for it in found] == [10, 20, 30]


def test_a_mixture_keeps_its_order(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.png", tmp_path / "rows.npy"
    Image.fromarray(COLOR).save(path)
    np.save(rows, np.stack([COLOR, COLOR]))
    stream = io.BytesIO()
    Image.fromarray(COLOR).save(stream, "png")
    given = [str(path), COLOR, "missing.png", rows, Image.fromarray(COLOR), np.stack([COLOR, COLOR]), stream.getvalue()]
    names, found = loaded(given, shape=(3, 5, 6))
    assert names == [str(path), "[1]", "missing.png", f"{rows}[0]", f"{rows}[1]", "[5]", "[6]", "[7]", "[8]"]
    assert found[2] == "no such file: missing.png"
    assert all(np.array_equal(it, COLOR.transpose(2, 0, 1)) for it in found[:2] + found[3:])


def test_a_mapping_is_for_a_model_of_several_inputs() -> None:
    specs = [TensorSpec("image", (None, 1, 2, 2), FLOAT32), TensorSpec("scale", (None, 1), FLOAT32)]
    loader = Loader(specs, None)
    samples = Samples(loader.arrays, specs, None)
    given = list(samples.of({"scale": torch.ones(3, 1), "image": np.zeros((3, 1, 2, 2), np.float64)}))
    assert [it.row for it in given] == [0, 1, 2] and all(isinstance(it, Held) for it in given)
    (group,) = loader.load(given).groups
    assert {name: it.shape for name, it in group.inputs.items()} == {"image": (3, 1, 2, 2), "scale": (3, 1)}
    (wrong,) = samples.of({"scale": np.ones((3, 1))})
    assert isinstance(wrong, Sample) and "expected arrays named image, scale, found scale" in wrong.error
    (alone,) = samples.of([np.ones((3, 1))])
    assert "expected arrays named image, scale" in alone.error


@pytest.mark.parametrize("rule", ["rgb", "gray"])
def test_a_sparse_tensor_is_read_and_one_that_numpy_lacks_is_one_line(rule: str) -> None:
    channels = 3 if rule == "rgb" else 1
    dense = torch.zeros(channels, 4, 5)
    dense[0, 1, 2] = 3
    _, (found,) = loaded([dense.to_sparse()], f"{rule},{RAW}", (channels, None, None))
    assert np.array_equal(found, dense.numpy())
    _, (text,) = loaded([dense.to(torch.float8_e4m3fn)], f"{rule},{RAW}", (channels, None, None))
    assert "a tensor of torch.float8_e4m3fn cannot be read" in text and "\n" not in text


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_whose_file_was_closed_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOR).save(path)
    with Image.open(path) as closed:
        pass
    with Image.open(path) as read:
        read.load()
    _, (text, fine) = loaded([closed, read])
    assert "was closed before its pixels were read" in text and fine.shape == (3, 5, 6)
