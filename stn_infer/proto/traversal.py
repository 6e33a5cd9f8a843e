"""Walks over ONNX graphs: nodes, bodies of control flow, functions, tensors, and what a node reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from stn_infer.errors import ModelError

STANDARD_DOMAINS = ("", "ai.onnx")


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the file that holds data: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (
            *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            *attribute.sparse_tensors,
        ):
            yield from (sparse.values, sparse.indices)
        for graph in subgraphs(attribute):
            yield from _graph_tensors(graph)


def subgraphs(attribute: AttributeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in an attribute."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; strings decoded."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def follows(node: onnx.NodeProto, op_types: frozenset[str]) -> bool:
    """Whether a node is one of ONNX's own ``op_types``."""
    return node.op_type in op_types and node.domain in STANDARD_DOMAINS


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, by attribute name."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """``nodes`` and, after each, those in its bodies, at any depth."""
    for node in nodes:
        yield node
        for _, graph in bodies(node):
            yield from all_nodes(graph.node)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, and what its bodies take from the graphs around them."""
    yield from node.input
    for _, graph in bodies(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            yield from (name for name in names_read(inner) if name not in own)
            own.update(inner.output)
        yield from (value.name for value in graph.output if value.name not in own)


def known_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, without those that a function takes from its caller."""
    known: dict[str, Any] = {}
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            value = helper.get_attribute_value(attribute)
            known[attribute.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return known


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default ONNX domain that ``model`` imports."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError("the ONNX file imports no version of the default operator set; it is damaged")


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes: of the main graph, of functions, and of the subgraphs of either."""
    yield from nested_nodes(model.graph.node)
    for function in model.functions:
        yield from nested_nodes(function.node)


def nested_nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    """``nodes`` and the nodes of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                yield from nested_nodes(graph.node)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from reads(inner)
