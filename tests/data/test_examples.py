"""Example inputs from files of every kind; damaged ones are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stn_infer.data.examples import load_examples
from stn_infer.errors import InputError

IMAGE, LENGTHS = np.ones((2, 3), np.float32), np.array([1, 2])


def test_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGE, lengths=LENGTHS)
    np.save(tmp_path / "a.npy", IMAGE)
    tensors = torch.from_numpy(IMAGE).bfloat16(), torch.from_numpy(LENGTHS)
    torch.save(tensors, tmp_path / "tuple.pt")
    torch.save(tensors[1], tmp_path / "one.pt")
    torch.save({"image": tensors[0]}, tmp_path / "dict.pth")
    named = load_examples(tmp_path / "a.npz")
    assert isinstance(named, dict) and list(named) == ["image", "lengths"]
    (array,) = load_examples(tmp_path / "a.npy")
    np.testing.assert_array_equal(array, IMAGE)  # type: ignore[arg-type]
    image, lengths = load_examples(tmp_path / "tuple.pt")
    assert image.dtype == np.float32 and lengths.dtype == np.int64  # type: ignore[union-attr]
    assert len(load_examples(tmp_path / "one.pt")) == 1
    assert list(load_examples(tmp_path / "dict.pth")) == ["image"]


def test_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.pt").write_text("no zip")
    (tmp_path / "a.png").write_bytes(b"")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "numbers.pt")
    torch.save([], tmp_path / "empty.pt")
    for name, message in {
        "text.npz": "has no readable arrays",
        "text.pt": "has no readable arrays",
        "a.png": "in a file .npz, .npy, .pt or .pth",
        "missing.npz": "does not exist",
        "object.npy": "has no readable arrays",
        "module.pt": "has no readable arrays",
        "numbers.pt": "expected a tensor, or a list",
        "empty.pt": "holds no tensor",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load_examples(tmp_path / name)
        assert "\n" not in str(caught.value)
