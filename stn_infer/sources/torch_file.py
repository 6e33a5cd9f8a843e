"""Read what ``torch.save`` writes, zip archives since torch 1.6 and sequences of pickles before, without torch.load.

The pickle inside is read by :mod:`stn_infer.sources.inert_pickle` with the builders below, about a dozen: tensors,
parameters, dictionaries, NumPy's scalars and arrays. The bytes of a tensor are taken from the file, and every size is
compared with the file before memory is taken. All tensors are on the CPU, wherever they were saved.
"""

from __future__ import annotations

import io
import math
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stn_infer.budget import Budget
from stn_infer.sources.inert_pickle import (
    LONGEST_INDEX,
    TOO_SLOW,
    Builder,
    Global,
    Inert,
    PickleError,
    Reader,
    UnsupportedError,
    plain_pairs,
)

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_AXES = 64
_ENTRY = 64  # bytes of an entry of a dictionary, about
_MOST_RATIO = 20  # of a tensor's elements, some of which may share memory, to the file
_DTYPES: dict[str, torch.dtype] = {
    f"{name}Storage": dtype
    for name, dtype in {
        **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
        **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
        **{"Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64},
        "Untyped": torch.uint8,
    }.items()
}
_SAVE_AGAIN = "open it with torch.load and save its weights with torch.save(model.state_dict(), ...)"
_NUMPY = re.compile(r"[<>|=]?([?bhilqBHILQefdFD]|[iu][1248]|f[248]|c8|c16|b1)")
_DAMAGE = (EOFError, ValueError, RuntimeError, struct.error)


@dataclass(frozen=True)
class _Storage:
    """The bytes that tensors share.

    Attributes:
        dtype: of the tensors that do not name their own.
        content: the bytes.
        base: a tensor of uint8 over them; None if there are none.
    """

    dtype: torch.dtype
    content: bytearray
    base: Tensor | None

    @classmethod
    def of(cls, dtype: torch.dtype, size: int) -> _Storage:
        """A storage of ``size`` bytes, zeros."""
        content = bytearray(size)
        return cls(dtype, content, torch.frombuffer(content, dtype=torch.uint8) if size else None)

    def typed(self, dtype: torch.dtype, count: int) -> _Storage:
        """The same bytes for tensors of another type."""
        if count * dtype.itemsize != len(self.content):
            raise PickleError("a damaged pickle (storage)")
        return replace(self, dtype=dtype)


def read_zip(path: Path, budget: Budget) -> Any:
    """The content of a zip archive of ``torch.save``; objects that are not plain data are :class:`Inert`.

    Raises:
        UnsupportedError: it is not damaged, but nothing here reads it.
        PickleError: it is damaged, or not such an archive.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive, path.stat().st_size).load(budget)
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:  # RuntimeError: encrypted members
        raise PickleError(str(error) or type(error).__name__) from error


def read_legacy(path: Path, budget: Budget) -> Any:
    """The content of a file of ``torch.save`` before torch 1.6, or of a plain pickle; as :func:`read_zip`."""
    try:
        with path.open("rb") as stream:
            return _Sequence(stream, path.stat().st_size).load(budget)
    except _DAMAGE as error:
        raise PickleError(str(error) or type(error).__name__) from error


class _File:
    """What both formats share: the builders, and how much they may build."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = LONGEST_INDEX + _MOST_RATIO * size  # bytes or entries that builders copy
        self._ends = math.inf  # seconds of the thread's CPU time

    def _start(self, budget: Budget) -> None:
        if budget.seconds:
            self._ends = time.thread_time() + budget.seconds

    def _builders(self) -> Mapping[str, Builder]:
        builders: dict[str, Builder] = {
            "torch._utils._rebuild_tensor": lambda given: self._tensor(*given[:4]),
            "torch._utils._rebuild_tensor_v2": lambda given: _lazy(self._tensor(*given[:4]), given[6:]),
            "torch._utils._rebuild_tensor_v3": lambda given: _lazy(
                self._tensor(given[0], given[1], given[2], given[3], given[6]), given[7:]
            ),
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            **dict.fromkeys(("collections.OrderedDict", "builtins.dict", "__builtin__.dict"), self._dictionary),
            "collections.defaultdict": lambda given: self._dictionary(given[1:]),
            "torch.Size": lambda given: tuple(given[0]) if given and isinstance(given[0], tuple) else (),
            "_codecs.encode": self._encoded,
            "torch.storage._load_from_bytes": self._nested,
        }
        first = ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor")
        for name in (*(f"torch._utils.{name}" for name in first), "torch.nn.parameter.Parameter"):
            builders[name] = lambda given: given[0]
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            builders[f"{module}.scalar"] = self._scalar
            builders[f"{module}._reconstruct"] = lambda given: _Array("numpy.ndarray")
        return builders

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise PickleError("it builds far more than it contains")

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Any:
        """A tensor over a storage; every element must be inside."""
        if not isinstance(storage, _Storage):
            return Inert("torch.Tensor")
        sizes, strides, start = _integers(size), _integers(stride), _integers((offset,))[0]
        if len(sizes) != len(strides) or len(sizes) > _MOST_AXES:
            raise PickleError("a damaged pickle (the shape of a tensor)")
        kind = storage.dtype if dtype is None else _dtype(dtype)
        if kind is None:
            return Inert(str(dtype))
        last = start + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        count = math.prod(sizes)
        if count and (last + 1) * kind.itemsize > len(storage.content):
            raise PickleError("a tensor is larger than its data")
        if count * kind.itemsize > _MOST_RATIO * self._size + LONGEST_INDEX:
            raise PickleError("a tensor repeats its data far more often than the file is large")
        if not count or storage.base is None:
            return torch.empty(sizes, dtype=kind)
        base = storage.base
        whole = base[: len(base) // kind.itemsize * kind.itemsize].view(kind)
        return whole.as_strided(sizes, strides, start)

    def _from_type(self, given: tuple[Any, ...]) -> Any:
        """A tensor of a subclass, or with attributes: the plain tensor."""
        function, _, arguments = given[:3]
        is_plain = isinstance(function, Global) and function.module == "torch._utils"
        builder = self._builders().get(str(function)) if is_plain else None
        return Inert(str(function)) if builder is None or not isinstance(arguments, tuple) else builder(arguments)

    def _dictionary(self, given: tuple[Any, ...]) -> dict[Any, Any]:
        pairs = given[0] if given else ()
        if isinstance(pairs, dict):
            pairs = list(pairs.items())
        if not isinstance(pairs, (list, tuple)):
            raise PickleError("a damaged pickle (dictionary)")
        self._spend(len(pairs) * _ENTRY)
        return plain_pairs(pair for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2)

    def _encoded(self, given: tuple[Any, ...]) -> bytes:
        """Bytes, which protocol 2 stores as text."""
        text, encoding = given
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise PickleError("a damaged pickle (bytes)")
        self._spend(len(text))
        return text.encode("latin-1")

    def _scalar(self, given: tuple[Any, ...]) -> Any:
        """A NumPy scalar as a number."""
        kind = _numpy_dtype(given[0])
        if kind is None or len(given) < 2 or not isinstance(given[1], bytes) or len(given[1]) != kind.itemsize:
            return Inert("numpy.generic", given)
        return np.frombuffer(given[1], kind)[0].item()

    def _nested(self, given: tuple[Any, ...]) -> Any:
        """A storage in a plain pickle, which is a file of its own."""
        if len(given) != 1 or not isinstance(given[0], bytes):
            raise PickleError("a damaged pickle (storage)")
        self._spend(len(given[0]))
        seconds = self._ends - time.thread_time()
        if seconds <= 0:
            raise UnsupportedError(TOO_SLOW)
        inner = _Inner(io.BytesIO(given[0]), len(given[0]))
        inner._left = self._left
        try:
            return inner.load(Budget(seconds=0 if math.isinf(seconds) else seconds))
        finally:
            self._left = inner._left

    def _plain(self, content: Any) -> Any:
        """The content with NumPy's arrays as tensors, where they are values of dictionaries."""
        seen: set[int] = set()
        rest = [content]
        while rest:
            value = rest.pop()
            if id(value) in seen or not isinstance(value, (dict, list, tuple)):
                continue
            seen.add(id(value))
            if isinstance(value, dict):
                arrays = {key: item for key, item in value.items() if isinstance(item, _Array)}
                value.update({key: self._array(item) for key, item in arrays.items()})
            rest += value.values() if isinstance(value, dict) else value
        return content

    def _array(self, array: _Array) -> Any:
        state = array.state
        if not isinstance(state, tuple) or len(state) != 5:
            return array
        _, shape, described, fortran, content = state
        kind, sizes = _numpy_dtype(described), _integers(shape)
        if kind is None or not isinstance(content, bytes) or len(sizes) > _MOST_AXES:
            return array
        if math.prod(sizes) * kind.itemsize != len(content):
            raise PickleError("an array is larger than its data")
        self._spend(len(content))
        values = np.frombuffer(content, kind).reshape(sizes, order="F" if fortran else "C")
        return torch.from_numpy(values.astype(kind.newbyteorder("="), order="C"))


class _Array(Inert):
    """A NumPy array: its state is (version, shape, dtype, whether in Fortran's order, bytes)."""

    __slots__ = ()


class _Archive(_File):
    """A zip archive: the pickle ``data.pkl``, and one member in ``data/`` for each storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        super().__init__(size)
        self._archive = archive
        self._members = {info.filename: info for info in archive.infolist()}
        self._storages: dict[str, _Storage] = {}
        pickles = [name for name in self._members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1 or len({name.lower() for name in self._members}) != len(archive.infolist()):
            raise UnsupportedError("it is another kind of zip archive; expected a file of torch.save")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
            raise UnsupportedError(f"its archive is compressed by another method than deflate; {_SAVE_AGAIN}")
        self._pickle = pickles[0]
        self._root = self._pickle.removesuffix("data.pkl")

    def load(self, budget: Budget) -> Any:
        self._start(budget)
        if f"{self._root}byteorder" in self._members and self._archive.read(f"{self._root}byteorder") != b"little":
            raise UnsupportedError(f"it was written on a big-endian machine; {_SAVE_AGAIN}")
        content = self._archive.read(self._pickle)
        return self._plain(Reader(io.BytesIO(content), self._builders(), self._storage, len(content), budget).load())

    def _storage(self, identity: Any) -> _Storage:
        dtype, key, count = _identity(identity)
        known = self._storages.get(key)
        if known is not None:
            return known.typed(dtype, count)
        info = self._members.get(f"{self._root}data/{key}")
        if info is None or info.file_size != count * dtype.itemsize:
            raise PickleError(f"the data of tensor {key[:40]!r} are missing or have another size")
        storage = self._storages[key] = _Storage.of(dtype, info.file_size)
        with self._archive.open(info) as member:
            _fill(member, storage.content)
        return storage


class _Sequence(_File):
    """A magic number, a version, the machine, the content and the keys, each a pickle; then the storages."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        super().__init__(size)
        self._stream = stream
        self._storages: dict[str, _Storage] = {}
        self._unread = size

    def load(self, budget: Budget) -> Any:
        self._start(budget)
        reader = Reader(self._stream, self._builders(), self._storage, self._size, budget)
        first = reader.load()
        if not isinstance(first, int) or first != _MAGIC:
            return self._plain(first)  # of a plain pickle
        version = reader.load()
        if not isinstance(version, int):
            raise PickleError("the version of its format is damaged")
        if version != _PROTOCOL:
            raise UnsupportedError(f"expected version {_PROTOCOL} of the format of torch.save; {_SAVE_AGAIN}")
        reader.load()
        content, keys = reader.load(), reader.load()
        named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not named or set(keys) != self._storages.keys():
            raise PickleError("its list of tensors is damaged")
        for key in keys:
            storage = self._storages[key]
            count = struct.unpack("<q", self._stream.read(8))[0]
            if count * storage.dtype.itemsize != len(storage.content):
                raise PickleError("the data of a tensor have another size")
            _fill(self._stream, storage.content)
        return self._plain(content)

    def _storage(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # the class of a whole model, with its source code
        if not isinstance(identity, tuple) or len(identity) != 6:
            raise PickleError("a damaged pickle (storage)")
        dtype, key, count = _identity(identity[:5])
        if key not in self._storages:
            self._unread -= count * dtype.itemsize
            if self._unread < 0:
                raise PickleError("its tensors are larger than the file")
            self._storages[key] = _Storage.of(dtype, count * dtype.itemsize)
        if identity[5] is not None:  # a view, of before torch 0.4
            raise UnsupportedError(f"it has the format of a torch before 0.4; {_SAVE_AGAIN}")
        return self._storages[key].typed(dtype, count)


class _Inner(_Sequence):
    """A storage within a plain pickle; it contains no others."""

    def _nested(self, given: tuple[Any, ...]) -> Any:
        raise PickleError("a damaged pickle (storage)")


def _identity(identity: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of a storage."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise PickleError("a damaged pickle (storage)")
    _, kind, key, _, count = identity
    dtype = _DTYPES.get(kind.name) if isinstance(kind, Global) and kind.module.partition(".")[0] == "torch" else None
    if dtype is None:
        quantized = isinstance(kind, Global) and kind.name.startswith("Q")
        advice = "save them dequantized (dequantize())" if quantized else "save them as another type"
        raise UnsupportedError(f"tensors of type {str(kind)[:60]} are not supported; {advice}")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise PickleError("a damaged pickle (storage)")
    return dtype, key, count


def _lazy(tensor: Any, given: tuple[Any, ...]) -> Any:
    """A tensor with the conjugation or negation that is left to its use, as ``torch.load`` gives it."""
    metadata = given[0] if given else None
    if not metadata or not isinstance(tensor, Tensor):
        return tensor
    if not isinstance(metadata, dict) or not metadata.keys() <= {"conj", "neg"}:
        return Inert("torch._utils._rebuild_tensor_v2")
    if metadata.get("conj"):
        tensor = tensor.conj()
    return torch._neg_view(tensor) if metadata.get("neg") else tensor


def _fill(stream: Any, content: bytearray) -> None:
    """Read as many bytes as ``content`` has."""
    view = memoryview(content)
    while view:
        count = stream.readinto(view)
        if not count:
            raise PickleError("the file ends within the data of a tensor")
        view = view[count:]


def _integers(values: Any) -> Sequence[int]:
    known = isinstance(values, (tuple, list)) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
    if not known:
        raise PickleError("a damaged pickle (the shape of a tensor)")
    return tuple(values)


def _dtype(named: Any) -> torch.dtype | None:
    if not isinstance(named, Global) or named.module != "torch":
        return None
    return next((kind for kind in _KINDS if str(kind) == str(named)), None)


_KINDS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)


def _numpy_dtype(described: Any) -> np.dtype[Any] | None:
    """The dtype of numbers that a pickle describes; None for any other."""
    if not isinstance(described, Inert) or described.kind != "numpy.dtype" or not described.arguments:
        return None
    code, state = described.arguments[0], described.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    if not isinstance(code, str) or not _NUMPY.fullmatch(code):
        return None
    return np.dtype(code).newbyteorder(">" if order == ">" else "<")
