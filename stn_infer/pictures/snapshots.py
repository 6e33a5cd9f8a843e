"""Checkpoints of one training run in order, and what is written on their frames of an animation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stn_infer.errors import WeightsError

SUFFIXES = (".safetensors", ".pt", ".pth")
#: The key of a .safetensors file's metadata under which the number of training steps is stored.
STEP = "step"


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint.

    Attributes:
        path: the file.
        caption: its training step, or its name if the file does not store one.
    """

    path: Path
    caption: str


def find_snapshots(given: Sequence[str | Path]) -> tuple[Snapshot, ...]:
    """The checkpoints ``given``, in this order; those of a folder in the order of the numbers in their names.

    Raises:
        WeightsError: a path does not exist, or a folder has no checkpoints.
    """
    files: list[Path] = []
    for path in map(Path, given):
        files += _in_folder(path) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            raise WeightsError(
                f"{file}: expected a checkpoint, or a folder of checkpoints, but the path does not exist"
            )
    return tuple(Snapshot(file, _caption(file)) for file in files)


def _in_folder(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise WeightsError(f"{folder} has no checkpoints ({', '.join(SUFFIXES)})")
    return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A key that sorts step-9 before step-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", path.name)]


def _caption(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "np") as file:
                step = (file.metadata() or {}).get(STEP, "")
        except (SafetensorError, OSError):  # told where the weights are loaded
            step = ""
        if step.isdecimal():
            return f"step {int(step):,}"
    return path.stem
