"""SVHN's full-number format, written here as MATLAB writes it: references to names, and to groups of boxes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from export.datasets.svhn import crop, read_house_numbers, targets
from stn_infer.errors import InputError, MissingDependencyError, UsageError
from tests.support.photographs import Digit
from tests.support.photographs import write_digit_struct as write

ONE: list[Digit] = [(20, 10, 10, 20, 7)]
THREE: list[Digit] = [(4, 6, 8, 16, 1), (12, 8, 8, 16, 10), (20, 7, 8, 16, 2)]
SIX: list[Digit] = [(4.0 * i, 2, 4, 8, i + 1) for i in range(6)]


def picture(folder: Path, name: str) -> np.ndarray:
    """Columns in red, rows in green: a crop's pixels tell where they come from."""
    columns, rows = np.meshgrid(np.arange(60), np.arange(40))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return pixels


def test_numbers_boxes_and_zero_are_read(tmp_path: Path) -> None:
    write(tmp_path, [("1.png", ONE), ("2.png", THREE), ("3.png", SIX)])
    one, three = read_house_numbers(tmp_path)
    assert (one.path, one.digits, one.box) == (tmp_path / "1.png", (7,), (20, 10, 30, 30))
    assert (three.digits, three.box) == ((1, 0, 2), (4, 6, 28, 24))
    assert targets([one, three]).tolist() == [[7, 10, 10, 10, 10], [1, 0, 2, 10, 10]]
    assert read_house_numbers(tmp_path, longest=6)[2].digits == (1, 2, 3, 4, 5, 6)


def test_crops_show_the_expanded_box(tmp_path: Path) -> None:
    write(tmp_path, [("1.png", ONE)])
    picture(tmp_path, "1.png")
    (number,) = read_house_numbers(tmp_path)
    tight, loose = crop(number), crop(number, 128)
    assert tight.shape == (64, 64, 3) and loose.shape == (128, 128, 3)
    assert tight.dtype == np.uint8
    # 13 x 26 pixels around (25, 20); a pixel's value is its index, half a pixel below its center
    steps = (np.arange(64) + 0.5) / 64
    assert np.abs(tight[32, :, 0] - (18.5 + 13 * steps - 0.5)).max() <= 1
    assert np.abs(tight[:, 32, 1] - (7 + 26 * steps - 0.5)).max() <= 1
    assert np.abs(loose[32:96, 32:96].astype(int) - tight).max() <= 1


def test_a_crop_beyond_the_photograph_repeats_its_edge(tmp_path: Path) -> None:
    write(tmp_path, [("1.png", [(0, 0, 10, 10, 3)])])
    picture(tmp_path, "1.png")
    found = crop(read_house_numbers(tmp_path)[0])
    assert (found[:8, :8, :2] <= 1).all()
    assert found[-1, -1, 0] >= 10


def test_missing_and_damaged_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no such file: .*digitStruct\.mat; unpack"):
        read_house_numbers(tmp_path)
    write(tmp_path, [("1.png", ONE)])
    whole = (tmp_path / "digitStruct.mat").read_bytes()
    (number,) = read_house_numbers(tmp_path)
    with pytest.raises(InputError, match=r"no such file: .*1\.png"):
        crop(number)
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(InputError, match=r"1\.png is "):
        crop(number)
    with pytest.raises(UsageError, match="at least 1 pixel"):
        crop(number, 0)
    for content in (b"", b"MATLAB 5.0 MAT-file", whole[: len(whole) // 2]):
        (tmp_path / "digitStruct.mat").write_bytes(content)
        with pytest.raises(InputError, match=r"is not a digitStruct\.mat of SVHN \(.*\); unpack") as caught:
            read_house_numbers(tmp_path)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match="which h5py reads; pip install"):
        read_house_numbers(tmp_path)


@pytest.mark.parametrize(
    ("name", "digits", "reason"),
    [
        ("../1.png", ONE, "is not the name of a file"),
        ("", ONE, "is not the name of a file"),
        ("1.png", [(20, 10, 10, 20, 0)], "a label outside 1 to 10"),
        ("1.png", [(20, 10, 10, 20, 11)], "a label outside 1 to 10"),
        ("1.png", [(20, 10, 0, 20, 1)], "an empty box"),
        ("1.png", [(float("nan"), 10, 5, 20, 1)], "finite"),
    ],
)
def test_entries_that_svhn_does_not_have_are_named(tmp_path: Path, name: str, digits: list[Digit], reason: str) -> None:
    write(tmp_path, [(name, digits)])
    with pytest.raises(InputError, match=reason):
        read_house_numbers(tmp_path)


def test_an_hdf5_file_of_another_structure_is_named(tmp_path: Path) -> None:
    path = tmp_path / "digitStruct.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("digitStruct", data=np.zeros(3))
    with pytest.raises(InputError, match=r"is not a digitStruct\.mat"):
        read_house_numbers(tmp_path)
    write(tmp_path, [("1.png", ONE)])
    with h5py.File(path, "a") as file:
        del file["#refs#"]["bbox0"]["top"]
    with pytest.raises(InputError, match=r"is not a digitStruct\.mat"):
        read_house_numbers(tmp_path)
