"""Small data sets in the formats of SVHN and CUB-200-2011; the brightness of picture n is 10 n."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

FIELDS = ("left", "top", "width", "height", "label")
Digit = tuple[float, float, float, float, float]  # left, top, width, height, label


def write_digit_struct(folder: Path, numbers: Sequence[tuple[str, Sequence[Digit]]]) -> None:
    """digitStruct.mat as MATLAB writes it: references to names, and to groups of boxes."""
    reference = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(folder / "digitStruct.mat", "w") as file:
        refs, struct = file.create_group("#refs#"), file.create_group("digitStruct")
        names = struct.create_dataset("name", (len(numbers), 1), reference)
        boxes = struct.create_dataset("bbox", (len(numbers), 1), reference)
        for index, (name, digits) in enumerate(numbers):
            text = refs.create_dataset(f"name{index}", data=np.array([[ord(c)] for c in name], np.uint16))
            names[index, 0] = text.ref
            group = refs.create_group(f"bbox{index}")
            boxes[index, 0] = group.ref
            for column, field in enumerate(FIELDS):
                if len(digits) == 1:
                    group.create_dataset(field, data=np.array([[digits[0][column]]]))
                    continue
                cells = group.create_dataset(field, (len(digits), 1), reference)
                for place, digit in enumerate(digits):
                    value = refs.create_dataset(f"{field}{index}-{place}", data=np.array([[digit[column]]]))
                    cells[place, 0] = value.ref


def write_house_numbers(folder: Path, count: int) -> None:
    """Picture n has the number n in two digits."""
    folder.mkdir(parents=True)
    numbers = []
    for number in range(count):
        Image.fromarray(_plain(number)).save(folder / f"{number}.png")
        tens, ones = number // 10 or 10, number % 10 or 10
        numbers.append((f"{number}.png", [(8, 6, 8, 16, tens), (18, 6, 8, 16, ones)]))
    write_digit_struct(folder, numbers)


def write_birds(folder: Path, training: int, test: int) -> None:
    """Picture n has class n, counted from 1 in the files; each part starts at 0."""
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    numbers = [*range(training), *range(test)]
    for index, number in enumerate(numbers, 1):
        path = folder / "images" / f"{number:03d}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_plain(number)).save(path, quality=100)
        values = (f"{number:03d}/{index}.jpg", number + 1, int(index <= training))
        for name, value in zip(lines, values, strict=True):
            lines[name].append(f"{index} {value}")
    for name, each in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(each) + "\n")


def _plain(number: int) -> np.ndarray:
    return np.full((30, 36, 3), 10 * number, np.uint8)
