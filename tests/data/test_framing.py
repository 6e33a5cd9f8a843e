"""Orientation, alpha, resizing and cropping, against what Pillow's own steps and torchvision's definition give."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from stn_infer.data.framing import framed
from stn_infer.data.images import decode, from_array
from stn_infer.errors import InputError
from stn_infer.preprocess.rule import Preprocess

RGB = Preprocess("rgb")


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def stored(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def planes(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_photo_is_turned_as_its_exif_data_says(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(picture(5, 9), format, exif=exif, quality=100)
    with Image.open(BytesIO(data)) as image:
        raw, turned = planes(image), planes(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(data, RGB), turned)
    np.testing.assert_array_equal(decode(data, RGB.updated("exif=ignore")), raw)
    assert turned.shape == ((3, 9, 5) if 5 <= orientation <= 8 else (3, 5, 9))


def test_an_upright_photo_of_known_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned by 90 degrees: the first row is the right edge
    pixels = np.array([[[1, 1, 1], [2, 2, 2], [3, 3, 3]], [[4, 4, 4], [5, 5, 5], [6, 6, 6]]], np.uint8)
    data = stored(Image.fromarray(pixels), exif=exif)
    assert decode(data, Preprocess("gray"))[0].tolist() == [[4, 1], [5, 2], [6, 3]]


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk" * 9, b"Exif\0\0MM\0*\0\0\0\x08\0\x05"]
)
def test_damaged_exif_data_does_not_damage_the_picture(exif: bytes) -> None:
    image = picture(5, 9)
    np.testing.assert_array_equal(decode(stored(image, exif=exif), RGB), planes(image))


def test_an_orientation_in_a_text_chunk() -> None:
    """As ImageMagick writes it: the EXIF data in hexadecimal."""
    exif = Image.Exif()
    exif[0x0112] = 3
    body = exif.tobytes()
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(body):8}\n{body.hex()}\n")
    image = picture(4, 5)
    np.testing.assert_array_equal(decode(stored(image, pnginfo=text), RGB), planes(image)[:, ::-1, ::-1])


def test_alpha_is_dropped_or_laid_over_a_background() -> None:
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    data = stored(Image.fromarray(pixels, "RGBA"))
    assert decode(data, RGB)[:, 0].T.tolist() == [[200, 100, 0]] * 3
    over = decode(data, RGB.updated("background=#ff0032"))[:, 0].T.tolist()
    assert over == [[200, 100, 0], [255, 0, 50], [244, 20, 40]]


@pytest.mark.parametrize("mode", ["LA", "P", "RGB", "L"])
def test_every_kind_of_transparency_has_a_background(mode: str) -> None:
    image = Image.new("L" if mode != "RGB" else "RGB", (2, 1), 0 if mode != "RGB" else (0, 0, 0))
    image.putpixel((1, 0), 100 if mode != "RGB" else (100, 100, 100))
    if mode == "LA":
        image.putalpha(Image.frombytes("L", (2, 1), b"\0\xff"))
        data = stored(image)
    else:
        image = image.convert(mode)
        data = stored(image, transparency=image.getpixel((0, 0)))
    assert decode(data, Preprocess("gray", background=(255, 255, 255)))[0].tolist() == [[255, 100]]


def test_blue_first() -> None:
    image = picture(3, 4)
    np.testing.assert_array_equal(decode(stored(image), Preprocess("bgr")), planes(image)[::-1])
    np.testing.assert_array_equal(from_array(np.asarray(image), Preprocess("bgr"), (3, 4), "x"), planes(image)[::-1])


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((50, 80), (64, 102)), ((81, 50), (103, 64)), ((64, 64), (64, 64)), ((33, 97), (64, 188)), ((7, 3), (149, 64))],
)
def test_the_shortest_side_as_torchvision_rounds_it(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    rule = Preprocess("rgb", (64, 64), resize="shortest", interpolation="bicubic")
    image = picture(*size)
    expected = image.resize(wanted[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode(stored(image), rule), planes(expected))


def test_cover_and_fit_two_lengths() -> None:
    image = picture(50, 80)
    cover = framed(image, Preprocess("rgb", (96, 64), resize="shortest"))
    assert cover.size == (154, 96)
    fit = framed(image, Preprocess("rgb", (96, 64), resize="longest", pad=(9, 8, 7)))
    assert fit.size == (64, 96)
    inner = planes(image.resize((64, 40), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(planes(fit)[:, 28:68], inner)
    assert (planes(fit)[:, :28].reshape(3, -1).T == (9, 8, 7)).all() and (planes(fit)[2, 68:] == 7).all()
    assert (
        framed(image.convert("L"), Preprocess(size=(96, 64), resize="longest", pad=(255, 0, 0))).getpixel((0, 0)) == 76
    )


def test_the_center_is_cut_and_a_small_image_filled() -> None:
    image = picture(9, 6)
    cut = decode(stored(image), Preprocess("rgb", crop=(4, 3)))
    np.testing.assert_array_equal(cut, planes(image)[:, 2:6, 2:5])  # (6 - 3) / 2 is rounded to the even 2
    wide = decode(stored(image), Preprocess("rgb", crop=(4, 9), pad=(1, 2, 3)))
    np.testing.assert_array_equal(wide[:, :, 1:7], planes(image)[:, 2:6])
    assert wide[:, 0, 0].tolist() == wide[:, 3, 8].tolist() == [1, 2, 3]


def test_a_long_image_cannot_grow_without_limit() -> None:
    with pytest.raises(
        InputError, match=r"of 1x4000 .* would be resized to 224x896000, more than the limit of 64 million"
    ):
        decode(stored(picture(1, 4000)), Preprocess("rgb", (224, 224), resize="shortest", crop=(224, 224)))


def test_arrays_are_framed_like_pictures() -> None:
    image = picture(20, 31)
    for text in ("rgb,size=8,resize=shortest,crop=8", "rgb,crop=20x31", "bgr,size=8x8,resize=longest", "gray,crop=7"):
        rule = Preprocess.parse(text)
        np.testing.assert_array_equal(
            from_array(np.asarray(image), rule, (None, None), "x"), decode(stored(image), rule), text
        )
