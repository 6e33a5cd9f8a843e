"""CUB-200-2011's format: three text files that agree, and images of several shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.datasets.cub import Bird, read_birds, resized
from stn_infer.errors import InputError, UsageError

FIRST, SECOND = "001.Black_footed_Albatross/Black_Footed_1.jpg", "200.Common_Yellowthroat/Common_2.jpg"
FILES = {
    "images.txt": f"1 {FIRST}\n2 {SECOND}\n",
    "image_class_labels.txt": "1 1\n2 200\n",
    "train_test_split.txt": "1 0\n2 1\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    for name, size in ((FIRST, (90, 40)), (SECOND, (30, 50))):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        pixels = np.full((size[1], size[0], 3), 200, np.uint8)
        pixels[:, : (size[0] - min(size)) // 2] = 0
        Image.fromarray(pixels).save(path, quality=95)
    return tmp_path


def test_paths_labels_and_the_split_are_read(folder: Path) -> None:
    assert read_birds(folder) == [
        Bird(folder / "images" / FIRST, 0, False),
        Bird(folder / "images" / SECOND, 199, True),
    ]


def test_images_are_resized_squares_of_the_middle(folder: Path) -> None:
    first, second = (resized(bird, 32) for bird in read_birds(folder))
    assert first.shape == second.shape == (32, 32, 3)
    assert (np.abs(second.astype(int) - 200) < 4).all()
    assert (np.abs(first[:, 2:].astype(int) - 200) < 12).all(), "the dark part at the left is outside"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"cannot read .*{name}: No such file.*; unpack CUB_200_2011\.tgz"):
        read_birds(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images.txt", "", "lists no images"),
        ("images.txt", "1 a.jpg\n1 b.jpg\n", "line 2: expected a new image number"),
        ("images.txt", "1 ../a.jpg\n", "line 1: expected"),
        ("images.txt", "1 /a.jpg\n", "line 1: expected"),
        ("images.txt", "1\n", "line 1: expected"),
        ("image_class_labels.txt", "1 1\n2 bird\n", "line 2: expected"),
        ("image_class_labels.txt", "1 1\n2 0\n", "line 2: expected"),
        ("image_class_labels.txt", "1 1\n", "image 2 is in only one of them"),
        ("train_test_split.txt", "1 0\n2 1\n3 1\n", "image 3 is in only one of them"),
        ("train_test_split.txt", "1 0\n2 2\n", "line 2: expected"),
        ("train_test_split.txt", "one 0\n", "line 1: expected"),
    ],
)
def test_damaged_files_name_the_line(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_birds(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_text_and_a_missing_image_are_one_line(folder: Path) -> None:
    bird = read_birds(folder)[0]
    with pytest.raises(UsageError, match="at least 1 pixel"):
        resized(bird, 0)
    bird.path.write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="Black_Footed_1"):
        resized(bird)
    bird.path.unlink()
    with pytest.raises(InputError, match=r"no such file: .*Black_Footed_1\.jpg"):
        resized(bird)
    (folder / "images.txt").write_bytes(b"1 \xff\xfe\n")
    with pytest.raises(InputError, match="is not a text file"):
        read_birds(folder)
