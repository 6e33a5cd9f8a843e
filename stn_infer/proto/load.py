"""The one gate through which ONNX files come in: read, checked, and with a sentence for each way to be wrong.

A file is somebody else's: nothing in it is believed before it was looked at. Its external data are read from its own
folder and nowhere else, and its structure is checked before a native library is handed any of it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from stn_infer.errors import ModelError, one_line
from stn_infer.proto.check import check_structure, sort_nodes, tensor_bytes
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
            ModelError: the file has become shorter, or can't be read.
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
    """Read an ONNX file; external data are read from its folder.

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
    """Read an ONNX file and leave its external data where they are; where they lie is checked all the same.

    Raises:
        ModelError: as :func:`load_model`.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise ModelError(f"{path} does not exist; expected an ONNX file") from None
    if not stat.S_ISREG(mode):
        what = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
        raise ModelError(f"{path} {what}; expected an ONNX file")
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(
            f"{path} is larger than 2 GB, which no ONNX file can be; its data belong into a file beside it"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ModelError(f"{path} is no ONNX file, or it is truncated") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from None
    except MemoryError:
        raise ModelError(f"{path} cannot be read: it does not fit into memory") from None
    check_model(model, path.parent, str(path))
    return model


def parse_model(content: bytes, name: str = "the model") -> onnx.ModelProto:
    """A model from a file's bytes, checked as a file's are; external data it must not have.

    Raises:
        ModelError: it is no ONNX model, or a damaged one.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ModelError(f"{name} is no ONNX model, or it is truncated") from None
    check_model(model, None, name)
    return model


def check_file(path: Path) -> None:
    """What :func:`load_model` refuses, without reading the external data: for who hands the path to a runtime.

    Raises:
        ModelError: as :func:`load_model`.
    """
    read_graph(path)


def check_model(model: onnx.ModelProto, folder: Path | None, name: str) -> None:
    """Check a model's structure and where its external data lie; put its nodes into order.

    Args:
        model: nodes that are out of order, but in no cycle, are moved in place.
        folder: where external data may lie; None: it may have none.
        name: what messages call it.

    Raises:
        ModelError: it is damaged.
    """
    if not model.graph.node:
        raise ModelError(f"{name} is no ONNX file, or it is truncated: it holds no graph")
    try:
        sort_nodes(model.graph)
        check_structure(model)
        external_tensors(model, folder)
    except RecursionError:
        raise ModelError(f"{name} is damaged: its subgraphs are nested too deeply") from None
    except ModelError as error:
        raise ModelError(f"{name} is damaged: {error}") from None


def external_tensors(model: onnx.ModelProto, folder: Path | None) -> list[tuple[TensorProto, External]]:
    """The tensors whose data lie outside the file, and where.

    Raises:
        ModelError: a location is outside ``folder`` (symbolic links followed), missing or too short.
    """
    return [
        (tensor, _locate(tensor, folder))
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
    ]


def embed(tensor: TensorProto, place: External) -> None:
    """Read a tensor's external data into it, in place.

    Raises:
        ModelError: they can't be read.
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
        raise ModelError(f"{what} lie in {location!r}, and there is no folder to look for it; give the file's path")
    try:
        home = folder.resolve(strict=True)
        target = (home / location).resolve(strict=False)
    except (OSError, ValueError, RuntimeError):
        raise ModelError(f"{what}: {location!r} is no usable path") from None
    plain = location and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not plain or not target.is_relative_to(home) or target == home:
        raise ModelError(f"{what} must lie in the file's own folder; {location!r} does not")
    try:
        status = target.stat()
    except OSError:
        raise ModelError(f"{what} are missing: there is no {location!r} beside the file") from None
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
        raise ModelError(f"{what} have the {key} {text[:40]!r}, which is no number of bytes")
    return int(text)
