"""Edits of ONNX protobufs: copying, replacing lists of nodes, adding nodes and constants, removing unused ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

from stn_infer.errors import ModelError, one_line
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import names_read, subgraphs

M = TypeVar("M", bound=Message)


def copy_of(message: M) -> M:
    """Returns a copy of a model, node or tensor."""
    copy: M = type(message)()
    copy.CopyFrom(message)
    return copy


#: Initializers of more bytes are left out where a model is copied as bytes.
_LARGE = 2**12


def inline_functions(
    model: onnx.ModelProto, keep: Iterable[tuple[str, str]] = (), *, only: Iterable[tuple[str, str]] | None = None
) -> onnx.ModelProto:
    """Returns a copy with the calls of model-local functions replaced by their nodes.

    A function that imports another operator set than the model stays.

    Args:
        model: the model.
        keep: (domain, name) of functions that stay.
        only: (domain, name) of the functions to inline; None: all but those in ``keep``.

    Raises:
        ModelError: the inliner rejects the model, or the model without its weights exceeds 2 GB.
    """
    from onnx import inliner

    light, large = set_aside(model)  # the inliner copies models as bytes
    try:
        names = list(keep if only is None else only)
        flat = inliner.inline_selected_functions(light, names, exclude=only is None)
    except Exception as error:  # protobuf and onnx raise different ones
        raise ModelError(f"its functions cannot be inlined: {one_line(error)}") from error
    put_back(flat, large)
    return flat


def set_aside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """Returns a copy without the data of large initializers, and these by name, for :func:`put_back`."""
    large = {tensor.name: tensor for tensor in model.graph.initializer if tensor.ByteSize() > _LARGE}
    light = copy_without_initializers(model)
    light.graph.initializer.extend(
        onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if tensor.name in large
        else tensor
        for tensor in model.graph.initializer
    )
    return light, large


def put_back(model: onnx.ModelProto, large: Mapping[str, onnx.TensorProto]) -> None:
    """Puts the initializers that :func:`set_aside` left out back into ``model``, in place."""
    for tensor in model.graph.initializer:
        if tensor.name in large:
            tensor.CopyFrom(large[tensor.name])


def copy_without(message: M, left_out: str, into: M | None = None) -> M:
    """Returns a copy without one field, whose data may be large; copies into ``into`` if it is given."""
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
    """Returns a copy of ``model`` without the main graph's initializers."""
    copy = copy_without(model, "graph")
    copy_without(model.graph, "initializer", copy.graph)
    return copy


def replace_all(field: Any, messages: Iterable[M]) -> None:
    """Replaces the content of a repeated field by ``messages``, which may include messages of the field itself."""
    copies = [copy_of(message) for message in messages]  # emptying the field invalidates its messages
    del field[:]
    field.extend(copies)


class NewNodes:
    """New nodes for a graph; each output gets a name that is not used there.

    Args:
        names: the graph's names.
        prefix: the prefix of all new names.

    Attributes:
        nodes: the nodes added so far, in order.
        constants: the initializers added so far.
    """

    def __init__(self, names: Names, prefix: str) -> None:
        self._names, self._prefix = names, prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def name(self, what: str) -> str:
        """Returns an unused name made of the prefix and ``what``."""
        return self._names.fresh(f"{self._prefix}_{what}")

    def node(self, op_type: str, inputs: Iterable[str], what: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        output = self.name(what)
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, what: str, values: NDArray[Any]) -> str:
        """Adds an initializer; returns its name."""
        name = self.name(what)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def scalar(self, what: str, value: float) -> str:
        """Adds a float32 constant as a node, which functions support too; returns its name."""
        return self.node("Constant", [], what, value=numpy_helper.from_array(np.array(value, np.float32)))


def followed(renamed: Mapping[str, str], name: str) -> str:
    """The name that a tensor has after all renamings."""
    while name in renamed:
        name = renamed[name]
    return name


def drop_unused(graph: GraphProto) -> None:
    """Removes unused nodes and constants in place, in subgraphs too; subgraphs keep their inputs and outputs."""
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
