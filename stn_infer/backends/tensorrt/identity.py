"""What two models have in common: hashes of a graph, of its weights, and of each weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import onnx

_ABOUT: tuple[Literal["metadata_props", "producer_name", "producer_version", "doc_string", "model_version"], ...] = (
    "metadata_props",
    "producer_name",
    "producer_version",
    "doc_string",
    "model_version",
)
_LENGTH = 16  # hex digits of the hash of one weight: it detects a change, not an attack


def hashes(model: onnx.ModelProto) -> tuple[str, str]:
    """SHA-256 of the graph without its initializers' values, and of these values."""
    weights = hashlib.sha256()
    for head, values in _weights(model):
        weights.update(head)
        weights.update(values)
    graph = _without_weights(model)
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(), weights.hexdigest()


def structure(model: onnx.ModelProto) -> str:
    """SHA-256 of what an engine computes apart from its weights: the graph and the functions, without metadata."""
    from stn_infer.proto.traversal import every_node

    graph = _without_weights(model)
    for field in _ABOUT:
        graph.ClearField(field)
    for node in every_node(graph):
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def weight_hashes(model: onnx.ModelProto) -> dict[str, str]:
    """A hash of each initializer's type, shape and values, by name."""
    found = {}
    for head, values in _weights(model):
        name = head.partition(b"\0")[0].decode()
        found[name] = hashlib.sha256(head + values).hexdigest()[:_LENGTH]
    return found


def _weights(model: onnx.ModelProto) -> Iterator[tuple[bytes, bytes]]:
    """(name, type and shape; values) of each initializer."""
    from onnx import numpy_helper

    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        head = f"{tensor.name}\0{tensor.data_type}\0{list(tensor.dims)}\0".encode()
        yield head, numpy_helper.to_array(tensor).tobytes()


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    from stn_infer.proto.edit import copy_of

    graph = copy_of(model)
    for tensor in graph.graph.initializer:
        empty: Any = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(empty)
    return graph
