"""Which checkpoints are the frames of a training run, in which order, and what is written on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stn_infer.errors import WeightsError
from stn_infer.pictures.snapshots import find_snapshots


def keep(path: Path, step: str | None = None) -> Path:
    save_file({"w": np.zeros(1, np.float32)}, path, None if step is None else {"step": step})
    return path


def test_a_folder_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for name in ("epoch-10.pt", "epoch-9.pt", "epoch-9.5.pt", "best.pth", "notes.txt", ".hidden.pt"):
        (tmp_path / name).write_bytes(b"")
    keep(tmp_path / "epoch-2.safetensors")
    found = find_snapshots([tmp_path])
    assert [each.path.name for each in found] == [
        *("best.pth", "epoch-2.safetensors", "epoch-9.5.pt", "epoch-9.pt", "epoch-10.pt")
    ]


def test_files_keep_their_order_and_tell_their_step(tmp_path: Path) -> None:
    last, first = keep(tmp_path / "a.safetensors", "1200"), keep(tmp_path / "b.safetensors", "0")
    unnamed, odd = keep(tmp_path / "c.safetensors"), keep(tmp_path / "d.safetensors", "soon")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 20)
    found = find_snapshots([first, last, unnamed, odd, damaged])
    assert [each.caption for each in found] == ["step 0", "step 1,200", "c", "d", "damaged"]


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="none: expected a checkpoint, or a folder"):
        find_snapshots([tmp_path / "none"])
    with pytest.raises(WeightsError, match="has no checkpoints"):
        find_snapshots([tmp_path])
