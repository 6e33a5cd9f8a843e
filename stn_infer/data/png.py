"""The plainest PNG files, read in half of Pillow's time.

Pillow walks a PNG's chunks in Python, with the interpreter's lock held; for an image of a few hundred bytes that is
nearly all the time it takes, and threads cannot share it. Here the chunks are walked once, and Pillow's own decoder
gets the compressed pixels. Whatever is not plain, or not sound, is left to Pillow, for its picture or its complaint.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = Struct(">IIBBBBB")  # width, height, bit depth, color type, compression, filter, interlace
_WORD = Struct(">I")
_MODES = {0: "L", 2: "RGB"}
_PLAIN = {b"pHYs", b"tEXt", b"tIME", b"gAMA", b"sRGB", b"cHRM", b"IEND"}  # say nothing about the stored pixels
_MOST_PIXELS = 1 << 22  # far below what Pillow calls a decompression bomb


def open_plain_png(data: bytes) -> Image.Image | None:
    """The image in ``data``, if that is a PNG of 8-bit gray or RGB without interlacing, transparency or damage.

    Returns:
        The decoded image, the same as ``PIL.Image.open`` would give; None where Pillow has to see for itself.
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
        elif kind not in _PLAIN:
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
    try:
        return Image.frombytes(mode, (width, height), b"".join(pixels), "zip", mode, 0)
    except (ValueError, OSError):
        return None
