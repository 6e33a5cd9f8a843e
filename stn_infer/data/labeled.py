"""Labeled samples for ``eval``: a folder with one subfolder per class, or a CSV file of paths and labels."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from stn_infer.data.inputs import IMAGE_SUFFIXES, Sample, is_array, walk
from stn_infer.decoding import SIDES
from stn_infer.errors import InputError

Box = tuple[float, float, float, float]
_ROW = re.compile(r"(.+\.npy|.+\.npz)\[(\d+)\]", re.IGNORECASE)
_EXPECTED = "a folder with one subfolder per class, or a CSV file with the columns path and label"


@dataclass(frozen=True)
class Labeled:
    """Samples and what they show.

    Attributes:
        samples: in the order of the file, or by class and name.
        labels: a class or a text for each; None if the file has no labels.
        boxes: (left, top, right, bottom) in pixels of the model's input for each; None if the file has no boxes.
    """

    samples: tuple[Sample, ...]
    labels: tuple[str, ...] | None
    boxes: tuple[Box, ...] | None = None


def read_labeled(data: str | Path) -> Labeled:
    """The samples of ``data``.

    Args:
        data: a folder with one subfolder per class, whose name is the label, or a CSV file with the column ``path`` and
            ``label``, or the four columns ``left``, ``top``, ``right`` and ``bottom``, or both. Paths are relative to
            the CSV file; ``file.npy[3]`` is row 3 of an array file.

    Raises:
        InputError: it does not exist, has no samples, or lacks a label.
    """
    path = Path(data)
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".csv":
        return _table(path)
    problem = "is neither" if path.exists() else "does not exist"
    raise InputError(f"{path} {problem}; expected {_EXPECTED}")


def _folder(folder: Path) -> Labeled:
    samples: list[Sample] = []
    labels: list[str] = []
    for path in _sorted(folder):
        if not path.is_dir():
            if _is_image(path):
                raise InputError(f"{path} has no label: it is outside of the class folders; expected {_EXPECTED}")
            continue
        images = [file for file in walk(str(path), Counter()) if not is_array(file)]
        samples += [Sample(file, file) for file in images]
        labels += [path.name] * len(images)
    if not samples:
        raise InputError(f"{folder} has no images in class folders; expected {_EXPECTED}")
    return Labeled(tuple(samples), tuple(labels))


def _sorted(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}") from None


def _is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def _table(path: Path) -> Labeled:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip().lower() for name in next(rows, [])]
            lines = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8 ({error}); expected {_EXPECTED}") from None
    has_label, has_box = "label" in header, set(SIDES) <= set(header)
    if "path" not in header or not (has_label or has_box) or len(set(header)) != len(header):
        found = ", ".join(header) or "none"
        raise InputError(f"{path} has the columns {found[:80]}; expected path and label, or path, {', '.join(SIDES)}")
    if not lines:
        raise InputError(f"{path} has no samples below its header")
    samples, labels, boxes = [], [], []
    for number, row in lines:
        if len(row) != len(header):
            raise InputError(f"{path}, line {number}: expected {len(header)} cells, found {len(row)}")
        cells = dict(zip(header, row, strict=True))
        if not cells["path"].strip():
            raise InputError(f"{path}, line {number}: the path is missing")
        samples.append(_sample(path.parent, cells["path"]))
        if has_label:
            if cells["label"] == "":
                raise InputError(f"{path}, line {number}: the label of {cells['path']} is missing")
            labels.append(cells["label"])
        if has_box:
            boxes.append(_box(path, number, cells))
    return Labeled(tuple(samples), tuple(labels) if has_label else None, tuple(boxes) if has_box else None)


def _sample(folder: Path, text: str) -> Sample:
    row = _ROW.fullmatch(text)
    if row:
        return Sample(text, os.path.join(folder, row[1]), int(row[2]))
    return Sample(text, os.path.join(folder, text))


def _box(path: Path, number: int, cells: dict[str, str]) -> Box:
    try:
        left, top, right, bottom = (float(cells[side]) for side in SIDES)
    except ValueError:
        raise InputError(f"{path}, line {number}: {', '.join(SIDES)} are four numbers") from None
    if not (all(map(isfinite, (left, top, right, bottom))) and left < right and top < bottom):
        raise InputError(f"{path}, line {number}: a box has left < right and top < bottom, both finite")
    return left, top, right, bottom
