"""Reads and checks ONNX files; all commands read ONNX files through this module.

Files are untrusted. External data are read only from the file's own folder, and the structure is checked before a
native library sees any of it. Every kind of damage is reported in one sentence.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from stn_infer.errors import ModelError, one_line
from stn_infer.proto.check import check_structure, sort_nodes, tensor_bytes
from stn_infer.proto.own_ops import UnknownVersionError
from stn_infer.proto.traversal import tensors_of

_MAX_BYTES = 2**31 - 1  # protobuf's own limit


@dataclass(frozen=True)
class External:
    """Where a tensor's bytes lie: ``length`` bytes from ``offset`` in ``path``."""

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ModelError: the file is shorter than when it was checked, or can't be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError as error:
            raise ModelError(f"external data {self.path} cannot be read: {error.strerror or error}") from None
        if len(data) != self.length:
            raise ModelError(f"external data {self.path} ends before byte {self.offset + self.length}")
        return data


def load_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file, and external data from its folder.

    Raises:
        ModelError: it is missing, a folder, not ONNX, truncated or damaged, or its external data are missing, too
            short or outside its folder.
    """
    model = read_graph(path)
    try:
        for tensor, place in external_tensors(model, path.parent):
            embed(tensor, place)
    except ModelError as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    except MemoryError:
        raise ModelError(f"{path} cannot be read: its external data do not fit into memory") from None
    return model


def read_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file without its external data; the location of the external data is still checked.

    Raises:
        ModelError: as for :func:`load_model`.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise ModelError(f"{path} does not exist; expected an ONNX file") from None
    if not stat.S_ISREG(mode):
        what = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
        raise ModelError(f"{path} {what}; expected an ONNX file")
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path} is larger than 2 GB, the limit of an ONNX file; save it with external data")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX file, or it is truncated") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or one_line(error)}") from None
    except MemoryError:
        raise ModelError(f"{path} cannot be read: it does not fit into memory") from None
    check_model(model, path.parent, str(path))
    return model


def parse_model(content: bytes, name: str = "the model") -> onnx.ModelProto:
    """Parses a model from a file's bytes, with the same checks as for a file; external data are not allowed.

    Raises:
        ModelError: it is not an ONNX model, it is damaged, or it has external data.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ModelError(f"{name} is not an ONNX model, or it is truncated") from None
    check_model(model, None, name)
    return model


_hashes: dict[Path, tuple[str, dict[Path, tuple[int, ...]]]] = {}  # of this process, with the files' states


def known_hash(path: Path) -> str | None:
    """The :func:`content_hash` of a file that this process has hashed, if no file has changed since."""
    digest, states = _hashes.get(path.absolute(), ("", {}))
    return digest if digest and all(_state(file) == state for file, state in states.items()) else None


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file's content; () if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_hash(content: Path | bytes, graph: onnx.ModelProto | None = None) -> str:
    """SHA-256, hex, of an ONNX file and of its external data, whatever they are called; read once by each process.

    Args:
        content: the file, or its bytes.
        graph: what :func:`read_graph` returns for the file, where the caller has it already.

    Raises:
        ModelError: it is damaged, or its external data are missing.
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    known = known_hash(content)
    if known is not None:
        return known
    places = external_tensors(read_graph(content) if graph is None else graph, content.parent)
    paths = (content.absolute(), *sorted({place.path for _, place in places}))
    states = {path: _state(path) for path in paths}
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    _hashes[paths[0]] = digest.hexdigest(), states
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Makes the checks of :func:`load_model` without reading external data, before a runtime opens the path.

    Raises:
        ModelError: as for :func:`load_model`.
    """
    read_graph(path)


def check_model(model: onnx.ModelProto, folder: Path | None, name: str) -> None:
    """Checks a model's structure and the location of its external data; sorts its nodes.

    Args:
        model: its nodes are sorted topologically in place, unless there is a cycle.
        folder: the folder of external data; None: external data are not allowed.
        name: the model's name in messages.

    Raises:
        ModelError: it is damaged, or newer than this package.
    """
    if not model.graph.node:
        raise ModelError(f"{name} is not an ONNX file, or it is truncated: it contains no graph")
    try:
        sort_nodes(model.graph)
        check_structure(model)
        external_tensors(model, folder)
    except RecursionError:
        raise ModelError(f"{name} is damaged: its subgraphs are nested too deeply") from None
    except UnknownVersionError as error:
        raise ModelError(f"{name}: {error}") from None
    except ModelError as error:
        raise ModelError(f"{name} is damaged: {error}") from None


def external_tensors(model: onnx.ModelProto, folder: Path | None) -> list[tuple[TensorProto, External]]:
    """Returns the tensors with external data, and the location of the data.

    Raises:
        ModelError: a location is outside ``folder`` (symbolic links followed), missing or too short.
    """
    return [
        (tensor, _locate(tensor, folder))
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
    ]


def embed(tensor: TensorProto, place: External) -> None:
    """Reads a tensor's external data into the tensor, in place.

    Raises:
        ModelError: the data can't be read.
    """
    data = place.read()
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data


def _locate(tensor: TensorProto, folder: Path | None) -> External:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"external data of {tensor.name!r}"
    if folder is None:
        raise ModelError(f"{what} are in {location!r}, but bytes have no folder to read it from; give the file's path")
    try:
        home = folder.resolve(strict=True)
        target = (home / location).resolve(strict=False)
    except (OSError, ValueError, RuntimeError):
        raise ModelError(f"{what}: {location!r} is not a usable path") from None
    plain = location and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not plain or not target.is_relative_to(home) or target == home:
        raise ModelError(f"{what} must be in the file's own folder; {location!r} is not")
    try:
        status = target.stat()
    except OSError:
        raise ModelError(f"{what} are missing: {location!r} does not exist in the file's folder") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{what}: {location!r} is not a regular file")
    size = tensor_bytes(tensor)
    offset, length = _number(entries, "offset", 0, what), _number(entries, "length", size, what)
    if length != size:
        raise ModelError(f"{what} should be {size} bytes by its dimensions; the file says {length}")
    if offset + length > status.st_size:
        raise ModelError(f"{what} end at byte {offset + length} of {location!r}, which has {status.st_size}")
    return External(target, offset, length)


def _number(entries: dict[str, str], key: str, default: int, what: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelError(f"{what} have the {key} {text[:40]!r}, which is not a number of bytes")
    return int(text)
