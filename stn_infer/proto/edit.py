"""Edits of ONNX protobufs: copies, replaced lists of nodes, new nodes and constants, what nothing uses taken out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

from stn_infer.proto.names import Names
from stn_infer.proto.traversal import names_read, subgraphs

M = TypeVar("M", bound=Message)


def copy_of(message: M) -> M:
    """A copy of a model, node or tensor."""
    copy: M = type(message)()
    copy.CopyFrom(message)
    return copy


def copy_without(message: M, left_out: str, into: M | None = None) -> M:
    """A copy of all fields but one, whose data may be large; in ``into`` where that is given."""
    copy: M = type(message)() if into is None else into
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(copy, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(copy, field.name).CopyFrom(value)
        else:
            getattr(copy, field.name).extend(value)
    return copy


def copy_without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model``, its main graph's initializers left out."""
    copy = copy_without(model, "graph")
    copy_without(model.graph, "initializer", copy.graph)
    return copy


def replace_all(field: Any, messages: Iterable[M]) -> None:
    """Make ``messages``, some of which may be in it, all that a repeated field holds."""
    copies = [copy_of(message) for message in messages]  # copied, since emptying the field invalidates its own
    del field[:]
    field.extend(copies)


class NewNodes:
    """Nodes to be put into a graph, each output under a name that is free there.

    Args:
        names: the graph's.
        prefix: what the names of all of them begin with.

    Attributes:
        nodes: those made so far, in order.
        constants: initializers that they read.
    """

    def __init__(self, names: Names, prefix: str) -> None:
        self._names, self._prefix = names, prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def name(self, what: str) -> str:
        """A free name that tells what it is for."""
        return self._names.fresh(f"{self._prefix}_{what}")

    def node(self, op_type: str, inputs: Iterable[str], what: str, **attributes: Any) -> str:
        """Add a node with one output; its name."""
        output = self.name(what)
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, what: str, values: NDArray[Any]) -> str:
        """Add an initializer; its name."""
        name = self.name(what)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def scalar(self, what: str, value: float) -> str:
        """Add a float32 constant as a node, which a function may hold too; its name."""
        return self.node("Constant", [], what, value=numpy_helper.from_array(np.array(value, np.float32)))


def drop_unused(graph: GraphProto) -> None:
    """Remove, in place, the nodes and constants that nothing uses, in subgraphs too; these keep their interface."""
    needed = {value.name for value in (*graph.output, *graph.input)}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.output and needed.isdisjoint(node.output):
            del graph.node[index]
            continue
        for _, inner in subgraphs(node):
            drop_unused(inner)
        needed.update(names_read(node))
    made = {name for node in graph.node for name in node.output}
    for field, names in ((graph.initializer, needed), (graph.value_info, made)):
        for index in reversed(range(len(field))):
            if field[index].name not in names:
                del field[index]
