"""Samples from .npy and .npz files.

Floating-point arrays are used as model inputs without conversion: [N, ...], or one sample. uint8 arrays for a
floating-point image input are pixels and get the same pre-processing as an image file: [H, W] or [H, W, C] is one
image, [N, H, W] or [N, H, W, C] is N images, with C 1 or 3. A model with several inputs takes .npz files whose arrays
have the inputs' names.
"""

from __future__ import annotations

import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stn_infer.arrays import Array, fits, shape_text
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import is_batched, is_shared
from stn_infer.data.buffers import Buffers
from stn_infer.data.images import from_array, planes, reason_of
from stn_infer.data.npy import MOST_UNPACKED, Header, NpyFile, open_array_file, read_header
from stn_infer.data.pixels import Pixels
from stn_infer.errors import InputError, one_line
from stn_infer.preprocess.rule import Preprocess

T = TypeVar("T")

_OPEN_FILES = 4  # workers read neighboring rows, so a few open files are enough
_NOT_FINITE = "expected finite numbers, found NaN or infinity"


@dataclass(frozen=True, eq=False)
class Opened:
    """The arrays of a file or in memory for the model's inputs, by name, and which of them have one row per sample."""

    arrays: Mapping[str, Array | NpyFile]
    batches: frozenset[str]


@dataclass(frozen=True)
class Rows:
    """Consecutive samples of one file.

    Attributes:
        inputs: by input name, [n, ...]: pixels as uint8 [n, C, H, W], other arrays in the input's dtype. An input that
            belongs to all samples of the file has its own length.
        errors: by position in the rows asked for, why a sample could not be read; ``inputs`` has the others.
    """

    inputs: dict[str, Array]
    errors: dict[int, str]


