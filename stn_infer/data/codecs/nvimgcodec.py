"""JPEG files decoded in batches by NVIDIA's nvImageCodec: on the GPU of a model, or on the CPU by its libjpeg-turbo.

What it does not decode is left to Pillow, and so is what must end as with Pillow: a file that is damaged, truncated or
of a size that the model does not take, CMYK, and colors that are stored as RGB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image, JpegImagePlugin

from stn_infer.backends.device import Device
from stn_infer.data.codecs.frames import FILTERS, framed
from stn_infer.data.framing import turn_of
from stn_infer.data.images import from_image
from stn_infer.data.pixels import Pixels
from stn_infer.data.scaled import SWAPPING
from stn_infer.errors import MissingDependencyError, ModelError, one_line
from stn_infer.extras import install, require, versions
from stn_infer.preprocess.geometry import placements
from stn_infer.preprocess.rule import MOST_PIXELS, Preprocess
from stn_infer.quiet import no_stderr

if TYPE_CHECKING:
    from torch import Tensor

_MODULE = "nvidia.nvimgcodec"
_PACKAGES = ("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13")
_END = b"\xff\xd9"  # ends a JPEG file; does not occur within its compressed data
_RGB = (ord("R"), ord("G"), ord("B"))  # names of components without a conversion
# The library's decoders that are used on a GPU. Pillow does what the one for CPUs would do.
_ON_GPU = ("HW_GPU_ONLY", "HYBRID_CPU_GPU", "GPU_ONLY")
# Interpolates subsampled colors as libjpeg, and so Pillow, does.
_OPTIONS = ":fancy_upsampling=1"

# Pixels that are worked on at once: 384 MiB decoded, and 192 MiB in float32.
_MOST_DECODED, _MOST_RESIZED = 1 << 27, 1 << 24
_SAMPLE = (32, 32)

Size = tuple[int | None, int | None]


def identity(device: str) -> str:
    """What determines the pixels that a decoder on this device gives: versions, and the kind of device.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    kind = "CPU" if _device(device).kind == "cpu" else "GPU"
    installed = next(iter(versions(_PACKAGES).values()), "")
    return f"nvImageCodec ({kind}) {installed}, PyTorch {torch.__version__.partition('+')[0]}"


class JpegDecoder:
    """Decodes JPEG files, and turns, resizes and crops the pictures where they are; safe to share between threads.

    Batches are decoded one after the other, on a CUDA stream of their own. The library is loaded with the first one.

    Args:
        device: of the model; of several, the first one decodes.

    Raises:
        MissingDependencyError: nvImageCodec or PyTorch is not installed.
        UsageError: there is no such device.
    """

    def __init__(self, device: str) -> None:
        require(_MODULE, "preprocess jpeg=nvimgcodec needs")
        require("torch", "preprocess jpeg=nvimgcodec needs")
        self._device = _device(device)
        self._lock = threading.Lock()
        self._opened: _Codec | None = None

    def decode(self, files: Sequence[bytes], rule: Preprocess, size: Size) -> list[Pixels | None]:
        """The pictures in image files, as the rule frames them.

        Args:
            files: the bytes of image files of any kind.
            rule: orientation, color, size and crop are applied here.
            size: (height, width) that the model takes; None for an axis of any length.

        Returns:
            For each file uint8 [H, W, C], C is 1 for gray and else 3 (RGB); None: it is left to Pillow.

        Raises:
            MissingDependencyError: the device is not usable, or nvJPEG is missing.
            ModelError: decoding failed, as of memory.
        """
        headers = {row: header for row, data in enumerate(files) if (header := _header(data, rule, size)) is not None}
        found: list[Pixels | None] = [None] * len(files)
        if not headers:
            return found
        with self._lock:
            self._opened = self._opened or _Codec.open(self._device)
            for rows in _parts(headers, _MOST_DECODED):
                try:
                    pixels = self._opened.decode([files[row] for row in rows], [headers[row] for row in rows], rule)
                except RuntimeError as error:  # of nvImageCodec, or of PyTorch
                    raise ModelError(f"nvImageCodec failed on {self._device}: {one_line(error)}") from error
                for row, picture in zip(rows, pixels, strict=True):
                    found[row] = picture
        return found


@dataclass(frozen=True)
class _Header:
    """Of a file that is decoded here.

    Attributes:
        size: (height, width) of the picture as it is decoded.
        turn: how it is turned then.
        pixels: the most that it has on its way to the size that is cropped.
    """

    size: tuple[int, int]
    turn: Image.Transpose | None
    pixels: int


