"""MNIST's own files: read, checked and split."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from stn_infer.data import mnist
from stn_infer.data.mnist import load_mnist, read_idx
from stn_infer.errors import InputError


def write_idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """6,000 + 30 random digits under MNIST's names."""
    rng = np.random.default_rng(3)
    for names, count in ((mnist.TRAIN_FILES, 6000), (mnist.TEST_FILES, 30)):
        write_idx(tmp_path / names[0], rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / names[1], rng.integers(0, 10, count, dtype=np.uint8))
    monkeypatch.setattr(mnist, "TRAIN_FILES", (*mnist.TRAIN_FILES[:2], 6000))
    monkeypatch.setattr(mnist, "TEST_FILES", (*mnist.TEST_FILES[:2], 30))
    return tmp_path


def test_validation_is_the_first_500_of_each_class(folder: Path) -> None:
    training, validation, test = (load_mnist(part, folder) for part in ("training", "validation", "test"))
    assert [len(part.labels) for part in (training, validation, test)] == [1000, 5000, 30]
    assert np.bincount(validation.labels).tolist() == [500] * 10
    pixels = read_idx(folder / mnist.TRAIN_FILES[0], (6000, 28, 28))
    labels = read_idx(folder / mnist.TRAIN_FILES[1], (6000,))
    for label in range(10):
        members = pixels[labels == label]
        assert np.array_equal(validation.images[validation.labels == label], members[:500])
        assert np.array_equal(training.images[training.labels == label], members[500:])


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", struct.pack(">HBB3I", 0, 8, 3, 30, 28, 28) + bytes(30 * 784 - 1)]
)
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / mnist.TEST_FILES[0]).write_bytes(content)
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte is not an MNIST file of shape \[30, 28, 28\]"):
        load_mnist("test", folder)


def test_a_missing_file_says_how_to_download_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte: No such file or directory; run `make mnist`"):
        load_mnist("training", tmp_path)