class ArrayFiles:
    """Reads samples for the inputs ``specs``; safe to share between threads.

    Args:
        specs: the model's inputs, batch on axis 0.
        preprocess: how pixels become inputs; None when no input is an image.
        axis: the inputs on this axis have one row per sample, and the arrays of the others belong to all samples of a
            file; None: all that have a batch axis have one row per sample.
    """

    def __init__(self, specs: Sequence[TensorSpec], preprocess: Preprocess | None, axis: str | None = None) -> None:
        self._specs = tuple(specs)
        self._axis = axis
        self._preprocess = preprocess
        self._lock = threading.Lock()
        #: Whether the arrays of an input belong to all samples of a file: samples of two files cannot be stacked.
        self.shares = any(map(self.is_shared, self._specs))
        #: Whether a file that was counted or read has pixels, which are preprocessed like images.
        self.pixels = False
        self._opened: OrderedDict[str, Opened] = OrderedDict()

    def count_rows(self, path: str) -> int | None:
        """The number of samples in ``path``; None if the file is one sample. Reads only the headers.

        Raises:
            InputError: the file is unreadable, lacks an input, or its shape or type does not match.
        """
        return self._count(path, self._named(path, self._headers(path)))

    def open_arrays(self, name: str, arrays: Mapping[str, Array]) -> tuple[Opened, int | None]:
        """Arrays in memory as those of an ``.npz`` file, and the number of samples in them, see :meth:`count_rows`.

        Raises:
            InputError: as for :meth:`count_rows`.
        """
        named = self._named(name, arrays)
        count = self._count(name, named)
        return Opened(named, frozenset(() if count is None else named)), count

    def _count(self, path: str, arrays: Mapping[str, Header] | Mapping[str, Array]) -> int | None:
        counts = set()
        for spec in self._specs:
            shape, dtype = arrays[spec.name].shape, arrays[spec.name].dtype
            is_batch = self._is_batch(path, spec, shape, dtype)
            self.pixels |= self._is_pixels(spec, dtype)
            if 0 in shape[is_batch:]:
                raise InputError(f"{path}: its samples are empty, {list(shape)}")
            if self.is_shared(spec):
                continue
            counts.add(shape[0] if is_batch else None)
        if len(counts) > 1:
            raise InputError(f"{path}: its arrays have different numbers of samples")
        return next(iter(counts), None)

    def load(self, path: str, row: int | None) -> dict[str, Array]:
        """Returns one sample by input name: pixels as uint8 [C, H, W], other arrays in the input's dtype.

        Raises:
            InputError: the file is unreadable or has changed since it was counted.
        """
        found = self.load_rows(path, row, 1)
        if found.errors:
            raise InputError(found.errors[0])
        return {
            spec.name: found.inputs[spec.name] if self.is_shared(spec) else found.inputs[spec.name][0]
            for spec in self._specs
        }

    def load_rows(self, path: str, start: int | None, count: int, buffers: Buffers | None = None) -> Rows:
        """Reads ``count`` samples from row ``start``; None: the file is one sample.

        Args:
            path: the file.
            start, count: the rows.
            buffers: where large arrays are taken from; the caller gives them back.

        Raises:
            InputError: the file is unreadable, or its arrays are not what the model takes.
        """
        return self.rows_of(self._open(path), path, start, count, buffers)

    def rows_of(self, opened: Opened, path: str, start: int | None, count: int, buffers: Buffers | None = None) -> Rows:
        """:meth:`load_rows` of arrays that are open; ``path`` is their name in messages."""
        buffers = buffers or Buffers()
        found: dict[str, Array] = {}
        errors: dict[int, str] = {}
        for spec in self._specs:
            array = opened.arrays[spec.name]
            if self.is_shared(spec):
                found[spec.name] = self._shared(path, spec, array)
                continue
            if (start is not None) != (spec.name in opened.batches):
                raise InputError(_changed(path))
            if start is None:
                with _damage(path, "is damaged or unreadable"):
                    values = (array.whole() if isinstance(array, NpyFile) else array)[None]
            elif isinstance(array, NpyFile):
                with _damage(path, "is damaged or unreadable"):
                    values = array.rows(start, count, buffers)
            else:
                values = array[start : start + count]
            errors.update(dict.fromkeys(range(len(values), count), _changed(path)))
            found[spec.name] = self._converted(path, spec, values, errors, buffers)
        if errors:
            good = [row for row in range(count) if row not in errors]
            for spec in self._specs:
                if not self.is_shared(spec):
                    whole, found[spec.name] = found[spec.name], found[spec.name][good]
                    buffers.give_back(whole)
        return Rows(found, errors)

    def _converted(self, path: str, spec: TensorSpec, values: Array, errors: dict[int, str], buffers: Buffers) -> Array:
        """Rows of a file as rows of an input; adds those that cannot be to ``errors``."""
        if self._is_pixels(spec, values.dtype):
            return self._pixels(path, spec, values, errors, buffers)
        converted = values
        if values.dtype != spec.dtype:
            converted = buffers.take(values.shape, spec.dtype)
            with np.errstate(over="ignore"):  # the check below finds what became infinite
                np.copyto(converted, values, casting="same_kind")
            buffers.give_back(values)
        if spec.dtype.kind == "f" and not _is_finite(converted):
            bad = ~np.isfinite(converted.reshape(len(converted), -1)).all(axis=1)
            errors.update(dict.fromkeys(np.flatnonzero(bad).tolist(), f"{path}: {_NOT_FINITE}"))
        return converted

    def _pixels(self, path: str, spec: TensorSpec, values: Pixels, errors: dict[int, str], buffers: Buffers) -> Pixels:
        """Images [n, H, W] or [n, H, W, C] as [n, C, H, W], a view where color and size are the model's."""
        assert self._preprocess is not None
        height, width = spec.shape[2:]
        converted: dict[int, Pixels] = {}
        for index, image in enumerate(values):
            try:
                converted[index] = from_array(image, self._preprocess, (height, width), path)
            except InputError as error:
                errors.setdefault(index, str(error))
            if index == 0 and 0 in converted and np.may_share_memory(converted[0], image):
                return planes(values[..., None] if values.ndim == 3 else values, self._preprocess)
        shape = next((image.shape for image in converted.values()), (0, 0, 0))
        pixels = buffers.take((len(values), *shape), np.dtype(np.uint8))
        for index, image in converted.items():
            pixels[index] = image
        buffers.give_back(values)
        return pixels

    def is_shared(self, spec: TensorSpec) -> bool:
        """Whether the array of this input belongs to all samples of a file."""
        return is_shared(spec, self._axis)

    def _shared(self, path: str, spec: TensorSpec, array: Array | NpyFile) -> Array:
        """The whole array [N, ...] of such an input; a single row may lack the axis."""
        values = np.asarray(array.whole() if isinstance(array, NpyFile) else array)
        if self._is_pixels(spec, values.dtype):
            raise InputError(f"{path}: give {spec.name!r} as {spec.dtype} values, not as pixels")
        values = values.astype(spec.dtype, copy=False)
        if spec.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(f"{path}: {_NOT_FINITE}")
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
            gray = self._preprocess is not None and self._preprocess.color == "gray"
            color = len(shape) > 2 and shape[-1] in ((1, 3) if gray else (1, 3, 4))
            if len(shape) == 2 or (len(shape) == 3 and color):
                return False
            if len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3, 4)):
                return True
            raise InputError(
                f"{path}: expected uint8 pixels [N, H, W] or [N, H, W, C] with C 1, 3 or 4, found {list(shape)}"
            )
        if not np.can_cast(dtype, spec.dtype, "same_kind") or (dtype == np.uint8 and spec.dtype.kind == "f"):
            raise InputError(f"{path}: input {spec.name!r} takes {spec.dtype} values, found {dtype}")
        if not is_batched(spec):
            if fits(shape, spec.shape):
                return False
            raise InputError(f"{path}: input {spec.name!r} takes {shape_text(spec.shape)}, found {list(shape)}")
        wanted = spec.shape[1:]
        if len(shape) == len(wanted) + 1 and fits(shape[1:], wanted):
            return True
        if fits(shape, wanted):
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

    def _open(self, path: str) -> Opened:
        """The arrays of a file: .npy is read in slices, .npz is held in memory. The last few files stay open."""
        with self._lock:
            if path in self._opened:
                self._opened.move_to_end(path)
                return self._opened[path]
            with _damage(path, "is damaged or unreadable"):
                arrays: Mapping[str, Array | NpyFile] = {"": NpyFile(path)} if _is_npy(path) else self._unpacked(path)
                arrays = self._named(path, arrays)
            # the file may be another one than when its samples were counted
            rows = [spec for spec in self._specs if not self.is_shared(spec)]
            shapes = {spec.name: (arrays[spec.name].shape, arrays[spec.name].dtype) for spec in rows}
            self.pixels |= any(self._is_pixels(spec, shapes[spec.name][1]) for spec in rows)
            batches = [spec.name for spec in rows if self._is_batch(path, spec, *shapes[spec.name])]
            self._opened[path] = Opened(arrays, frozenset(batches))
            if len(self._opened) > _OPEN_FILES:
                self._opened.popitem(last=False)
            return self._opened[path]

    def _unpacked(self, path: str) -> dict[str, Array]:
        with open_array_file(path)[0] as file, zipfile.ZipFile(file) as archive:
            unpacked = {}
            for member, name in self._members(path, archive):
                with archive.open(member) as content:
                    header = read_header(content, member.file_size)
                    data = content.read(header.size)
                unpacked[name] = header.array(data)
        return unpacked

    def _headers(self, path: str) -> dict[str, Header]:
        """The headers of the arrays for the model's inputs, by name; the array of a .npy file has the name ""."""
        with _damage(path, f"is not a readable {Path(path).suffix} file"), ExitStack() as stack:
            opened, size = open_array_file(path)
            file = stack.enter_context(opened)
            if _is_npy(path):
                return {"": read_header(file, size)}
            archive = stack.enter_context(zipfile.ZipFile(file))
            headers = {}
            for member, name in self._members(path, archive):
                with archive.open(member) as content:
                    headers[name] = read_header(content, member.file_size)
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
        if size > MOST_UNPACKED:
            raise InputError(
                f"{path} unpacks to {size >> 20} MiB, more than the limit of {MOST_UNPACKED >> 20} MiB; "
                "save it as .npy, which is read in slices"
            )
        return members


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


def _changed(path: str) -> str:
    return f"{path} has changed since its samples were counted"


def _is_finite(values: Array) -> bool:
    """Whether no value is NaN or infinite; may be False for others, whose sum overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum(dtype=np.result_type(values.dtype, np.float32))))
