"""The .npy format: headers, and the rows of a file."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from stn_infer import remote
from stn_infer.arrays import Array
from stn_infer.data.buffers import Buffers
from stn_infer.errors import InputError
from stn_infer.files import open_regular

MOST_UNPACKED = 2 << 30
_SHORT = "its data is truncated"


@dataclass(frozen=True)
class Header:
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


def open_array_file(path: str) -> tuple[IO[bytes], int]:
    """A .npy or .npz file, which may be a URL, and its size in bytes.

    Raises:
        InputError: it is missing or cannot be read, or is not a file.
    """
    if remote.is_url(path):
        found = remote.version(path)
        if found is None:
            raise InputError(f"no such file: {path}")
        return remote.opened(path), found[0]
    file = os.fdopen(open_regular(path), "rb")
    return file, os.fstat(file.fileno()).st_size


class NpyFile:
    """The array of a .npy file, of which a slice of rows is read at a time. Of a URL only these bytes are fetched.

    The file is not memory-mapped: truncating a mapped file while it is read kills the process with SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self._url = path if remote.is_url(path) else ""
        file, size = open_array_file(path)
        with file:
            self._header = read_header(file, size)
            if not self._url:
                self._file = os.dup(file.fileno())
        self.shape, self.dtype = self._header.shape, self._header.dtype
        self._row = prod(self.shape[1:]) * self.dtype.itemsize
        self._whole = self.whole() if self._header.fortran and len(self.shape) > 1 else None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def whole(self) -> Array:
        """Reads the whole array into memory.

        Raises:
            ValueError: the array is too large, or the file is truncated.
        """
        if self._header.size > MOST_UNPACKED:
            raise ValueError(f"it has {self._header.size >> 20} MiB and cannot be read in slices")
        start, size = self._header.offset, self._header.size
        data = remote.read_range(self._url, start, start + size) if self._url else os.pread(self._file, size, start)
        return self._header.array(data)

    def rows(self, start: int, count: int, buffers: Buffers) -> Array:
        """Up to ``count`` rows from ``start``: fewer if the file does not, or no longer, contain them.

        Args:
            start, count: not negative.
            buffers: where the memory is from; its taker gives it back.
        """
        if self._whole is not None:
            rows: Array = self._whole[start : start + count]
            return rows
        count = max(0, min(count, self.shape[0] - start))
        array = buffers.take((count, *self.shape[1:]), self.dtype)
        first = self._header.offset + start * self._row
        if self._url:
            data = remote.read_range(self._url, first, first + array.nbytes)
            array.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
            return array[: len(data) // self._row]
        return array[: _read_into(self._file, array, first) // self._row]


def _read_into(file: int, array: Array, offset: int) -> int:
    """Fill ``array``, which is contiguous, from byte ``offset``; the number of bytes up to the end of the file."""
    memory: memoryview = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(memory):
        got = os.preadv(file, [memory[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def read_header(file: IO[bytes], size: int) -> Header:
    """Reads the header of ``file``, which has ``size`` bytes; raises ValueError if the size does not match."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about headers written by Python 2
        shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which are not loaded")
    header = Header(shape, fortran, dtype, file.tell())
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
