"""A reader for plain PNG files, which takes half the time of Pillow's.

Pillow parses a PNG's chunks in Python while holding the GIL. For an image of a few hundred bytes that is most of the
decoding time, and threads cannot do it in parallel. Here the chunks are parsed in one pass, and Pillow's decoder gets
the compressed pixels. All other files, including damaged ones, are left to Pillow.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from struct import Struct
from zlib import crc32

from PIL import Image

from stn_infer.data.pixels import SHARED_PIXELS, Pixels, shared_pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = Struct(">IIBBBBB")  # width, height, bit depth, color type, compression, filter, interlace
_WORD = Struct(">I")
_MODES = {0: "L", 2: "RGB"}
_PLAIN = {b"pHYs", b"tEXt", b"tIME", b"gAMA", b"sRGB", b"cHRM", b"IEND"}  # do not affect the stored pixels
_EXIF = b"raw profile type exif"  # may hold an orientation
_MOST_PIXELS = 1 << 22  # far below Pillow's decompression bomb limit
_last = threading.local()


@dataclass(frozen=True)
class PlainPng:
    """A decoded image.

    Attributes:
        image: as ``PIL.Image.open`` gives it.
        pixels: its memory, as :func:`~stn_infer.data.pixels.shared_pixels` gives it.
    """

    image: Image.Image
    pixels: Pixels | None


def open_plain_png(data: bytes) -> PlainPng | None:
    """Decodes ``data`` if it is an undamaged 8-bit gray or RGB PNG without interlacing or transparency.

    Returns:
        The image; None for any other data. A small image is valid until the next call in this thread, which decodes
        into the same memory if the size is the same.
    """
    if not data.startswith(_SIGNATURE):
        return None
    header: bytes | None = None
    pixels: list[bytes] = []
    kind, at = b"", 8
    while kind != b"IEND":
        if at + 12 > len(data):
            return None
        end = at + 8 + _WORD.unpack_from(data, at)[0]
        kind = data[at + 4 : at + 8]
        if end + 4 > len(data) or crc32(data[at + 4 : end]) != _WORD.unpack_from(data, end)[0]:
            return None
        if kind == b"IDAT":
            pixels.append(data[at + 8 : end])
        elif kind == b"IHDR":
            header = data[at + 8 : end]
        elif kind not in _PLAIN or (kind == b"tEXt" and data[at + 8 : end].lower().startswith(_EXIF)):
            return None
        at = end + 4
    if header is None or len(header) != _HEADER.size:
        return None
    width, height, depth, color, compression, filtering, interlace = _HEADER.unpack(header)
    if (
        depth != 8
        or color not in _MODES
        or compression
        or filtering
        or interlace
        or not 0 < width * height < _MOST_PIXELS
    ):
        return None
    mode = _MODES[color]
    plain: PlainPng | None = getattr(_last, "plain", None)
    if plain is None or plain.image.size != (width, height) or plain.image.mode != mode:
        image = Image.new(mode, (width, height))
        plain = PlainPng(image, shared_pixels(image))
        _last.plain = plain if width * height < SHARED_PIXELS else None
    try:
        plain.image.frombytes(pixels[0] if len(pixels) == 1 else b"".join(pixels), "zip", mode, 0)
    except (ValueError, OSError):
        return None
    return plain
