from __future__ import annotations

import io
import os
import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from stn_infer.data.images import decode, from_array, read
from stn_infer.data.png import open_plain_png
from stn_infer.errors import InputError
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess

GRAY, RGB = Preprocess("gray"), Preprocess("rgb")


def encoded(pixels: NDArray[np.uint8], format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_gray_and_rgb(pixels: NDArray[np.uint8]) -> None:
    assert np.array_equal(decode(encoded(pixels), RGB), pixels.transpose(2, 0, 1))
    assert np.array_equal(decode(encoded(pixels[..., 0]), GRAY), pixels[None, ..., 0])
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(encoded(pixels), GRAY)[0] - luma).max() <= 1
    assert np.array_equal(decode(encoded(pixels[..., 0]), RGB), np.repeat(pixels[None, ..., 0], 3, axis=0))


@pytest.mark.parametrize("format", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats(pixels: NDArray[np.uint8], format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    source = np.repeat(pixels[..., :1], 3, axis=2)  # a palette of grays contains all values
    assert np.array_equal(decode(encoded(source, format, **options), RGB), source.transpose(2, 0, 1))


def test_alpha_and_palette_and_depth(pixels: NDArray[np.uint8]) -> None:
    alpha = np.concatenate([pixels, np.full((5, 7, 1), 9, np.uint8)], axis=2)
    assert np.array_equal(decode(encoded(alpha), RGB), pixels.transpose(2, 0, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).convert("P").save(buffer, "PNG")
    assert np.array_equal(decode(buffer.getvalue(), GRAY)[0], pixels[..., 0])
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    assert np.array_equal(decode(buffer.getvalue(), GRAY)[0], pixels[..., 0]), "16 bits are scaled, not clipped"
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(buffer, "TIFF")
    with pytest.raises(InputError, match="unknown range"):
        decode(buffer.getvalue(), GRAY)


def test_resize_and_size(pixels: NDArray[np.uint8]) -> None:
    assert decode(encoded(pixels), Preprocess("rgb", size=(8, 4)), (8, 4)).shape == (3, 8, 4)
    assert decode(encoded(pixels), RGB, (None, 7)).shape == (3, 5, 7)
    with pytest.raises(InputError, match=r"x\.png is 5x7 .* takes 7x5; --preprocess size=7x5 resizes"):
        decode(encoded(pixels), RGB, (7, 5), "x.png")


def test_arrays_of_pixels_equal_image_files(pixels: NDArray[np.uint8]) -> None:
    for preprocess in (GRAY, RGB, Preprocess("rgb", size=(8, 4)), Preprocess("gray", size=(5, 7))):
        for values in (pixels, pixels[..., 0]):
            expected = decode(encoded(values), preprocess)
            assert np.array_equal(from_array(values, preprocess, (None, None), "x"), expected)
    assert np.array_equal(from_array(pixels[..., :1], GRAY, (5, 7), "x")[0], pixels[..., 0])


def test_normalize(pixels: NDArray[np.uint8]) -> None:
    preprocess = Preprocess("rgb", scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    batch = pixels.transpose(2, 0, 1)[None]
    expected = (batch / 255.0 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.25, 2.0])[:, None, None]
    result = normalize(batch, preprocess)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 1e-6


def test_unreadable_files(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    (tmp_path / "empty.png").touch()
    for path, message in ((tmp_path / "empty.png", "0 bytes"), (tmp_path / "no.png", "no such"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=message):
            read(str(path))
    noise = np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)
    (tmp_path / "large.png").write_bytes(encoded(noise))
    assert (tmp_path / "large.png").stat().st_size > 1 << 16
    assert read(str(tmp_path / "large.png")) == encoded(noise)


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_images_are_one_line(pixels: NDArray[np.uint8], format: str) -> None:
    whole = encoded(np.tile(pixels, (9, 9, 1)), format)
    for length in (3, 20, len(whole) // 2):
        with pytest.raises(InputError, match=r"^x\.img ") as caught:
            decode(whole[:length], RGB, name="x.img")
        assert "\n" not in str(caught.value) and " object at 0x" not in str(caught.value)
    with pytest.raises(InputError, match="not an image"):
        decode(b"hello, world", RGB)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    level=st.integers(0, 9),
    seed=st.integers(0, 999),
    flat=st.booleans(),
)
def test_plain_pngs_are_read_as_pillow_reads_them(
    height: int, width: int, channels: int, level: int, seed: int, flat: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    if flat:  # runs and gradients, so that the encoder chooses other filters
        values = np.cumsum(values // 64, axis=0, dtype=np.uint8)
    data = encoded(values if channels == 3 else values[..., 0], compress_level=level)
    plain = open_plain_png(data)
    assert plain is not None
    image = plain.image
    with Image.open(io.BytesIO(data)) as expected:
        assert image.mode == expected.mode
        assert np.array_equal(np.asarray(image), np.asarray(expected))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_png_is_left_to_pillow(data: st.DataObject) -> None:
    whole = encoded(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3))
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    assert open_plain_png(bytes(flipped)) is None
    assert open_plain_png(whole[:position]) is None


def test_pngs_that_are_not_plain_are_left_to_pillow(pixels: NDArray[np.uint8]) -> None:
    gray = Image.fromarray(pixels[..., 0])
    for image in (gray.convert("P"), gray.convert("1"), gray.convert("LA"), gray.convert("RGBA")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert open_plain_png(buffer.getvalue()) is None
    assert open_plain_png(encoded(pixels[..., 0], transparency=3)) is None
    assert open_plain_png(encoded(pixels, "JPEG")) is None
    assert open_plain_png(b"") is None


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow starts Ghostscript for it, whatever the file's name."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    with pytest.raises(InputError, match=r"drawing\.png is an EPS file, a program that draws an image; save it as PNG"):
        decode(data, Preprocess("gray"), name="drawing.png")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(OSError), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert (tmp_path / "ran").exists(), "Pillow does"


@pytest.mark.parametrize("format", ["TGA", "ICO", "AVIF", "QOI", "PCX", "SGI", "DDS", "MPO", "JPEG2000"])
def test_formats_that_pillow_reads(format: str) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    file = BytesIO()
    image.save(file, format, **({"quality": 100, "subsampling": "4:4:4"} if format == "AVIF" else {}))
    with Image.open(BytesIO(file.getvalue())) as stored:
        wanted = np.asarray(stored.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(file.getvalue(), RGB), wanted)
    if format not in ("AVIF", "MPO", "JPEG2000"):
        np.testing.assert_array_equal(wanted, np.asarray(image).transpose(2, 0, 1))


def test_heif_names_the_package_that_reads_it() -> None:
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    with pytest.raises(InputError, match=r"photo\.heic is an HEIF image, which needs `pip install pillow-heif`"):
        decode(data, RGB, name="photo.heic")


def test_heif_through_pillow_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in registers itself with Pillow, as pillow-heif does."""
    from stn_infer.data import images

    opened: list[bytes] = []

    class HeifImageFile(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            opened.append(self.fp.read())  # type: ignore[union-attr]
            self._mode, self._size = "RGB", (2, 1)

        def load(self) -> Any:
            self.im = Image.new("RGB", (2, 1), (7, 8, 9)).im
            return Image.Image.load(self)

    def register_heif_opener() -> None:
        Image.register_open("HEIF", HeifImageFile, lambda prefix: prefix[4:8] == b"ftyp")

    monkeypatch.setattr(images, "_reads_heif", cache(images._reads_heif.__wrapped__))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    data = b"\0\0\0\x18ftypheic" + bytes(64)
    assert decode(data, RGB)[:, 0, 0].tolist() == [7, 8, 9] and opened
