"""JPEG files decoded at a smaller size: the same picture as Pillow makes of all pixels, but for a few levels."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.images import decode
from stn_infer.data.loader import Loader
from stn_infer.data.scaled import scale_down
from stn_infer.errors import InputError, UsageError
from stn_infer.preprocess.rule import Preprocess


def picture(height: int, width: int) -> Image.Image:
    """Gradients, edges and ripples, different at every border."""
    y, x = np.mgrid[0:height, 0:width] / 40.0
    red = 120 + 80 * np.sin(x * 1.3 + y) + 40 * (x > y)
    green = 255 * np.mgrid[0:height, 0:width][1] / width
    blue = 60 + 90 * np.cos(y * 1.7) ** 2
    return Image.fromarray(np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8))


def jpeg(height: int, width: int, orientation: int = 1, mode: str = "RGB", **how: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    picture(height, width).convert(mode).save(file, "JPEG", quality=92, exif=exif, **how)
    return file.getvalue()


def both(data: bytes, text: str) -> tuple[Array, Array]:
    exact, scaled = (decode(data, Preprocess.parse(f"{text},jpeg={how}")) for how in ("exact", "scaled"))
    assert exact.shape == scaled.shape
    return exact.astype(int), scaled.astype(int)


def check(data: bytes, text: str, changed: bool = True) -> None:
    exact, scaled = both(data, text)
    error = np.abs(exact - scaled)
    assert bool(error.max()) is changed
    assert error.mean() < 0.7 and np.percentile(error, 99) <= 3 and error.max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_size_that_no_ratio_divides(orientation: int) -> None:
    check(jpeg(307, 423, orientation), "rgb,size=48x56")
    check(jpeg(307, 423, orientation), "rgb,size=48x56,exif=ignore")


@pytest.mark.parametrize("size", [(400, 400), (401, 300), (239, 811), (1000, 530)])
@pytest.mark.parametrize(
    "how",
    [
        "size=40",
        "size=40,resize=shortest,crop=32",
        "size=40,resize=longest,pad=white",
        "size=30x50,resize=longest,crop=20x60",
    ],
)
def test_every_way_to_resize(size: tuple[int, int], how: str) -> None:
    for color in ("rgb", "gray", "bgr"):
        check(jpeg(*size), f"{color},{how}")


@pytest.mark.parametrize(("mode", "how"), [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "subsampling": 0})])
def test_other_jpeg_files(mode: str, how: dict[str, Any]) -> None:
    check(jpeg(403, 330, mode=mode, **how), "gray,size=40,interpolation=bicubic")


def test_the_decoded_picture_keeps_at_least_twice_the_size() -> None:
    rule = Preprocess("rgb", (48, 56), jpeg="scaled")
    for height, width, expected in ((380, 440, 2), (384, 448, 4), (191, 900, 1), (3000, 4000, 8)):
        file = BytesIO()
        Image.new("RGB", (width, height)).save(file, "JPEG")
        with Image.open(file) as image:
            scaled = scale_down(image, rule, None)
            assert image.size == (-(-width // expected), -(-height // expected))
            if expected == 1:
                assert scaled is None
            else:
                assert scaled is not None and scaled.size == (height, width)
                assert scaled.box == (0, 0, width / expected, height / expected)


def test_what_is_no_large_jpeg_file_is_decoded_as_it_is() -> None:
    check(jpeg(100, 90), "rgb,size=48x56", changed=False)
    for kind in ("PNG", "WEBP", "TIFF"):
        file = BytesIO()
        picture(400, 300).save(file, kind)
        check(file.getvalue(), "rgb,size=48x56", changed=False)


def test_the_default_is_exact_and_a_rule_needs_a_size() -> None:
    assert Preprocess.parse("rgb,size=8").jpeg == "exact"
    rule = Preprocess.parse("rgb,size=8,jpeg=scaled")
    assert Preprocess.parse(rule.describe()) == rule and "jpeg=scaled" in rule.describe()
    assert rule.unsized().jpeg == "exact"
    with pytest.raises(UsageError, match="preprocess jpeg=scaled needs a size, such as size=256"):
        Preprocess.parse("rgb,jpeg=scaled")
    with pytest.raises(UsageError, match="preprocess jpeg is 'exact' or 'scaled' or 'nvimgcodec', not 'fast'"):
        Preprocess.parse("rgb,size=8,jpeg=fast")


def test_a_damaged_file_is_one_line() -> None:
    with pytest.raises(InputError, match="the image is damaged or unreadable"):
        decode(jpeg(400, 400)[:3000], Preprocess.parse("rgb,size=20,jpeg=scaled"))


def test_paths_and_bytes_are_alike_and_a_callers_picture_stays_whole(tmp_path: Any) -> None:
    from stn_infer.data.held import Samples

    data = jpeg(401, 299, orientation=6)
    (tmp_path / "a.jpg").write_bytes(data)
    rule = Preprocess.parse("rgb,size=24,jpeg=scaled")
    loader = Loader((TensorSpec("input", (None, 3, 24, 24), np.dtype(np.float32)),), rule)
    samples = Samples(loader.arrays, loader._specs, rule)
    opened = Image.open(BytesIO(data))
    path, memory, whole = (
        loader.load(list(samples.of(item))).groups[0].inputs["input"] for item in (tmp_path / "a.jpg", data, opened)
    )
    np.testing.assert_array_equal(path, memory)
    assert opened.size == (299, 401)
    np.testing.assert_array_equal(whole[0], decode(data, Preprocess.parse("rgb,size=24")) * np.float32(1 / 255))
    assert 0 < np.abs(whole - path).max() <= 8 / 255
