"""Keeps a large model's weights out of memory while its graph is rewritten.

The pass needs the constants near a grid and only the shapes of the others. Each large initializer that no grid is
computed from is therefore replaced by a ``ConstantOfShape`` during the rewrite. Afterwards it is restored as a
reference to the bytes on disk, which onnxruntime memory-maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from onnx import TensorProto, helper

from stn_infer.errors import ModelError, OutputError
from stn_infer.proto.check import elements, tensor_bytes
from stn_infer.proto.edit import copy_of, copy_without, copy_without_initializers, replace_all
from stn_infer.proto.load import External, embed, external_tensors
from stn_infer.proto.retype import FLOAT_TYPES
from stn_infer.proto.traversal import names_read, producers, subgraphs, walk_back
from stn_infer.spellings import SPELLINGS

#: Models with fewer bytes of weights than this are processed in memory.
SMALL_MODEL = 64 << 20
LARGE_TENSOR = 64 << 10
#: Constants with fewer bytes are stored in the graph's file.
EXTERNAL_TENSOR = 1 << 10
_ALIGNMENT = 4096
_BLOCK = 64 << 10
_DETACHED = "stn_stands_in_for_"  # name prefix of the nodes and constants that replace a tensor
# Operators that no linear map passes through, so no grid's map is measured through them.
_ENDS = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Softmax", "Erf", "Gelu"}
    | {"LSTM", "GRU", "RNN", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "HardSwish", "Silu"}
    | {"GridSample", "Sampler", "Shape"}
)
_SAMPLERS = frozenset({"GridSample", "Sampler", "ATen", *SPELLINGS})


def bytes_of_weights(model: onnx.ModelProto) -> int:
    """Bytes of the main graph's initializers, embedded or external."""
    return sum(tensor_bytes(t) for t in model.graph.initializer if t.data_type != TensorProto.STRING)


