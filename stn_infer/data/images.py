"""Decoding image files to 8-bit pixels, and converting pixels to a model's input."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stn_infer import remote
from stn_infer.data.framing import flattened, framed, turn_of
from stn_infer.data.pixels import Pixels, pixels_of
from stn_infer.data.png import open_plain_png
from stn_infer.data.scaled import Scaled, scale_down
from stn_infer.errors import InputError
from stn_infer.files import kind_of
from stn_infer.preprocess.rule import MOST_PIXELS, Preprocess

_ONE_READ = 1 << 16
_MOST_BYTES = 1 << 29
_PROGRAMS = ("EPS",)
_RGBA = 4  # channels
_HEIF = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


def read(path: str) -> bytes:
    """The bytes of an image file, which may be a URL.

    Raises:
        InputError: the file is missing, is a folder, is empty, has more than 512 MiB or cannot be read.
    """
    if remote.is_url(path):
        found = remote.read(path, _MOST_BYTES)
        if not found:
            raise InputError(f"{path} is empty (0 bytes), expected an image file")
        if len(found) > _MOST_BYTES:
            size, _ = remote.version(path) or (0, "")
            raise _too_large(path, max(size, len(found)))
        return found
    try:
        # This takes half the system calls of a file object; each call releases and reacquires the GIL.
        # O_NONBLOCK opens a pipe without waiting for its writer; the pipe then reads as empty.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(file, _ONE_READ)
            if len(data) == _ONE_READ:
                data += _rest(file, path)
            elif not data:
                mode = os.fstat(file).st_mode
                kind = "is empty (0 bytes)" if stat.S_ISREG(mode) else f"is {kind_of(mode)}"
                raise InputError(f"{path} {kind}, expected an image file")
            return data
        finally:
            os.close(file)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected an image file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason_of(error)}") from None


def _rest(file: int, path: str) -> bytes:
    """The rest of a file that is longer than the first read."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is {kind_of(status.st_mode)}, expected an image file")
    if status.st_size > _MOST_BYTES:
        raise _too_large(path, status.st_size)
    with open(file, "rb", buffering=0, closefd=False) as rest:
        return rest.read(_MOST_BYTES) or b""


def _too_large(path: str, size: int) -> InputError:
    return InputError(f"{path} has {size >> 20} MiB, more than the limit of {_MOST_BYTES >> 20} MiB for an image file")


def decode(
    data: bytes, preprocess: Preprocess, size: tuple[int | None, int | None] = (None, None), name: str = "the image"
) -> Pixels:
    """Decode the bytes of an image file.

    16-bit gray is converted to 8 bits, and only the first of several frames is used.

    Args:
        data: in any format that Pillow reads.
        preprocess: orientation, alpha, color, size and crop are applied here, the other fields by :func:`normalize`.
        size: (height, width) that the model takes; None for an axis of any length.
        name: the image's name in messages.

    Returns:
        uint8 [C, H, W], C is 1 for gray and 3 for rgb and bgr, in this order.

    Raises:
        InputError: ``data`` is damaged or not an image, or the image does not have the size that the model takes.
    """
    return np.array(planes(decode_interleaved(data, preprocess, size, name), preprocess), order="C")