def _header(data: bytes, rule: Preprocess, size: Size) -> _Header | None:
    """What a JPEG file says of itself; None if it is left to Pillow."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        image = JpegImagePlugin.JpegImageFile(BytesIO(data))
    except Exception:  # Pillow raises many types, and will raise it again
        return None
    if image.mode not in ("L", "RGB") or image.width * image.height > MOST_PIXELS:
        return None
    if image.info.get("adobe_transform") == 0 or tuple(layer[0] for layer in image.layer) == _RGB:
        return None
    assert image.fp is not None
    if data.find(_END, image.fp.tell()) < 0:
        return None
    turn = turn_of(image) if rule.exif == "apply" else None
    upright = (image.width, image.height) if turn in SWAPPING else (image.height, image.width)
    high, wide = placements(rule, upright)
    fits = size[0] in (None, high.length) and size[1] in (None, wide.length)
    if not fits or high.scaled * wide.scaled > MOST_PIXELS:
        return None
    pixels = max(high.source, high.scaled) * max(wide.source, wide.scaled)
    return _Header((image.height, image.width), turn, pixels)


@dataclass(frozen=True)
class _Codec:
    """The library, opened: its module, a decoder, the parameters of each call, and on a GPU the stream."""

    module: Any
    decoder: Any
    parameters: Any
    stream: Any

    @classmethod
    def open(cls, device: Device) -> Self:
        """Opens it, and decodes a picture.

        Raises:
            MissingDependencyError: the library does not load, or decodes nothing on this device.
        """
        import torch

        cuda: Any = torch.cuda  # has no annotations
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # errors are raised
        on_gpu = device.kind == "cuda"
        if on_gpu and not cuda.is_available():
            raise MissingDependencyError(
                f"preprocess jpeg=nvimgcodec needs a PyTorch that can use {device}; PyTorch {torch.__version__} cannot"
            )
        kinds = _ON_GPU if on_gpu else ("CPU_ONLY",)
        try:
            with no_stderr():  # the library lists what else is not installed
                codec = import_module(_MODULE)
                decoder = codec.Decoder(
                    device_id=device.index if on_gpu else codec.NVIMGCODEC_DEVICE_CPU_ONLY,
                    backends=[codec.Backend(getattr(codec.BackendKind, kind)) for kind in kinds],
                    options=_OPTIONS,
                )
                parameters = codec.DecodeParams(
                    apply_exif_orientation=False,
                    color_spec=codec.ColorSpec.SRGB,
                    sample_format=codec.SampleFormat.I_RGB,
                )
                opened = cls(codec, decoder, parameters, cuda.Stream(str(device)) if on_gpu else None)
                header = _Header(_SAMPLE, None, _SAMPLE[0] * _SAMPLE[1])
                works = opened.decode([_sample()], [header], Preprocess("rgb"))[0] is not None
        except (ImportError, RuntimeError, AttributeError) as error:
            raise MissingDependencyError(f"nvImageCodec cannot be used on {device}: {one_line(error)}") from None
        if not works:
            raise MissingDependencyError(
                f"nvImageCodec decodes no JPEG file on {device}, as where nvJPEG is missing; {install('decode')}"
            )
        return opened

    def decode(self, files: Sequence[bytes], headers: Sequence[_Header], rule: Preprocess) -> list[Pixels | None]:
        """As :meth:`JpegDecoder.decode`, of files that are decoded here; raises RuntimeError."""
        import torch

        # without a stream, PyTorch's context would open the first GPU
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            streams = [self._code_stream(data) for data in files]
            known = [stream for stream in streams if stream is not None]
            number = 0 if self.stream is None else self.stream.cuda_stream
            images = iter(self.decoder.decode(known, params=self.parameters, cuda_stream=number) if known else ())
            decoded = [None if stream is None else next(images) for stream in streams]
            pictures = {row: self._tensor(image) for row, image in enumerate(decoded) if image is not None}
            if rule.size is not None and rule.interpolation not in FILTERS:
                found = {row: _by_pillow(picture, headers[row].turn, rule) for row, picture in pictures.items()}
            else:
                found = _framed(pictures, headers, rule)
        return [found.get(row) for row in range(len(files))]

    def _code_stream(self, data: bytes) -> Any:
        """The file for the library; None if it does not know its format."""
        try:
            return self.module.CodeStream(data)
        except RuntimeError:
            return None

    def _tensor(self, image: Any) -> Tensor:
        """The pixels of the library's image where they are, uint8 [H, W, 3]."""
        import torch
        from torch.utils.dlpack import from_dlpack

        return torch.from_numpy(np.asarray(image)) if self.stream is None else from_dlpack(image)


def _by_pillow(picture: Tensor, turn: Image.Transpose | None, rule: Preprocess) -> Pixels:
    """A decoded picture, uint8 [H, W, 3], framed by Pillow."""
    image = Image.fromarray(picture.cpu().numpy())
    return from_image(image if turn is None else image.transpose(turn), rule, (None, None), "the image")


def _framed(pictures: Mapping[int, Tensor], headers: Sequence[_Header], rule: Preprocess) -> dict[int, Pixels]:
    """Decoded pictures, uint8 [H, W, 3], framed where they are; with one copy to the host for all of one size."""
    import torch

    same: dict[_Header, dict[int, _Header]] = {}
    for row in pictures:
        same.setdefault(headers[row], {})[row] = headers[row]
    frames: dict[torch.Size, list[tuple[list[int], Tensor]]] = {}
    for header, alike in same.items():
        for rows in _parts(alike, _MOST_RESIZED):
            stacked = torch.stack([pictures[row] for row in rows]).permute(0, 3, 1, 2)
            frame = framed(stacked, rule, header.turn)
            frames.setdefault(frame.shape[1:], []).append((rows, frame))
    found: dict[int, Pixels] = {}
    for parts in frames.values():
        joined = torch.cat([frame for _, frame in parts]).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        found.update(zip(chain.from_iterable(rows for rows, _ in parts), joined, strict=True))
    return found


def _parts(headers: Mapping[int, _Header], most: int) -> Iterator[list[int]]:
    """The rows in parts of at most so many pixels, or of one row."""
    rows: list[int] = []
    pixels = 0
    for row, header in headers.items():
        if rows and pixels + header.pixels > most:
            yield rows
            rows, pixels = [], 0
        rows.append(row)
        pixels += header.pixels
    if rows:
        yield rows


def _sample() -> bytes:
    """A JPEG file as cameras write them: 4:2:0."""
    file = BytesIO()
    Image.new("RGB", _SAMPLE, (90, 140, 200)).save(file, "JPEG", subsampling=2)
    return file.getvalue()


def _device(name: str) -> Device:
    return Device.parse(name.partition(",")[0])