def pull_in(model: onnx.ModelProto, folder: Path, *, above: int | None = None) -> None:
    """Reads external data into ``model``, in place.

    Args:
        model: a model with external data.
        folder: the folder of external data.
        above: initializers of the main graph with more bytes stay external; None: read everything.

    Raises:
        ModelError: the data can't be read.
    """
    # The tensors are in the file's order, the main graph's initializers first.
    main = sum(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
    for index, (tensor, place) in enumerate(external_tensors(model, folder)):
        large = above is not None and place.length > above and tensor.data_type in FLOAT_TYPES
        if not (large and index < main):
            embed(tensor, place)


def spill(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Returns a copy of ``model`` with its large initializers moved to a file in ``folder``.

    Raises:
        OutputError: the file can't be written.
    """
    path = folder / "weights"
    try:
        with path.open("wb") as file:
            tensors = [_moved(tensor, file, path.name) for tensor in model.graph.initializer]
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    small = copy_without_initializers(model)
    small.graph.initializer.extend(tensors)
    return small


def _moved(tensor: TensorProto, file: BinaryIO, name: str) -> TensorProto:
    if tensor.data_type not in FLOAT_TYPES or not tensor.HasField("raw_data") or tensor_bytes(tensor) <= LARGE_TENSOR:
        return tensor
    file.seek(-file.tell() % _ALIGNMENT, 1)
    offset = file.tell()
    file.write(tensor.raw_data)
    return _reference(tensor, name, offset, tensor_bytes(tensor))


def _reference(tensor: TensorProto, location: str, offset: int, length: int) -> TensorProto:
    reference = _described(tensor)
    reference.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        reference.external_data.add(key=key, value=value)
    return reference


def _described(tensor: TensorProto) -> TensorProto:
    """A tensor's name, type, dimensions and documentation."""
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=tensor.doc_string)


def detach_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, TensorProto]]:
    """Returns a copy of ``model`` with nodes in place of the external initializers.

    Initializers near a grid must have been read into the model before.

    Returns:
        The copy, and the removed references by name.
    """
    overridable = {value.name for value in model.graph.input}
    detached: dict[str, TensorProto] = {}
    kept = []
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in overridable:
            detached[tensor.name] = tensor
        else:
            kept.append(tensor)
    light = copy_without_initializers(model)
    light.graph.initializer.extend(kept)
    first = []
    for name, tensor in detached.items():
        shape = _DETACHED + name
        light.graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [len(tensor.dims)], tensor.dims))
        zero = b"\0" * (tensor_bytes(tensor) // elements(tensor))
        value = helper.make_tensor("value", tensor.data_type, [1], zero, True)
        first.append(helper.make_node("ConstantOfShape", [shape], [name], name=shape, value=value))
    replace_all(light.graph.node, [*first, *light.graph.node])
    return light, detached


def is_stand_in(node: onnx.NodeProto) -> bool:
    """Whether a node is in place of a detached weight."""
    return bool(node.op_type == "ConstantOfShape" and node.name.startswith(_DETACHED))


def attach_weights(light: onnx.ModelProto, detached: dict[str, TensorProto]) -> onnx.ModelProto:
    """Undoes :func:`detach_weights`, in place, on a model rewritten since; omits weights that are no longer used."""
    if not detached:
        return light
    graph = light.graph
    used = {node.output[0] for node in graph.node if node.name.startswith(_DETACHED)}
    back = [tensor for name, tensor in detached.items() if name in used]
    replace_all(graph.node, [node for node in graph.node if not node.name.startswith(_DETACHED)])
    others = (tensor for tensor in graph.initializer if not tensor.name.startswith(_DETACHED))
    replace_all(graph.initializer, [*back, *others])
    return light


def pull_in_near_grids(model: onnx.ModelProto, folder: Path) -> None:
    """Reads, in place, the external initializers that a sampling grid may be computed from.

    Raises:
        ModelError: the data can't be read.
    """
    near = _near_grids(model.graph)
    for tensor, place in external_tensors(model, folder):
        if tensor.name in near:
            embed(tensor, place)


def _near_grids(graph: onnx.GraphProto) -> set[str]:
    """The tensors that grids depend on, back to nonlinear operators, and all tensors that nodes with subgraphs read."""
    starts: list[str] = []
    for node in graph.node:
        if node.op_type in _SAMPLERS and len(node.input) > 1:
            starts.append(node.input[1])
        if any(subgraphs(node)):
            starts.extend(names_read(node))
    made = producers(graph.node)

    def before(name: str) -> Iterable[str]:
        node = graph.node[made[name]] if name in made else None
        return [] if node is None or node.op_type in _ENDS else node.input

    return set(walk_back(starts, before))


def write_external(model: onnx.ModelProto, folder: Path | None, file: BinaryIO, location: str) -> None:
    """Writes the initializers' data to ``file``, and replaces the data in ``model``, in place, by references.

    Args:
        model: the model.
        folder: the folder of the model's existing external data; None: there are none.
        file: an empty file, open for writing.
        location: the file's name in the references.

    Raises:
        ModelError: external data of ``model`` can't be read.
        OSError: ``file`` can't be written.
    """
    places = {} if folder is None else {tensor.name: place for tensor, place in external_tensors(model, folder)}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            continue
        length = tensor_bytes(tensor)
        external = tensor.data_location == TensorProto.EXTERNAL
        if not external and (not tensor.HasField("raw_data") or length < EXTERNAL_TENSOR):
            continue
        file.seek(-file.tell() % _ALIGNMENT, 1)
        offset = file.tell()
        if external:
            _stream(places[tensor.name], file)
        else:
            file.write(tensor.raw_data)
        tensor.CopyFrom(_reference(tensor, location, offset, length))
    file.truncate(file.tell())


def write_embedded(model: onnx.ModelProto, folder: Path | None, file: BinaryIO) -> None:
    """Writes ``model`` as one file with external data embedded, without loading the data into memory.

    Args:
        model: the model.
        folder: the folder of external data; None: there are none.
        file: a file open for writing.

    Raises:
        ModelError: external data of ``model`` can't be read.
        OSError: ``file`` can't be written.
    """
    if folder is None:
        file.write(model.SerializeToString())
        return
    places = {tensor.name: place for tensor, place in external_tensors(model, folder)}
    head, graph = copy_without(model, "graph"), copy_without(model.graph, "initializer")
    parts: list[tuple[bytes, External]] = []
    for tensor in model.graph.initializer:
        if tensor.name not in places:
            graph.initializer.append(tensor)
            continue
        place = places[tensor.name]
        start = _described(tensor).SerializeToString() + _field(TensorProto, "raw_data", place.length)
        parts.append((_field(onnx.GraphProto, "initializer", len(start) + place.length) + start, place))
    small = graph.SerializeToString()
    length = len(small) + sum(len(start) + place.length for start, place in parts)
    file.write(head.SerializeToString() + _field(onnx.ModelProto, "graph", length) + small)
    for start, place in parts:
        file.write(start)
        _stream(place, file)
    file.truncate(file.tell())


def _field(message: Any, name: str, length: int) -> bytes:
    """The header of a ``length``-byte field in protobuf's wire format: number and type, then length, as varints."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _stream(place: External, file: BinaryIO) -> None:
    """Copies a region block by block; blocks of zeros become holes in a sparse file."""
    left = place.length
    with place.path.open("rb") as source:
        source.seek(place.offset)
        while left:
            block = source.read(min(left, _BLOCK))
            if not block:
                raise ModelError(f"external data {place.path} is truncated")
            if block.count(0) == len(block):
                file.seek(len(block), 1)
            else:
                file.write(block)
            left -= len(block)


def light_copy(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Returns a copy of ``model`` in memory without the large weights that no grid is computed from.

    For inspection of the graph only: the detached weights cannot be attached again.

    Raises:
        ModelError: external data can't be read.
    """
    if bytes_of_weights(model) < SMALL_MODEL:
        copy = copy_of(model)
        pull_in(copy, folder)
        return copy
    near = _near_grids(model.graph)
    far = []
    copy = copy_without_initializers(model)
    for tensor in model.graph.initializer:
        length = 0 if tensor.data_type == TensorProto.STRING else tensor_bytes(tensor)
        if length > LARGE_TENSOR and tensor.data_type in FLOAT_TYPES and tensor.name not in near:
            far.append(_reference(tensor, "-", 0, length))
        else:
            copy.graph.initializer.append(tensor)
    pull_in(copy, folder)
    copy.graph.initializer.extend(far)
    light, _ = detach_weights(copy)
    return light
