"""JPEG files decoded by nvImageCodec's backend for CPUs: equal to Pillow's, and what it cannot do is Pillow's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.codecs import nvimgcodec
from stn_infer.data.codecs.nvimgcodec import JpegDecoder, identity
from stn_infer.data.images import decode
from stn_infer.data.inputs import Sample
from stn_infer.data.loader import Loader
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.preprocess.rule import Preprocess
from tests.support.tensorrt_parts import module_or_skip

ANY = (None, None)


@pytest.fixture(scope="module")
def decoder() -> JpegDecoder:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    return JpegDecoder("cpu")


def photo(height: int = 97, width: int = 131) -> Image.Image:
    """Gradients, edges, ripples and noise, in all colors."""
    y, x = np.mgrid[0:height, 0:width] / 9.0
    noise = np.random.default_rng(0).normal(0, 25, (height, width, 3))
    waves = np.stack([120 + 80 * np.sin(x * 1.3 + y) + 40 * (x > y), 255 * x / x.max(), 60 + 90 * np.cos(y) ** 2], -1)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image | None = None, orientation: int = 1, **how: Any) -> bytes:
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    (image or photo()).save(file, "JPEG", **{"quality": 90, "exif": exif, **how})
    return file.getvalue()


def planes(pixels: Array | None) -> Array:
    assert pixels is not None
    return pixels.transpose(2, 0, 1).astype(int)


def differences(decoder: JpegDecoder, data: bytes, text: str) -> Array:
    rule = Preprocess.parse(text)
    (found,) = decoder.decode([data], rule, ANY)
    return np.abs(planes(found) - decode(data, rule))


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(
    "how",
    [
        *({"subsampling": sampling} for sampling in (0, 1, 2)),
        {"quality": 30},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"optimize": True},
    ],
    ids=str,
)
def test_pixels_equal_pillows(decoder: JpegDecoder, how: dict[str, Any], color: str) -> None:
    assert not differences(decoder, jpeg(**how), color).any()
    assert not differences(decoder, jpeg(photo().convert("L"), **{**how, "subsampling": -1}), color).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(decoder: JpegDecoder, orientation: int) -> None:
    for exif in ("apply", "ignore"):
        assert not differences(decoder, jpeg(orientation=orientation), f"rgb,exif={exif}").any()


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_resized_pictures_are_within_a_level_of_pillows(decoder: JpegDecoder, interpolation: str) -> None:
    for text in ("rgb,size=40", "gray,size=200x120", "rgb,size=131x40,resize=shortest,crop=64", "gray,size=97x50"):
        error = differences(decoder, jpeg(orientation=6), f"{text},interpolation={interpolation}")
        assert error.max() <= 1 and error.mean() < 0.01


@pytest.mark.parametrize("most", [1 << 24, 5000, 1])
def test_a_batch_has_one_result_for_each_file(decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(nvimgcodec, "_MOST_DECODED", 2 * most)
    monkeypatch.setattr(nvimgcodec, "_MOST_RESIZED", most)
    files = [jpeg(photo(40 + i % 3, 50), orientation=1 + 5 * (i % 2), quality=80 + i) for i in range(9)]
    for text in ("rgb,size=32", "gray", "rgb,size=32,interpolation=box"):
        rule = Preprocess.parse(text)
        for data, pixels in zip(files, decoder.decode(files, rule, ANY), strict=True):
            assert np.abs(planes(pixels) - decode(data, rule)).max() <= 1
    assert decoder.decode([], Preprocess("rgb"), ANY) == []


def test_pictures_that_are_enlarged_are_resized_in_parts(decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder.decode([jpeg()], Preprocess("rgb"), ANY)  # opens it, which frames a picture
    counts: list[int] = []
    real = nvimgcodec.framed
    monkeypatch.setattr(
        nvimgcodec, "framed", lambda pictures, *rest: counts.append(len(pictures)) or real(pictures, *rest)
    )
    monkeypatch.setattr(nvimgcodec, "_MOST_RESIZED", 3 * 100 * 100)
    files = [jpeg(photo(20, 20))] * 7
    for text, wanted in (("rgb,size=100", [3, 3, 1]), ("rgb,size=10", [7]), ("rgb,size=100x20", [7])):
        counts.clear()
        assert all(pixels is not None for pixels in decoder.decode(files, Preprocess.parse(text), ANY))
        assert counts == wanted, text
    counts.clear()
    decoder.decode([jpeg(photo(100, 20))] * 7, Preprocess.parse("rgb,size=20x100"), ANY)  # 100x100 in between
    assert counts == [3, 3, 1]


def test_no_gpu_is_opened_for_a_model_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    for name in ("current_device", "stream", "Stream"):
        monkeypatch.setattr(f"torch.cuda.{name}", None)
    assert JpegDecoder("cpu").decode([jpeg()], Preprocess("rgb"), ANY)[0] is not None


@pytest.mark.parametrize(
    "how", ["crop=64", "crop=200x90", "size=60x40,resize=longest", "size=30,resize=shortest,crop=70"]
)
def test_cropped_and_padded_pictures(decoder: JpegDecoder, how: str) -> None:
    for color in ("rgb", "gray"):
        error = differences(decoder, jpeg(), f"{color},{how},pad=#10a030")
        assert error.max() <= ("size" in how)


def left_to_pillow() -> Iterator[tuple[str, bytes]]:
    whole, png = jpeg(), BytesIO()
    photo().save(png, "PNG")
    yield "cmyk", jpeg(photo().convert("CMYK"))
    yield "stored as rgb", jpeg(keep_rgb=True)
    yield "png", png.getvalue()
    yield "empty", b""
    yield "text", b"\xff\xd8\xff no JPEG file"
    for cut in (2, 30, len(whole) // 2, len(whole) - 300, len(whole) - 10):
        yield f"truncated by {cut} bytes", whole[:-cut]
    yield "truncated, with a thumbnail", jpeg(comment=jpeg(photo(20, 30)))[:-50]


LEFT = dict(left_to_pillow())


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_pillow(decoder: JpegDecoder, name: str) -> None:
    good = jpeg()
    found = decoder.decode([good, LEFT[name], good], Preprocess("rgb"), ANY)
    assert found[1] is None and found[0] is not None and found[2] is not None
    assert nvimgcodec._header(LEFT[name], Preprocess("rgb"), ANY) is None, "no other decoder is asked"


def test_a_size_that_the_model_does_not_take_is_left_to_pillow(decoder: JpegDecoder) -> None:
    data = jpeg(orientation=6)  # 131x97, upright
    for rule, size, taken in (
        (Preprocess("rgb"), (131, 97), True),
        (Preprocess("rgb"), (97, 131), False),
        (Preprocess("rgb"), (None, 97), True),
        (Preprocess("rgb", exif="ignore"), (97, 131), True),
        (Preprocess("rgb", size=(32, 32)), (32, 32), True),
        (Preprocess("rgb", size=(32, 32), crop=(28, 28)), (32, 32), False),
    ):
        assert (decoder.decode([data], rule, size)[0] is not None) is taken, (rule, size)
    long = jpeg(Image.new("RGB", (9000, 1)))
    assert decoder.decode([long], Preprocess("rgb", (100, 100), resize="shortest"), ANY) == [None]  # 100x900000


def test_what_it_does_not_decode_is_none(decoder: JpegDecoder) -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 9  # the number of components of the frame
    del data[at + 2 : at + 5]
    files = [jpeg(), bytes(data), jpeg()]
    assert [pixels is not None for pixels in decoder.decode(files, Preprocess("rgb"), ANY)] == [True, False, True]


def test_the_loader_gives_the_rows_and_errors_of_pillow(tmp_path: Path) -> None:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    whole = jpeg()
    contents = {"a.jpg": whole, "b.png": b"", "c.jpg": whole[:-900], "d.jpg": jpeg(orientation=8), "f.jpg": whole[:2]}
    contents |= {name: LEFT[name] for name in ("png", "cmyk")}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    samples = [Sample(name, str(tmp_path / name)) for name in (*contents, "missing.jpg")]
    spec = TensorSpec("input", (None, 3, 24, 24), np.dtype(np.float32))
    rule = Preprocess("rgb", (24, 24))
    exact = Loader([spec], rule).load(samples)
    found = Loader([spec], Preprocess("rgb", (24, 24), jpeg="nvimgcodec")).load(samples)
    assert found.errors == exact.errors and sorted(found.errors) == [1, 2, 4, 7]
    assert "truncated" in found.errors[2]
    (one,), (other,) = found.groups, exact.groups
    assert one.rows == other.rows
    assert np.abs(one.inputs["input"] - other.inputs["input"]).max() <= 1.01 / 255


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_infer.extras.is_installed", lambda module: module != "nvidia.nvimgcodec")
    with pytest.raises(MissingDependencyError, match=r"jpeg=nvimgcodec needs nvImageCodec, which is not .*decode\]"):
        JpegDecoder("cpu")


def test_a_device_that_is_not_there_is_told(decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a device is"):
        JpegDecoder("tpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"needs a PyTorch that can use cuda:3; PyTorch \S+ cannot"):
        JpegDecoder("cuda:3,cuda:4").decode([jpeg()], Preprocess("rgb"), ANY)


def test_a_library_that_does_not_work_is_told(decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(nvimgcodec, "_sample", lambda: jpeg()[:-40])  # is not decoded, as without nvJPEG on a GPU
        with pytest.raises(MissingDependencyError, match="no JPEG file on cpu, as where nvJPEG is missing; pip"):
            JpegDecoder("cpu").decode([jpeg()], Preprocess("rgb"), ANY)
    other = JpegDecoder("cpu")
    monkeypatch.setattr(nvimgcodec, "_MODULE", "nvidia.nothing")
    with pytest.raises(MissingDependencyError, match=r"nvImageCodec cannot be used on cpu: No module named"):
        other.decode([jpeg()], Preprocess("rgb"), ANY)


def test_a_failure_of_the_library_ends_the_job(decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(nvimgcodec, "_framed", fails)
    with pytest.raises(ModelError, match="nvImageCodec failed on cpu: CUDA out of memory"):
        decoder.decode([jpeg()], Preprocess("rgb"), ANY)


def test_what_determines_pixels() -> None:
    assert identity("cpu").replace("CPU", "GPU") == identity("cuda:1,cuda:0")


class StandIn(SimpleNamespace):
    """The library on a machine with a GPU: it answers with gray pictures, and keeps what it was asked."""

    NVIMGCODEC_DEVICE_CPU_ONLY = -99999
    BackendKind = SimpleNamespace(HW_GPU_ONLY="hw", HYBRID_CPU_GPU="hybrid", GPU_ONLY="gpu", CPU_ONLY="cpu")
    ColorSpec, SampleFormat = SimpleNamespace(SRGB="sRGB"), SimpleNamespace(I_RGB="rgb")

    def __init__(self) -> None:
        super().__init__(Backend=str, CodeStream=bytes, DecodeParams=dict, asked=[])

    def Decoder(self, **how: Any) -> StandIn:
        self.asked.append(how)
        return self

    def decode(self, streams: list[bytes], params: dict[str, Any], cuda_stream: int) -> list[torch.Tensor]:
        self.asked.append((len(streams), params["apply_exif_orientation"], cuda_stream))
        return [torch.full((97, 131, 3), 100, dtype=torch.uint8) for _ in streams]


def test_what_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, opened = StandIn(), []
    monkeypatch.setattr(nvimgcodec, "require", lambda module, purpose: None)
    monkeypatch.setattr(nvimgcodec, "import_module", lambda name: codec)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.Stream", lambda device: opened.append(device) or SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    decoder = JpegDecoder("cuda:1,cuda:0")
    for _ in range(2):
        found = decoder.decode([jpeg(), b"", jpeg(orientation=6)], Preprocess("rgb", (8, 9)), ANY)
        assert [None if it is None else it.shape for it in found] == [(8, 9, 3), None, (8, 9, 3)]
        assert all((it == 100).all() for it in found if it is not None)
    how = {"device_id": 1, "backends": ["hw", "hybrid", "gpu"], "options": ":fancy_upsampling=1"}
    assert codec.asked == [how, (1, False, 7), (2, False, 7), (2, False, 7)] and opened == ["cuda:1"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_pixels_of_a_gpu_are_near_those_of_pillow() -> None:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    decoder = JpegDecoder("cuda:0")
    for how in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"orientation": 6}):
        for text in ("rgb", "gray", "rgb,size=40"):
            error = differences(decoder, jpeg(**how), text)
            assert error.mean() < 1 and np.percentile(error, 99) <= 4, (how, text)
    found = decoder.decode([jpeg(), *LEFT.values(), jpeg()], Preprocess("rgb"), ANY)
    assert [it is not None for it in found] == [True, *[False] * len(LEFT), True]
