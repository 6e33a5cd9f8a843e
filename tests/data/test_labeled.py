"""Labeled folders and CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from stn_infer.data.labeled import read_labeled
from stn_infer.errors import InputError


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for name in ("dog/b.PNG", "dog/inner/a.jpg", "cat/c.png", "cat/notes.txt", ".hidden/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = read_labeled(tmp_path)
    assert found.labels == ("cat", "dog", "dog") and found.boxes is None
    assert [Path(sample.path).name for sample in found.samples] == ["c.png", "b.PNG", "a.jpg"]


def test_a_cycle_of_links_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").touch()
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert len(read_labeled(tmp_path).samples) == 1


def test_a_table_of_labels_and_boxes(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        '\ufeffPath,label,left,top,right,bottom\na.png,"one, two",0,1,2.5,3\n\nsub/b.npy[7],x,-1,-1,9,9\n', "utf-8"
    )
    found = read_labeled(path)
    assert found.labels == ("one, two", "x") and found.boxes == ((0, 1, 2.5, 3), (-1, -1, 9, 9))
    assert [(sample.name, sample.path, sample.row) for sample in found.samples] == [
        ("a.png", str(tmp_path / "a.png"), None),
        ("sub/b.npy[7]", str(tmp_path / "sub/b.npy"), 7),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none; expected path and label"),
        ("path\na.png\n", "has the columns path; expected path and label"),
        ("label,left\nx,1\n", "has the columns label, left"),
        ("path,label,label\na,b,c\n", "expected path and label"),
        ("path,label\n", "no samples below its header"),
        ("path,label\na.png\n", "line 2: expected 2 cells, found 1"),
        ("path,label\na.png,x\nb.png,\n", "line 3: the label of b.png is missing"),
        ("path,label\n ,x\n", "line 2: the path is missing"),
        ("path,left,top,right,bottom\na.png,1,2,3,x\n", "line 2: left, top, right, bottom are four numbers"),
        ("path,left,top,right,bottom\na.png,1,2,1,4\n", "left < right"),
        ("path,left,top,right,bottom\na.png,1,2,inf,4\n", "left < right"),
    ],
)
def test_a_wrong_table_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_labeled(path)


def test_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing does not exist; expected a folder with one subfolder per class"):
        read_labeled(tmp_path / "nothing")
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match=r"x\.txt is neither; expected a folder"):
        read_labeled(tmp_path / "x.txt")
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(InputError, match="not a CSV file in UTF-8"):
        read_labeled(tmp_path / "bytes.csv")
    with pytest.raises(InputError, match="no images in class folders"):
        read_labeled(tmp_path)
    (tmp_path / "loose.png").touch()
    with pytest.raises(InputError, match=r"loose\.png has no label: it is outside of the class folders"):
        read_labeled(tmp_path)
