"""Example inputs of a model, from one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import InputError, one_line

_SUFFIXES = ".npz, .npy, .pt or .pth"


def load_examples(path: str | Path) -> dict[str, Array] | tuple[Array, ...]:
    """Load example inputs: by name from an ``.npz`` file or a dictionary of tensors, else in order.

    Args:
        path: an ``.npz`` file, an ``.npy`` file (one input), or tensors saved by ``torch.save``: one, a list, a tuple
            or a dictionary. No code in it is run.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy", ".pt", ".pth"):
        raise InputError(f"{path}: expected example inputs in a file {_SUFFIXES}")
    try:
        if suffix == ".npy":
            return (np.load(path, mmap_mode="r", allow_pickle=False),)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: np.asarray(stored[name]) for name in stored.files}
        import torch

        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected example inputs in a file {_SUFFIXES}") from None
    except (Exception, MemoryError) as error:  # numpy, zipfile and pickle raise many types for a damaged file
        raise InputError(f"{path} has no readable arrays: {one_line(error)}") from None
    return _arrays(path, loaded)


def _arrays(path: Path, loaded: Any) -> dict[str, Array] | tuple[Array, ...]:
    import torch

    if isinstance(loaded, torch.Tensor):
        loaded = (loaded,)
    values = list(loaded.values()) if isinstance(loaded, Mapping) else loaded
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError(f"{path}: expected a tensor, or a list, a tuple or a dictionary of tensors")
    if not values:
        raise InputError(f"{path} holds no tensor")
    arrays = [(value.float() if value.is_floating_point() else value).detach().numpy() for value in values]
    if isinstance(loaded, Mapping):
        return dict(zip(map(str, loaded), arrays, strict=True))
    return tuple(arrays)
