"""A model's graphs, flattened: the main graph, and each body of an If, Loop or Scan with the nodes that it can read.

A body reads tensors of the enclosing graphs, so a grid may be computed outside and sampled inside. For a sampler in a
body, one list contains the nodes before the holder (the If, Loop or Scan node) and the body's nodes. The values that
the holder passes in at each iteration are replaced by nodes that give their shape; they are not traced further back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from stn_infer.fusion.op import reads_grid
from stn_infer.proto.traversal import attributes_of, nested_nodes, subgraphs


@dataclass(frozen=True)
class Scope:
    """One graph of a model, together with its enclosing graphs.

    Attributes:
        model: the model.
        graph: the graph itself, part of the model.
        label: empty for the main graph, else e.g. ``then_branch of 'If_3'``.
        nodes: the nodes of the enclosing graphs up to the holder, then the graph's own nodes, in order.
        own: the number of the graph's own nodes, which come last.
        given: tensors that a holder passes in at each iteration: they vary, and are not traced further back.
        carried: (input, output) names of the values that enclosing loops carry from one iteration to the next.
        initializers: name -> tensor, of this and all enclosing graphs.
        defaults: names of initializers that are also inputs, so a caller may override them.
        shadowed: a name that both this and an enclosing graph define; samplers in such a graph are not fused.
    """

    model: onnx.ModelProto
    graph: onnx.GraphProto
    label: str
    nodes: tuple[onnx.NodeProto, ...]
    own: int
    given: frozenset[str]
    carried: tuple[tuple[str, str], ...]
    initializers: dict[str, onnx.TensorProto]
    defaults: frozenset[str]
    shadowed: str | None

    @property
    def samplers(self) -> list[onnx.NodeProto]:
        """The graph's own nodes that sample at a grid: GridSample and this package's ``Sampler``."""
        return [node for node in self.nodes[len(self.nodes) - self.own :] if reads_grid(node)]


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Yields the graphs of ``model`` that contain a sampler, the main graph first."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    defaults = frozenset(value.name for value in graph.input if value.name in tensors)
    main = Scope(model, graph, "", tuple(graph.node), len(graph.node), frozenset(), (), tensors, defaults, None)
    yield from _visit(main)


def _visit(scope: Scope) -> Iterator[Scope]:
    if scope.samplers:
        yield scope
    first = len(scope.nodes) - scope.own
    for index in range(first, len(scope.nodes)):
        node = scope.nodes[index]
        for name, body in subgraphs(node):
            if any(map(reads_grid, nested_nodes(body.node))):
                yield from _visit(_inside(scope, index, name, body))


def _inside(scope: Scope, index: int, attribute: str, body: onnx.GraphProto) -> Scope:
    holder = scope.nodes[index]
    before = scope.nodes[:index]
    tensors = {tensor.name: tensor for tensor in body.initializer}
    given = {value.name for value in body.input}
    known = set(scope.initializers) | {value.name for value in scope.model.graph.input}
    known |= {name for node in before for name in node.output if name}
    own = {name for node in body.node for name in node.output if name} | set(tensors) | given
    return Scope(
        scope.model,
        body,
        " in ".join(filter(None, (f"{attribute} of {holder.name or holder.output[0]!r}", scope.label))),
        (*before, *_first_iteration(holder, body), *body.node),
        len(body.node),
        scope.given | given,
        (*scope.carried, *_carried(holder, body)),
        {**scope.initializers, **tensors},
        scope.defaults | (given & tensors.keys()),
        scope.shadowed or min(known & own, default=None),
    )


def _carried(holder: onnx.NodeProto, body: onnx.GraphProto) -> list[tuple[str, str]]:
    inputs, outputs = [value.name for value in body.input], [value.name for value in body.output]
    if holder.op_type == "Loop":
        return list(zip(inputs[2:], outputs[1:], strict=False))
    if holder.op_type == "Scan":
        return list(zip(inputs[: len(inputs) - _scanned(holder)], outputs, strict=False))
    return []


def _scanned(holder: onnx.NodeProto) -> int:
    return int(attributes_of(holder).get("num_scan_inputs", 0))


def _first_iteration(holder: onnx.NodeProto, body: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that give the body's inputs with their shapes in the first iteration."""
    names = [value.name for value in body.input]
    if holder.op_type == "Loop" and len(names) >= 2:
        nodes = [helper.make_node("Constant", [], [names[0]], value_int=0)]
        true = helper.make_tensor("", onnx.TensorProto.BOOL, [], [True])
        nodes.append(helper.make_node("Constant", [], [names[1]], value=true))
        pairs = zip(holder.input[2:], names[2:], strict=False)
        return [*nodes, *(helper.make_node("Identity", [source], [name]) for source, name in pairs)]
    if holder.op_type == "Scan":
        count = _scanned(holder)
        axes = attributes_of(holder).get("scan_input_axes", [0] * count)
        first = len(names) - count
        fed = list(zip(holder.input, names, strict=False))
        nodes = [helper.make_node("Identity", [source], [name]) for source, name in fed[:first]]
        for (source, name), axis in zip(fed[first:], axes, strict=False):
            nodes.append(helper.make_node("Constant", [], [f"{name}/first"], value_int=0))
            nodes.append(helper.make_node("Gather", [source, f"{name}/first"], [name], axis=axis))
        return nodes
    return []
