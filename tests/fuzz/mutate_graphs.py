"""Mutations of a graph's structure that stay valid, or nearly: new nodes on edges, bodies, functions, other types."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.fuzz.mutate_bytes import FLOATS, integer

_UNARY = (
    *(
        "Identity",
        "Neg",
        "Abs",
        "Relu",
        "Tanh",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Floor",
        "Round",
        "Erf",
        "IsNaN",
        "Not",
    ),
    *("Flatten", "Transpose", "Squeeze", "Shape", "Size", "NonZero", "Softmax", "ReduceSum", "Dropout", "Det", "Sign"),
)
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Max", "Min", "Mod", "And", "Equal", "Less", "Concat", "Gemm")
_TYPES = (
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.INT64),
    *(TensorProto.INT8, TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.INT4),
    TensorProto.FLOAT8E4M3FN,
)


def change_structure(model: ModelProto, generator: random.Random) -> None:
    """One change to the graph, chosen at random."""
    generator.choice(_CHANGES)(model.graph, model, generator)


def _edge(graph: GraphProto, generator: random.Random) -> tuple[int, int] | None:
    """(index of a node, index of one of its inputs)."""
    edges = [(at, to) for at, node in enumerate(graph.node) for to, name in enumerate(node.input) if name]
    return generator.choice(edges) if edges else None


def _insert(graph: GraphProto, edge: tuple[int, int], make: Callable[[str, str], NodeProto]) -> None:
    """Puts the node that ``make(input, output)`` returns on an edge."""
    at, to = edge
    name = graph.node[at].input[to]
    new = f"{name}_{len(graph.node)}"
    nodes = list(graph.node)
    nodes[at].input[to] = new
    nodes.insert(at, make(name, new))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _operator(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    if edge := _edge(graph, generator):
        _insert(graph, edge, lambda name, new: helper.make_node(generator.choice(_UNARY), [name], [new]))


def _two(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    names = [it.name for it in graph.initializer] + [it.name for it in graph.input]
    if (edge := _edge(graph, generator)) and names:
        other = generator.choice(names)
        inputs = [other, ""] if generator.random() < 0.5 else ["", other]
        operator = generator.choice(_BINARY)
        _insert(graph, edge, lambda name, new: helper.make_node(operator, [it or name for it in inputs], [new]))


def _cast(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    for _ in range(generator.choice((1, 2))):
        if edge := _edge(graph, generator):
            kind = generator.choice(_TYPES)
            _insert(graph, edge, lambda name, new, kind=kind: helper.make_node("Cast", [name], [new], to=kind))


def _constant(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    """An initializer as a Constant node, or a tensor of another type or with special values in its place."""
    if not graph.initializer:
        return
    tensor = generator.choice(graph.initializer)
    try:
        values = numpy_helper.to_array(tensor)
    except Exception:  # external, or damaged by an earlier change
        return
    match generator.randrange(4):
        case 0:
            node = helper.make_node("Constant", [], [tensor.name], value=tensor)
            nodes = [node, *(NodeProto.FromString(it.SerializeToString()) for it in graph.node)]
            del graph.node[:]
            graph.node.extend(nodes)
            graph.initializer.remove(tensor)
        case 1 if values.dtype.kind == "f" and values.size:
            changed = values.copy()
            flat = changed.reshape(-1)
            with np.errstate(over="ignore"):
                flat[generator.randrange(flat.size)] = generator.choice(FLOATS)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        case 2:
            with np.errstate(all="ignore"):
                dtype = generator.choice((np.float16, np.float64, np.int64, np.int32, np.bool_))
                tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
        case _:
            shape = generator.choice(([], [0], [1], [1, *values.shape], list(reversed(values.shape)), [values.size]))
            if int(np.prod(shape)) == values.size:
                tensor.CopyFrom(numpy_helper.from_array(values.reshape(shape), tensor.name))
            else:
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, values.dtype), tensor.name))


def _branch(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    """A value behind an If or a Loop, whose body is the value itself, some levels deep."""
    if not (edge := _edge(graph, generator)):
        return
    at, to = edge
    name = graph.node[at].input[to]
    flag = f"flag_{len(graph.node)}"
    graph.initializer.append(numpy_helper.from_array(np.array(generator.random() < 0.5), flag))
    nodes, result = [helper.make_node("Identity", [name], ["inside_0"])], "inside_0"
    for depth in range(generator.choice((1, 2, 20))):
        value = onnx.ValueInfoProto(name=result)
        body = helper.make_graph(nodes, f"body_{depth}", [], [value])
        outside = f"inside_{depth + 1}"
        nodes = [helper.make_node("If", [flag], [outside], then_branch=body, else_branch=body)] if depth < 12 else nodes
        result = outside if depth < 12 else result
    node = nodes[0]
    if generator.random() < 0.3:
        trips = f"trips_{len(graph.node)}"
        graph.initializer.append(numpy_helper.from_array(np.array(integer(generator), dtype=np.int64), trips))
        carried, following = onnx.ValueInfoProto(name="carried"), onnx.ValueInfoProto(name="next")
        number, flags = (helper.make_tensor_value_info("i", TensorProto.INT64, []), ("go", "on"))
        go, on = (helper.make_tensor_value_info(it, TensorProto.BOOL, []) for it in flags)
        steps = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["carried"], ["next"])]
        body = helper.make_graph(steps, "loop", [number, go, carried], [on, following])
        node = helper.make_node("Loop", [trips, "", name], [result], body=body)

    def made(_: str, new: str) -> NodeProto:
        node.output[0] = new
        return node

    _insert(graph, edge, made)


def _function(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    """A node of its own function, or functions that call each other twice, up to 2 to the power of 40 nodes."""
    if not (edge := _edge(graph, generator)):
        return
    levels = generator.choice((1, 3, 40))
    opsets = [helper.make_opsetid("", generator.choice((7, 16, 18, 22))), helper.make_opsetid("made", 1)]
    start = len(model.functions)
    for level in range(levels):
        inner = f"made_{start + level - 1}" if level else "Identity"
        domain = "made" if level else ""
        nodes = [
            helper.make_node(inner, ["a"], ["b"], domain=domain),
            helper.make_node(inner, ["b"], ["c"], domain=domain),
        ]
        model.functions.append(helper.make_function("made", f"made_{start + level}", ["a"], ["c"], nodes, opsets))
    if not any(entry.domain == "made" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("made", 1))
    _insert(graph, edge, lambda name, new: helper.make_node(f"made_{start + levels - 1}", [name], [new], domain="made"))


def _interface(graph: GraphProto, model: ModelProto, generator: random.Random) -> None:
    """Inputs and outputs of other types, ranks and kinds; more or none of them; one that is an initializer too."""
    values = [*graph.input, *graph.output]
    if not values:
        return
    value = generator.choice(values)
    match generator.randrange(7):
        case 0:
            value.type.tensor_type.elem_type = generator.choice(_TYPES)
        case 1:
            value.type.tensor_type.ClearField("shape")
        case 2:
            value.CopyFrom(helper.make_tensor_sequence_value_info(value.name, TensorProto.FLOAT, None))
        case 3 if graph.node:
            name = generator.choice([name for node in graph.node for name in node.output])
            graph.output.append(onnx.ValueInfoProto(name=name))
        case 4 if graph.initializer:
            tensor = generator.choice(graph.initializer)
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        case 5:
            graph.input.append(
                helper.make_tensor_value_info(f"unused_{len(graph.input)}", generator.choice(_TYPES), ["n", 2])
            )
        case _:
            for axis in value.type.tensor_type.shape.dim:
                match generator.randrange(4):
                    case 0:
                        axis.dim_param = generator.choice(("n", "N", "batch", "h", "", "1", "-1", "x.0"))
                    case 1:
                        axis.dim_value = generator.choice((0, 1, 2, 3, -1, 2**31, 2**62))
                    case _:
                        pass


_CHANGES = (_operator, _two, _cast, _constant, _constant, _branch, _function, _interface)
