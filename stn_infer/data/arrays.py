"""Samples from .npy and .npz files.

Floating-point arrays are a model's inputs as they are, [N, ...] or one sample. Arrays of uint8 for a floating-point
image input are pixels, as an image file's would be: [H, W] and [H, W, C] are one image, [N, H, W] gray images,
[N, H, W, C] images, C being 1 or 3, and they go through the same pre-processing. A model with several inputs takes .npz
files with those names.
"""

from __future__ import annotations

import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.images import from_array, reason_of
from stn_infer.errors import InputError
from stn_infer.metadata import Preprocess

_OPEN_FILES = 4  # a worker reads neighboring rows, so a few files serve them all


class ArrayFiles:
    """Reads samples for the inputs ``specs``; safe to share between threads.

    Args:
        specs: the model's inputs, batch on axis 0.
        preprocess: how pixels become inputs; None when no input is an image.
    """

    def __init__(self, specs: Sequence[TensorSpec], preprocess: Preprocess | None) -> None:
        self._specs = tuple(specs)
        self._preprocess = preprocess
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Mapping[str, Array]] = OrderedDict()

    def count_rows(self, path: str) -> int | None:
        """How many samples ``path`` holds; None when it is one sample. Reads no more than the headers.

        Raises:
            InputError: the file is unreadable, lacks an input, or its shape or type does not fit.
        """
        headers = self._named(path, _headers(path))
        counts = set()
        for spec in self._specs:
            shape, dtype = headers[spec.name]
            counts.add(shape[0] if self._is_batch(path, spec, shape, dtype) else None)
        if len(counts) > 1:
            raise InputError(f"{path}: its arrays hold different numbers of samples")
        return counts.pop()

    def load(self, path: str, row: int | None) -> dict[str, Array]:
        """One sample: by input name, pixels as uint8 [C, H, W], anything else in the input's type.

        Raises:
            InputError: the file is unreadable or has changed since it was counted.
        """
        arrays = self._open(path)
        sample = {}
        for spec in self._specs:
            try:
                values = arrays[spec.name] if row is None else arrays[spec.name][row]
            except (KeyError, IndexError):
                raise InputError(f"{path} has changed since its samples were counted") from None
            if self._is_pixels(spec, values.dtype):
                assert self._preprocess is not None
                height, width = spec.shape[2:]
                sample[spec.name] = from_array(values, self._preprocess, (height, width), path)
            else:
                sample[spec.name] = np.asarray(values, dtype=spec.dtype)
                if spec.dtype.kind == "f" and not np.isfinite(sample[spec.name]).all():
                    raise InputError(f"{path}: expected finite numbers, it holds NaN or infinity")
        return sample

    def _is_pixels(self, spec: TensorSpec, dtype: np.dtype[Any]) -> bool:
        return (
            dtype == np.uint8
            and spec.dtype.kind == "f"
            and len(spec.shape) == 4
            and self._preprocess is not None
            and spec.shape[1] in (None, self._preprocess.channels)
        )

    def _is_batch(self, path: str, spec: TensorSpec, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether an array of this shape and type is many samples of ``spec`` (or one)."""
        if self._is_pixels(spec, dtype):
            color = len(shape) > 2 and shape[-1] in (1, 3)
            if len(shape) == 2 or (len(shape) == 3 and color):
                return False
            if len(shape) == 3 or (len(shape) == 4 and color):
                return True
            raise InputError(f"{path}: uint8 pixels are [N, H, W] or [N, H, W, C] with C 1 or 3, found {list(shape)}")
        if not np.can_cast(dtype, spec.dtype, "same_kind") or (dtype == np.uint8 and spec.dtype.kind == "f"):
            raise InputError(f"{path}: input {spec.name!r} takes {spec.dtype} values, found {dtype}")
        wanted = spec.shape[1:]
        if len(shape) == len(wanted) + 1 and _fits(shape[1:], wanted):
            return True
        if _fits(shape, wanted):
            return False
        text = ", ".join("any" if axis is None else str(axis) for axis in wanted)
        raise InputError(f"{path}: input {spec.name!r} takes [N, {text}], found {list(shape)}")

    def _named(self, path: str, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        """``arrays`` by the model's input names; a single array needs no name."""
        if len(self._specs) == 1 and len(arrays) == 1:
            return {self._specs[0].name: next(iter(arrays.values()))}
        missing = [spec.name for spec in self._specs if spec.name not in arrays]
        if missing:
            found = ", ".join(arrays) or "no array"
            kind = "" if path.endswith(".npz") else " (several inputs need an .npz file)"
            raise InputError(
                f"{path}: expected arrays named {', '.join(s.name for s in self._specs)}, found {found}{kind}"
            )
        return arrays

    def _open(self, path: str) -> Mapping[str, Array]:
        """The arrays of a file: mapped where it is .npy, in memory where it is .npz; the last few stay open."""
        with self._lock:
            if path in self._opened:
                self._opened.move_to_end(path)
                return self._opened[path]
            try:
                if _is_npy(path):
                    arrays: Mapping[str, Array] = {"": np.lib.format.open_memmap(path, mode="r")}
                else:
                    with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
                        arrays = {name: loaded[name] for name in loaded.files}
            except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise InputError(f"{path} is damaged or unreadable: {reason_of(error)}") from None
            self._opened[path] = self._named(path, arrays)
            if len(self._opened) > _OPEN_FILES:
                self._opened.popitem(last=False)
            return self._opened[path]


def _headers(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """(shape, dtype) of each array in a file, by name; the one array of a .npy file is called ""."""
    try:
        if _is_npy(path):
            with open(path, "rb") as file:
                return {"": _header(file)}
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    headers[name.removesuffix(".npy")] = _header(member)
            return headers
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path} is not a readable {Path(path).suffix} file: {reason_of(error)}") from None


def _is_npy(path: str) -> bool:
    return path.lower().endswith(".npy")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    return shape, dtype


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length is None or length == given for length, given in zip(wanted, shape, strict=True)
    )
