"""Photographs from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from stn_infer.data.images import decode, read
from stn_infer.preprocess.rule import Preprocess


def open_picture(path: Path) -> Image.Image:
    """The decoded RGB picture of a file.

    Raises:
        InputError: the file is missing, or is not an image that can be decoded.
    """
    pixels = decode(read(str(path)), Preprocess(color="rgb"), name=str(path))
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
