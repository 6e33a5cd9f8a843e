"""Samples from .npy and .npz files.

Floating-point arrays are used as model inputs without conversion: [N, ...], or one sample. uint8 arrays for a
floating-point image input are pixels and get the same pre-processing as an image file: [H, W] or [H, W, C] is one
image, [N, H, W] or [N, H, W, C] is N images, with C 1 or 3. A model with several inputs takes .npz files whose arrays
have the inputs' names.
"""

from __future__ import annotations

import os
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.images import from_array, reason_of
from stn_infer.errors import InputError, one_line
from stn_infer.files import open_regular
from stn_infer.preprocess.rule import Preprocess

T = TypeVar("T")

_OPEN_FILES = 4  # workers read neighboring rows, so a few open files are enough
_MOST_UNPACKED = 2 << 30
_SHORT = "its data is truncated"


class ArrayFiles:
    """Reads samples for the inputs ``specs``; safe to share between threads.

    Args:
        specs: the model's inputs, batch on axis 0.
        preprocess: how pixels become inputs; None when no input is an image.
        axis: the inputs on this axis have one row per sample, and the arrays of the others belong to all samples of a
            file; None: all have one row per sample.
    """

    def __init__(self, specs: Sequence[TensorSpec], preprocess: Preprocess | None, axis: str | None = None) -> None:
        self._specs = tuple(specs)
        self._axis = axis
        self._preprocess = preprocess
        self._lock = threading.Lock()
        #: Whether a counted file has pixels, which are preprocessed like images.
        self.pixels = False
        self._opened: OrderedDict[str, Mapping[str, Array | _Npy]] = OrderedDict()

    def count_rows(self, path: str) -> int | None:
        """The number of samples in ``path``; None if the file is one sample. Reads only the headers.

        Raises:
            InputError: the file is unreadable, lacks an input, or its shape or type does not match.
        """
        headers = self._named(path, self._headers(path))
        counts = set()
        for spec in self._specs:
            shape, dtype = headers[spec.name].shape, headers[spec.name].dtype
            is_batch = self._is_batch(path, spec, shape, dtype)
            self.pixels |= self._is_pixels(spec, dtype)
            if 0 in shape[is_batch:]:
                raise InputError(f"{path}: its samples are empty, {list(shape)}")
            if self.is_shared(spec):
                continue
            counts.add(shape[0] if is_batch else None)
        if len(counts) > 1:
            raise InputError(f"{path}: its arrays have different numbers of samples")
        return counts.pop()

    def load(self, path: str, row: int | None) -> dict[str, Array]:
        """Returns one sample by input name: pixels as uint8 [C, H, W], other arrays in the input's dtype.

        Raises:
            InputError: the file is unreadable or has changed since it was counted.
        """
        arrays = self._open(path)
        sample = {}
        for spec in self._specs:
            try:
                array = arrays[spec.name]
                if self.is_shared(spec):
                    sample[spec.name] = self._shared(path, spec, array)
                    continue
                values = array[row] if row is not None else array.whole() if isinstance(array, _Npy) else array
            except (KeyError, IndexError, ValueError):
                raise InputError(f"{path} has changed since its samples were counted") from None
            if self._is_pixels(spec, values.dtype):
                assert self._preprocess is not None
                height, width = spec.shape[2:]
                sample[spec.name] = from_array(values, self._preprocess, (height, width), path)
            else:
                sample[spec.name] = np.asarray(values, dtype=spec.dtype)
                if spec.dtype.kind == "f" and not np.isfinite(sample[spec.name]).all():
                    raise InputError(f"{path}: expected finite numbers, found NaN or infinity")
        return sample

    def is_shared(self, spec: TensorSpec) -> bool:
        """Whether the array of this input belongs to all samples of a file."""
        return self._axis is not None and spec.batch != self._axis

    def _shared(self, path: str, spec: TensorSpec, array: Array | _Npy) -> Array:
        """The whole array [N, ...] of such an input; a single row may lack the axis."""
        values = np.asarray(array.whole() if isinstance(array, _Npy) else array)
        if self._is_pixels(spec, values.dtype):
            raise InputError(f"{path}: give {spec.name!r} as {spec.dtype} values, not as pixels")
        values = values.astype(spec.dtype, copy=False)
        if spec.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(f"{path}: expected finite numbers, found NaN or infinity")
        return values if values.ndim == len(spec.shape) else values[None]

    def _is_pixels(self, spec: TensorSpec, dtype: np.dtype[Any]) -> bool:
        return (
            dtype == np.uint8
            and spec.dtype.kind == "f"
            and len(spec.shape) == 4
            and self._preprocess is not None
            and spec.shape[1] in (None, self._preprocess.channels)
        )

    def _is_batch(self, path: str, spec: TensorSpec, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether an array of this shape and type is a batch of samples of ``spec`` rather than one sample."""
        if self._is_pixels(spec, dtype):
            color = len(shape) > 2 and shape[-1] in (1, 3)
            if len(shape) == 2 or (len(shape) == 3 and color):
                return False
            if len(shape) == 3 or (len(shape) == 4 and color):
                return True
            raise InputError(
                f"{path}: expected uint8 pixels [N, H, W] or [N, H, W, C] with C 1 or 3, found {list(shape)}"
            )
        if not np.can_cast(dtype, spec.dtype, "same_kind") or (dtype == np.uint8 and spec.dtype.kind == "f"):
            raise InputError(f"{path}: input {spec.name!r} takes {spec.dtype} values, found {dtype}")
        wanted = spec.shape[1:]
        if len(shape) == len(wanted) + 1 and _fits(shape[1:], wanted):
            return True
        if _fits(shape, wanted):
            return False
        text = ", ".join("any" if axis is None else str(axis) for axis in wanted)
        raise InputError(f"{path}: input {spec.name!r} takes [N, {text}], found {list(shape)}")

    def _named(self, path: str, arrays: Mapping[str, T]) -> Mapping[str, T]:
        """``arrays`` by the model's input names; for a single input, a single array may have any name."""
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

    def _open(self, path: str) -> Mapping[str, Array | _Npy]:
        """The arrays of a file: .npy is read row by row, .npz is held in memory. The last few files stay open."""
        with self._lock:
            if path in self._opened:
                self._opened.move_to_end(path)
                return self._opened[path]
            with _damage(path, "is damaged or unreadable"):
                arrays: Mapping[str, Array | _Npy] = {"": _Npy(path)} if _is_npy(path) else self._unpacked(path)
            self._opened[path] = self._named(path, arrays)
            if len(self._opened) > _OPEN_FILES:
                self._opened.popitem(last=False)
            return self._opened[path]

    def _unpacked(self, path: str) -> dict[str, Array]:
        with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
            unpacked = {}
            for member, name in self._members(path, archive):
                with archive.open(member) as content:
                    header = _header(content, member.file_size)
                    data = content.read(header.size)
                unpacked[name] = header.array(data)
        return unpacked

    def _headers(self, path: str) -> dict[str, _Header]:
        """The headers of the arrays for the model's inputs, by name; the array of a .npy file has the name ""."""
        with _damage(path, f"is not a readable {Path(path).suffix} file"), ExitStack() as stack:
            file = stack.enter_context(os.fdopen(open_regular(path), "rb"))
            if _is_npy(path):
                return {"": _header(file, os.fstat(file.fileno()).st_size)}
            archive = stack.enter_context(zipfile.ZipFile(file))
            headers = {}
            for member, name in self._members(path, archive):
                with archive.open(member) as content:
                    headers[name] = _header(content, member.file_size)
            return headers

    def _members(self, path: str, archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, str]]:
        """The members with the model's inputs, and their names; a single member needs no matching name."""
        members = [(member, member.filename.removesuffix(".npy")) for member in archive.infolist()]
        wanted = {spec.name for spec in self._specs}
        if len(members) > 1 and wanted <= {name for _, name in members}:
            members = [(member, name) for member, name in members if name in wanted]
        elif len(members) > 1 or (members and len(wanted) > 1):
            self._named(path, dict.fromkeys(name for _, name in members))
        size = sum(member.file_size for member, _ in members)
        if size > _MOST_UNPACKED:
            raise InputError(
                f"{path} unpacks to {size >> 20} MiB, more than the limit of {_MOST_UNPACKED >> 20} MiB; "
                "save it as .npy, which is read row by row"
            )
        return members


