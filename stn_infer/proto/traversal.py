"""Read-only traversal of ONNX protobufs: nodes, subgraphs, tensors, and which node reads which tensor.

Functions that change a graph are in :mod:`stn_infer.proto.edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from stn_infer.errors import ModelError

#: The two spellings of the domain of ONNX's own operators.
STANDARD_DOMAINS = ("", "ai.onnx")


def opset_of(holder: onnx.ModelProto | onnx.FunctionProto) -> int:
    """Returns the version of the default ONNX domain that a model or a function imports.

    Raises:
        ModelError: it does not import the default domain.
    """
    for entry in holder.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            return int(entry.version)
    raise ModelError("the ONNX file imports no version of the default operator set; it is damaged")


# ---- one node ----------------------------------------------------------------------------------------------------


def is_standard(node: NodeProto, *op_types: str) -> bool:
    """Whether a node is an operator of the standard domain, and one of ``op_types`` if any are given."""
    return node.domain in STANDARD_DOMAINS and (not op_types or node.op_type in op_types)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Returns a node's attributes as Python values, strings decoded, without references to a caller's attributes."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    return {name: v.decode(errors="replace") if isinstance(v, bytes) else v for name, v in values.items()}


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yields the graphs in a node's attributes (the branches of an If, the body of a Loop) by attribute name."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def names_read(node: NodeProto) -> Iterator[str]:
    """Yields the tensors that a node reads, and those that its subgraphs read from the enclosing graphs."""
    yield from filter(None, node.input)
    if not node.attribute:  # most nodes have none: files have 100,000
        return
    for _, graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own.update(sparse.values.name for sparse in graph.sparse_initializer)
        for inner in graph.node:
            yield from (name for name in names_read(inner) if name not in own)
            own.update(inner.output)
        yield from (value.name for value in graph.output if value.name not in own)


# ---- many nodes --------------------------------------------------------------------------------------------------


def nested_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields ``nodes`` and, after each, the nodes in its subgraphs, at any depth."""
    for node in nodes:
        yield node
        if node.attribute:
            for _, graph in subgraphs(node):
                yield from nested_nodes(graph.node)


def every_node(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """Yields all nodes of a model: those of the main graph, the functions, and their subgraphs."""
    for holder in (model.graph, *model.functions):
        yield from nested_nodes(holder.node)


def every_graph(graph: GraphProto) -> Iterator[GraphProto]:
    """Yields ``graph`` and its subgraphs, at any depth."""
    yield graph
    for node in nested_nodes(graph.node):
        if node.attribute:
            yield from (inner for _, inner in subgraphs(node))


def producers(nodes: Iterable[NodeProto]) -> dict[str, int]:
    """Maps each tensor to the position in ``nodes`` of the node that produces it."""
    return {name: index for index, node in enumerate(nodes) for name in node.output if name}


def walk_back(starts: Iterable[str], before: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Yields ``starts`` and every tensor reachable from them through ``before``, each once, depth first."""
    stack, seen = list(starts), {""}
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            yield name
            stack.extend(before(name))


# ---- tensors -----------------------------------------------------------------------------------------------------


def given_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: those without an initializer."""
    initialized = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialized]


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yields every tensor with data: initializers and attributes, in subgraphs and functions too."""
    for holder in (model.graph, *model.functions):
        yield from _tensors_in(holder)


def _tensors_in(holder: GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    if isinstance(holder, GraphProto):
        yield from holder.initializer
        for sparse in holder.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in holder.node:
        if not node.attribute:
            continue
        yield from node_tensors(node)
        for _, graph in subgraphs(node):
            yield from _tensors_in(graph)


def node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    """The tensors in a node's own attributes."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
