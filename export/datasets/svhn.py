"""SVHN in its full-number format: PNGs, and digitStruct.mat with a box and a label for each digit.

digitStruct.mat is a MATLAB 7.3 file, which is HDF5. ``digitStruct/name`` and ``digitStruct/bbox`` hold one object
reference per image: to the characters of the file's name, and to a group with ``left``, ``top``, ``width``, ``height``
and ``label``. Each of the five is one number for an image with one digit, otherwise one reference per digit to its
number. Label 10 is the digit 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.datasets.pictures import open_picture
from stn_infer.errors import InputError, MissingDependencyError, UsageError
from stn_infer.extras import install

FILE = "digitStruct.mat"
FIELDS = ("left", "top", "width", "height", "label")
NO_DIGIT = 10  # the class of the places after the last digit
EXPANSION = 1.3  # of the box around all digits (Goodfellow et al. 2013, section 5.1)
TIGHT = 64  # pixels; the paper's looser crops of 128 pixels show twice the region at the same resolution

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class HouseNumber:
    """A number on a photograph.

    Attributes:
        path: of the PNG.
        digits: its digits, first to last.
        box: (left, top, right, bottom) around all digits, in pixels.
    """

    path: Path
    digits: tuple[int, ...]
    box: Box


def read_house_numbers(folder: Path, longest: int = 5) -> list[HouseNumber]:
    """The numbers of an SVHN folder (``train``, ``test`` or ``extra``), in the order of its digitStruct.mat.

    Args:
        folder: with digitStruct.mat and the PNGs.
        longest: longer numbers are left out. The networks predict up to five digits.

    Raises:
        InputError: digitStruct.mat is missing or damaged.
        MissingDependencyError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError(f"SVHN's digitStruct.mat is HDF5, which h5py reads; {install('train')}") from None
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(f"no such file: {path}; unpack SVHN's full-number archive (train.tar.gz) there")
    try:
        with h5py.File(path, "r") as file:
            names, boxes = file["digitStruct"]["name"], file["digitStruct"]["bbox"]
            if len(names) != len(boxes):
                raise ValueError(f"{len(names)} names and {len(boxes)} boxes")
            found = [
                _number(path.parent, _text(file, name[0]), _values(file, box[0]))
                for name, box in zip(names, boxes, strict=True)
            ]
    except (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        reason = str(error).strip("'\"").partition("\n")[0]
        raise InputError(f"{path} is not a digitStruct.mat of SVHN ({reason}); unpack the archive again") from None
    return [number for number in found if len(number.digits) <= longest]


def crop(number: HouseNumber, size: int = TIGHT) -> NDArray[np.uint8]:
    """The crop that the networks read.

    The box around all digits is expanded by 30 % and resized to 64 x 64 pixels, without keeping its aspect ratio. A
    crop of 128 x 128 pixels shows twice that width and height. What lies outside the photograph repeats its edge.

    Args:
        number: from :func:`read_house_numbers`.
        size: 64 or 128 pixels, or another size in the same proportion.

    Returns:
        [size, size, 3] uint8, RGB.

    Raises:
        UsageError: a size below 1.
        InputError: the PNG is missing or damaged.
    """
    if size < 1:
        raise UsageError(f"a crop has at least 1 pixel, not {size}")
    picture = open_picture(number.path)
    factor = EXPANSION * size / TIGHT / 2
    left, top, right, bottom = number.box
    half_width, half_height = factor * (right - left), factor * (bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    region = (x - half_width, y - half_height, x + half_width, y + half_height)
    picture, region = _padded(picture, region)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=region))


def targets(numbers: Sequence[HouseNumber], longest: int = 5) -> NDArray[np.int64]:
    """Classes [N, longest] int64: the digits, and 10 after the last one."""
    return sequences([number.digits for number in numbers], longest)


def sequences(digits: Sequence[Sequence[int]], longest: int = 5) -> NDArray[np.int64]:
    """Numbers as classes [N, longest] int64: the digits, and 10 after the last one."""
    found = np.full((len(digits), longest), NO_DIGIT, np.int64)
    for row, number in zip(found, digits, strict=True):
        row[: len(number)] = number
    return found


def _text(file: Any, reference: Any) -> str:
    name = "".join(chr(code) for code in np.asarray(file[reference]).reshape(-1))
    if not name or Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file")
    return name


def _values(file: Any, reference: Any) -> NDArray[np.float64]:
    """The five fields [5, digits]."""
    group = file[reference]
    rows = []
    for field in FIELDS:
        values = np.asarray(group[field]).reshape(-1)
        if values.dtype == object:
            values = np.array([np.asarray(file[value]).item() for value in values])
        rows.append(values.astype(np.float64))
    found = np.stack(rows)
    if not np.isfinite(found).all() or not found.shape[1]:
        raise ValueError("a box without finite numbers")
    return found


def _number(folder: Path, name: str, values: NDArray[np.float64]) -> HouseNumber:
    left, top, width, height, labels = values
    if not (np.isin(labels, np.arange(1, 11)).all() and (width > 0).all() and (height > 0).all()):
        raise ValueError(f"{name} has a label outside 1 to 10, or an empty box")
    box = (left.min(), top.min(), (left + width).max(), (top + height).max())
    digits = tuple(int(label) % 10 for label in labels)
    return HouseNumber(folder / name, digits, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))


def _padded(picture: Image.Image, region: Box) -> tuple[Image.Image, Box]:
    """The part of the picture under ``region``, with repeated edges where that lies outside, and the region in it."""
    low_x, low_y = int(np.floor(region[0])), int(np.floor(region[1]))
    columns = np.clip(np.arange(low_x, int(np.ceil(region[2])) + 1), 0, picture.width - 1)
    rows = np.clip(np.arange(low_y, int(np.ceil(region[3])) + 1), 0, picture.height - 1)
    part = np.asarray(picture)[rows[:, None], columns]
    return Image.fromarray(part), (region[0] - low_x, region[1] - low_y, region[2] - low_x, region[3] - low_y)