@dataclass(frozen=True)
class _Header:
    """The header of a .npy file or .npz member; its data starts at byte ``offset``."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes) -> Array:
        """The whole array from its bytes; ValueError if they are truncated."""
        if len(data) != self.size:
            raise ValueError(_SHORT)
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


class _Npy:
    """The array of a .npy file, read row by row.

    The file is not memory-mapped: truncating a mapped file while it is read kills the process with SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self._file = open_regular(path)
        with open(self._file, "rb", closefd=False) as file:
            self._header = _header(file, os.fstat(self._file).st_size)
        self.dtype = self._header.dtype
        self._row = prod(self._header.shape[1:]) * self.dtype.itemsize
        self._whole = self.whole() if self._header.fortran and len(self._header.shape) > 1 else None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def whole(self) -> Array:
        """Reads the whole array into memory.

        Raises:
            ValueError: the array is too large, or the file is truncated.
        """
        if self._header.size > _MOST_UNPACKED:
            raise ValueError(f"it has {self._header.size >> 20} MiB and cannot be read row by row")
        return self._header.array(os.pread(self._file, self._header.size, self._header.offset))

    def __getitem__(self, row: int) -> Array:
        """Row ``row``; raises IndexError if the file does not, or no longer, contain it."""
        if self._whole is not None:
            row_of_whole: Array = self._whole[row]
            return row_of_whole
        if not 0 <= row < self._header.shape[0]:
            raise IndexError(row)
        data = os.pread(self._file, self._row, self._header.offset + row * self._row)
        if len(data) != self._row:
            raise IndexError(row)
        return np.frombuffer(data, self.dtype).reshape(self._header.shape[1:])


@contextmanager
def _damage(path: str, problem: str) -> Iterator[None]:
    """Raises every exception as an InputError: numpy and zipfile raise many types for a damaged file."""
    try:
        yield
    except InputError:
        raise
    except (Exception, RecursionError, MemoryError) as error:
        raise InputError(f"{path} {problem}: {one_line(reason_of(error))}") from None


def _is_npy(path: str) -> bool:
    return path.lower().endswith(".npy")


def _header(file: IO[bytes], size: int) -> _Header:
    """Reads the header of ``file``, which has ``size`` bytes; raises ValueError if the size does not match."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about headers written by Python 2
        shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which are not loaded")
    header = _Header(shape, fortran, dtype, file.tell())
    if any(length < 0 for length in shape):
        raise ValueError(f"its header has a negative size: {list(shape)}")
    if 0 in shape[1:]:
        raise ValueError(f"its samples are empty: {list(shape)}")
    if header.offset + header.size > size:
        raise ValueError(
            f"its header declares {header.size} bytes of data ({list(shape)} {dtype}), the file has "
            f"{max(0, size - header.offset)}"
        )
    return header


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length is None or length == given for length, given in zip(wanted, shape, strict=True)
    )
