"""Writes a model with plain operators only, for importers that know no model-local functions.

The nodes of every function replace its calls. What is left of the functions goes as well: the import of their domains,
casts to the type that a value has already, and node names that several calls share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.proto.edit import followed, inline_functions, put_back, replace_all, set_aside
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, is_standard, nested_nodes, subgraphs

#: Forms of Constant that hold one number or a list of numbers.
_NUMBERS = ("value_int", "value_ints", "value_float", "value_floats")

#: What a user should know about such a file.
NOTE = "written with plain operators: importers without model-local functions read it, no kernel library runs it fused"


def inlined(model: onnx.ModelProto, keep: Iterable[tuple[str, str]] = ()) -> onnx.ModelProto:
    """Returns a copy of ``model`` without model-local functions; the model itself if it has none.

    Nodes have unique names, and only domains that a node uses are imported. Inputs, outputs and initializers keep
    their names.

    Args:
        model: the model.
        keep: (domain, name) of functions that stay, for a runtime with kernels for them.

    Raises:
        ModelError: a function imports another operator set than the model, or the model exceeds 2 GB.
    """
    kept = set(keep)
    if all((function.domain, function.name) in kept for function in model.functions):
        return model
    light, large = set_aside(model)
    plain = inline_functions(light, kept)
    replace_all(plain.functions, [entry for entry in plain.functions if (entry.domain, entry.name) in kept])
    try:
        typed = onnx.shape_inference.infer_shapes(plain)
    except Exception:  # a C++ exception of no particular class; the file's own types remain
        typed = plain
    _drop_casts(plain.graph, typed.graph, {})
    made = {name for node in plain.graph.node for name in node.output}
    replace_all(plain.graph.value_info, [value for value in plain.graph.value_info if value.name in made])
    _store_constants(plain.graph)
    _name_nodes(plain.graph)
    used = {node.domain for node in nested_nodes(plain.graph.node)}
    imports = [entry for entry in plain.opset_import if entry.domain in STANDARD_DOMAINS or entry.domain in used]
    replace_all(plain.opset_import, imports)
    put_back(plain, large)
    return plain


def _drop_casts(graph: onnx.GraphProto, typed: onnx.GraphProto, outer: Mapping[str, int]) -> None:
    """Removes casts to a value's own type, in place and in subgraphs; writes CastLike to a known type as Cast.

    Args:
        graph: the graph to change.
        typed: the same graph after shape inference.
        outer: types of the tensors of the enclosing graphs.
    """
    types = {**outer, **_types(typed)}
    outputs = {value.name for value in graph.output}
    fixed = outputs | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    renamed: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node, same in zip(graph.node, typed.node, strict=True):
        for (_, inner), (_, inner_typed) in zip(subgraphs(node), subgraphs(same), strict=True):
            _drop_casts(inner, inner_typed, types)
        target = _target(node, types)
        if not target:
            kept.append(node)
            continue
        result = node.output[0]
        source = followed(renamed, node.input[0])
        if types.get(node.input[0]) != target:
            kept.append(helper.make_node("Cast", [node.input[0]], [result], node.name, to=target))
        elif result not in outputs:
            renamed[result] = source
        elif source in made and source not in fixed:
            renamed[source] = result  # the output keeps its name
        else:
            kept.append(node)  # an input that is an output, or two outputs of one value
    replace_all(graph.node, kept)
    _rename(graph, {name: followed(renamed, name) for name in renamed})


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    """Element types by name, as far as shape inference determines them."""
    values = (*graph.value_info, *graph.output, *graph.input)
    found = {value.name: value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: kind for name, kind in found.items() if kind}


def _target(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    """The type that a Cast or CastLike casts to; 0 for other nodes and if it is not known."""
    if is_standard(node, "Cast"):
        return int(attributes_of(node)["to"])
    return types.get(node.input[1], 0) if is_standard(node, "CastLike") else 0


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames tensors in place, where they are made and where they are read, in subgraphs too."""
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in names:
                    field[index] = names[name]
        for _, inner in subgraphs(node):
            _rename(inner, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def _store_constants(graph: onnx.GraphProto) -> None:
    """Turns the main graph's Constant nodes of numbers, which some importers do not know, into initializers."""
    kept = []
    for node in graph.node:
        form = node.attribute[0].name if is_standard(node, "Constant") and len(node.attribute) == 1 else ""
        if form not in _NUMBERS:
            kept.append(node)
            continue
        value = attributes_of(node)[form]
        dims = [len(value)] if form.endswith("s") else []
        kind = TensorProto.INT64 if form.startswith("value_int") else TensorProto.FLOAT
        array = numpy_helper.to_array(helper.make_tensor(node.output[0], kind, dims, value if dims else [value]))
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    replace_all(graph.node, kept)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names nodes that have no name, and all but the first of those that share one."""
    taken = {node.name for node in nested_nodes(graph.node)}
    seen: set[str] = set()
    numbers: dict[str, int] = {}  # the last that was tried, by base
    for node in nested_nodes(graph.node):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        base = node.name or node.op_type
        number = numbers.get(base, 0) + 1
        while f"{base}_{number}" in taken:
            number += 1
        numbers[base] = number
        node.name = f"{base}_{number}"
        taken.add(node.name)
        seen.add(node.name)