def planes(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Images [N, C, H, W] in the model's order of colors, a view of [N, H, W, C] with C 1, 3 or 4; or one image.

    Colors are RGB; a fourth byte is left out.
    """
    colors = pixels[..., 2::-1] if preprocess.color == "bgr" else pixels[..., :3]
    return colors.transpose(2, 0, 1) if colors.ndim == 3 else colors.transpose(0, 3, 1, 2)


def decode_interleaved(data: bytes, preprocess: Preprocess, size: tuple[int | None, int | None], name: str) -> Pixels:
    """:func:`decode` in the layout of the image: [H, W, 1], [H, W, 3], or [H, W, 4] with an unused byte.

    The result is read-only, and valid until the next call in this thread.
    """
    plain = open_plain_png(data)
    if plain is not None:
        return from_image(plain.image, preprocess, size, name, plain.pixels)
    if data[4:12] in _HEIF:
        _reads_heif()
    with _damaged(name, data), Image.open(BytesIO(data)) as image:
        scaled = _load(image, name, preprocess)
        return _from_loaded(image, preprocess, size, name, scaled)


def from_opened(
    image: Image.Image,
    preprocess: Preprocess,
    size: tuple[int | None, int | None],
    name: str,
    scaled: Scaled | None = None,
) -> Pixels:
    """:func:`decode_interleaved` for an image of :func:`loaded`.

    Raises:
        InputError: as for :func:`decode`.
    """
    with _damaged(name):
        return _from_loaded(image, preprocess, size, name, scaled)


def opened_bytes(data: bytes, name: str) -> Image.Image:
    """The bytes of an image file as a Pillow image that is not loaded; raises InputError as :func:`decode`."""
    if data[4:12] in _HEIF:
        _reads_heif()
    with _damaged(name, data):
        return Image.open(BytesIO(data))


def loaded(
    image: Image.Image, name: str, *, copy: bool, preprocess: Preprocess | None = None
) -> tuple[Image.Image, Scaled | None]:
    """An image that Pillow has opened, with its pixels in memory; with ``copy``, in memory of its own.

    Args:
        image: the image.
        name: its name in messages.
        copy: whether its memory may change.
        preprocess: the rule, which may allow fewer pixels; None: all of them, as the image is the caller's.

    Returns:
        The image, and what it was, if it was decoded at a smaller size.

    Raises:
        InputError: as for :func:`decode`.
    """
    with _damaged(name):
        if getattr(image, "tile", None) and getattr(image, "fp", None) is None:
            raise InputError(f"{name} was closed before its pixels were read; give its path, or an open picture")
        scaled = _load(image, name, preprocess)
        return (image.copy() if copy else image), scaled


def _load(image: Image.Image, name: str, preprocess: Preprocess | None) -> Scaled | None:
    """Read the pixels of an opened image; raises what Pillow raises, or InputError for an image that is not read."""
    if image.format in _PROGRAMS:  # Pillow would start Ghostscript, which runs it
        raise InputError(f"{name} is an {image.format} file, a program that draws an image; save it as PNG")
    if image.width * image.height > MOST_PIXELS:
        raise InputError(
            f"{name} is {image.height}x{image.width} (height x width), more than the limit of "
            f"{MOST_PIXELS >> 20} million pixels"
        )
    scaled = None
    if preprocess is not None and preprocess.jpeg == "scaled":
        scaled = scale_down(image, preprocess, _turn(image, preprocess))
    image.load()
    return scaled


def _turn(image: Image.Image, preprocess: Preprocess) -> Image.Transpose | None:
    return turn_of(image) if preprocess.exif == "apply" else None


def _from_loaded(
    image: Image.Image,
    preprocess: Preprocess,
    size: tuple[int | None, int | None],
    name: str,
    scaled: Scaled | None = None,
) -> Pixels:
    turn = _turn(image, preprocess)
    upright = image if turn is None else image.transpose(turn)
    return from_image(_eight_bit(upright, name), preprocess, size, name, scaled=scaled)


@contextmanager
def _damaged(name: str, data: bytes = b"") -> Iterator[None]:
    """Raises what Pillow raises for an image as an InputError."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        if data[4:12] in _HEIF and not _reads_heif():
            raise InputError(f"{name} is an HEIF image, which needs `pip install pillow-heif`") from None
        raise InputError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} has more pixels than Pillow's decompression bomb limit") from None
    # Pillow's decoders raise many types for a damaged file.
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error) as error:
        raise InputError(f"{name} is damaged or unreadable: {reason_of(error)}") from None


@cache
def _reads_heif() -> bool:
    """Lets Pillow read HEIF from now on, if pillow-heif is installed; whether it is."""
    try:
        heif = import_module("pillow_heif")
    except ImportError:
        return False
    heif.register_heif_opener()
    return True


def from_image(
    image: Image.Image,
    preprocess: Preprocess,
    size: tuple[int | None, int | None],
    name: str,
    shared: Pixels | None = None,
    scaled: Scaled | None = None,
) -> Pixels:
    """:func:`decode_interleaved` for a Pillow image and its memory, if known; ``name`` is used in messages.

    ``scaled``: what the image was, if it was decoded at a smaller size.
    """
    mode, whole = "L" if preprocess.color == "gray" else "RGB", image
    if preprocess.background is not None:
        image = flattened(image, preprocess.background)
    if image.mode != mode:
        image = image.convert(mode)
    image = framed(image, preprocess, scaled)
    width, height = image.size
    _check_size(height, width, size, name)
    return shared if shared is not None and image is whole else pixels_of(image)


def from_array(pixels: Pixels, preprocess: Preprocess, size: tuple[int | None, int | None], name: str) -> Pixels:
    """:func:`decode` for an array of 8-bit pixels, [H, W] or [H, W, C] with C 1, 3 (RGB) or 4 (RGBA)."""
    if pixels.ndim == 3 and pixels.shape[2] == _RGBA:
        return planes(from_image(Image.fromarray(np.ascontiguousarray(pixels)), preprocess, size, name), preprocess)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    right_color = (pixels.ndim == 2) == (preprocess.color == "gray")
    whole = (None, pixels.shape[:2])
    if right_color and preprocess.size in whole and preprocess.crop in whole:
        _check_size(pixels.shape[0], pixels.shape[1], size, name)
        return planes(pixels[:, :, None] if pixels.ndim == 2 else pixels, preprocess)
    return planes(from_image(Image.fromarray(np.ascontiguousarray(pixels)), preprocess, size, name), preprocess)


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Scales 16-bit gray to 8 bits: Pillow's own conversion clips it."""
    if image.mode.startswith("I;16"):
        deep: NDArray[Any] = np.asarray(image).astype(np.uint16)
        return Image.fromarray((deep >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"{name} has {image.mode} pixels of unknown range; store it as .npy, or with 8 or 16 bits")
    return image


def _check_size(height: int, width: int, size: tuple[int | None, int | None], name: str) -> None:
    if size[0] not in (None, height) or size[1] not in (None, width):
        wanted = "x".join("any" if axis is None else str(axis) for axis in size)
        raise InputError(
            f"{name} is {height}x{width} (height x width), the model takes {wanted}; --preprocess size={wanted} resizes"
        )


def reason_of(error: Exception) -> str:
    """The system's message for an ``OSError``, else the exception's message, else its type."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
