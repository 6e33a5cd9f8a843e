"""The pixels of a Pillow image as an array, without a copy of a large image.

Pillow exports its memory through the C data interface of Apache Arrow (https://arrow.apache.org/docs/format/CDataInterface.html)
from version 11.2 on. There a pixel of RGB has four bytes.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: From so many pixels on, an array is Pillow's own memory; for a smaller image, that takes longer than a copy.
SHARED_PIXELS = 1 << 14
_BYTES_OF_RGB = 4

Pixels = NDArray[np.uint8]


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels of an image of mode L, [H, W, 1], or RGB, [H, W, 3] or [H, W, 4] with an unused byte; read-only."""
    width, height = image.size
    shared = shared_pixels(image) if width * height >= SHARED_PIXELS else None
    if shared is not None:
        return shared
    # Twice as fast as numpy.asarray(image), which gets the same bytes through the array interface.
    pixels: Pixels = np.frombuffer(image.tobytes(), np.uint8)
    return pixels.reshape(height, width, 1 if image.mode == "L" else 3)


def shared_pixels(image: Image.Image) -> Pixels | None:
    """Pillow's own memory of an image of mode L, [H, W, 1], or RGB, [H, W, 4] with an unused byte; read-only.

    Returns:
        An array that keeps the memory alive; None if Pillow does not export it, or has it in several blocks.
    """
    if _alignment_of_rows() != 1:  # the export leaves no place for padding
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError, MemoryError):
        return None
    array = _ArrowArray.from_address(_pointer_of(capsule, b"arrow_array"))
    width, height = image.size
    channels = 1
    if array.n_children == 1:
        array, channels = array.children[0].contents, _BYTES_OF_RGB
    size = width * height * channels
    if array.length != size or array.offset or array.n_buffers != 2 or image.mode != ("L" if channels == 1 else "RGB"):
        return None
    memory = (ctypes.c_ubyte * size).from_address(array.buffers[1])
    memory.capsule = capsule  # type: ignore[attr-defined]  # Pillow's memory lives as long as this
    shared: Pixels = np.frombuffer(memoryview(memory), np.uint8).reshape(height, width, channels)
    shared.flags.writeable = False
    return shared


def _alignment_of_rows() -> int:
    """To how many bytes Pillow pads the rows of new images (``PILLOW_ALIGNMENT``)."""
    alignment: int = Image.core.get_alignment()  # type: ignore[attr-defined]
    return alignment
