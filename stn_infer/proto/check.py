"""Checks an ONNX file's structure in Python before it is passed to a native library.

onnx's checker, onnxruntime and TensorRT's parser expect well-formed files; some damaged or hostile files crash the
process. These checks take linear time and little memory. They cover names and their order, subgraphs, functions, and
whether the length of each tensor's data matches its dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, defs

from stn_infer.errors import ModelError
from stn_infer.printing import counted
from stn_infer.proto.edit import replace_all
from stn_infer.proto.own_ops import check_own_op
from stn_infer.proto.traversal import (
    STANDARD_DOMAINS,
    given_inputs,
    is_standard,
    names_read,
    nested_nodes,
    node_tensors,
    producers,
    subgraphs,
)
from stn_infer.samplers import MODES, PADDING_MODES, spell_mode

_MAX_NESTED = 16
# Limits on nodes after inlining: a normal file calls some functions often, a hostile one doubles at every level.
_MAX_INLINED = 50_000
_MAX_INLINED_PER_NODE = 10
_UNBOUNDED = 1_000_000  # a larger maximum number of inputs in a schema means "any number"
_MAX_DIMS = 64
_MAX_VERSION = 2**31 - 1  # of an operator set, in every runtime
_MAX_ELEMENTS = 2**40

_BITS = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("UINT8", "INT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
_TYPE_NAMES = {number: name for name, number in TensorProto.DataType.items()}
# The field that holds a type's values if they are not raw bytes, and the number of entries per element.
_FIELDS = {
    **dict.fromkeys(("FLOAT",), ("float_data", 1)),
    **dict.fromkeys(("COMPLEX64",), ("float_data", 2)),
    **dict.fromkeys(("DOUBLE",), ("double_data", 1)),
    **dict.fromkeys(("COMPLEX128",), ("double_data", 2)),
    **dict.fromkeys(("INT64",), ("int64_data", 1)),
    **dict.fromkeys(("UINT32", "UINT64"), ("uint64_data", 1)),
}
_PAYLOADS = {
    AttributeProto.GRAPH: "g",
    AttributeProto.TENSOR: "t",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}
_SAMPLER_WORDS = {
    "mode": tuple(dict.fromkeys(spell_mode(mode, opset) for mode in MODES for opset in (20, 16))),
    "padding_mode": PADDING_MODES,
}
_Function = tuple[str, str, str]  # domain, name, overload
_Scope = tuple[set[str], ...]


def check_structure(model: onnx.ModelProto) -> None:
    """Checks a model's structure.

    Raises:
        ModelError: the structure is invalid; one sentence that names the problem and the node or tensor, not the file.
    """
    try:
        _check_text(model)
        _Checker(model).run()
    except RecursionError:
        raise ModelError("its subgraphs are nested too deeply") from None


def tensor_bytes(tensor: TensorProto) -> int:
    """Returns the size of a tensor's raw data in bytes, from its dimensions and type.

    Raises:
        ModelError: the dimensions are invalid, or the type is unknown or has no fixed size.
    """
    name = _TYPE_NAMES.get(tensor.data_type, "UNDEFINED")
    if name not in _BITS:
        raise ModelError(f"tensor {tensor.name!r} has data type {tensor.data_type} ({name}), which has no fixed size")
    return (elements(tensor) * _BITS[name] + 7) // 8


def elements(tensor: TensorProto) -> int:
    """Returns the number of elements that a tensor's dimensions give.

    Raises:
        ModelError: a dimension is negative, or there are too many dimensions or elements.
    """
    if len(tensor.dims) > _MAX_DIMS or any(size < 0 for size in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has invalid dimensions {_format_dims(tensor.dims)}")
    count: int = math.prod(tensor.dims)
    if count > _MAX_ELEMENTS or any(size > _MAX_ELEMENTS for size in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has implausibly large dimensions {_format_dims(tensor.dims)}")
    return count


def _check_text(message: Any) -> None:
    """Checks that every string is valid UTF-8: protobuf returns any other string as bytes."""
    if isinstance(message, TensorProto):
        # ListFields would copy the tensor's data.
        texts = [message.name, *(text for entry in message.external_data for text in (entry.key, entry.value))]
        if not all(isinstance(text, str) for text in texts):
            raise ModelError(f"it contains the name {texts[0]!r}, which is not valid UTF-8")
        return
    for field, value in message.ListFields():
        values = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
        if field.type == field.TYPE_STRING:
            for text in values:
                if not isinstance(text, str):
                    raise ModelError(f"it contains the name {bytes(text[:40])!r}, which is not valid UTF-8")
        elif field.type == field.TYPE_MESSAGE:
            for inner in values:
                _check_text(inner)


class _Checker:
    """Checks one model; counts nodes as if every function were inlined."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._functions: dict[_Function, onnx.FunctionProto] = {}
        self._sizes: dict[_Function, int] = {}

    def run(self) -> None:
        model = self._model
        if not model.graph.node:
            raise ModelError("it contains no graph; it is not an ONNX file, or it is truncated")
        if model.ir_version < 1:
            raise ModelError("it has no IR version; it is damaged")
        versions: dict[str, int] = {}
        for entry in model.opset_import:
            domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
            if not 1 <= entry.version <= _MAX_VERSION or versions.setdefault(domain, entry.version) != entry.version:
                raise ModelError(f"it imports operator set {domain or 'ai.onnx'!r} version {entry.version}")
        if not model.graph.output:
            raise ModelError("it has no outputs")
        for value in given_inputs(model.graph):
            dims = value.type.tensor_type.shape.dim
            if len(dims) > 1 and dims[0].HasField("dim_value") and dims[0].dim_value == 0:
                raise ModelError(f"its input {value.name!r} has batch size 0")
        if "" not in versions and any(is_standard(node) for node in model.graph.node):
            raise ModelError("it imports no version of the default operator set")
        for function in model.functions:
            key = (function.domain, function.name, function.overload)
            if key in self._functions:
                raise ModelError(f"function {_qualified(key)} is defined twice")
            self._functions[key] = function
        _check_signatures(model.graph.node, versions.get("", 1))
        for function in model.functions:
            for entry in function.opset_import:
                if not 1 <= entry.version <= _MAX_VERSION:
                    raise ModelError(f"function {function.name!r} imports operator set version {entry.version}")
            own = [entry.version for entry in function.opset_import if entry.domain in STANDARD_DOMAINS]
            _check_signatures(function.node, own[0] if own else versions.get("", 1))
            self._check_function(function)
        self._size_of_functions()
        self._check_graph(model.graph, (), 0)
        for node in nested_nodes(model.graph.node):
            if any(attribute.ref_attr_name for attribute in node.attribute):
                raise ModelError(f"node {_label(node)} references a caller's attribute outside a function")
        written = sum(1 for part in (model.graph, *model.functions) for _ in nested_nodes(part.node))
        inlined, most = self._inlined(model.graph.node), _MAX_INLINED + _MAX_INLINED_PER_NODE * written
        if inlined > most:
            raise ModelError(
                f"its {written:,} nodes expand to {inlined:,} with functions inlined; the limit is {most:,}"
            )

    def _check_function(self, function: onnx.FunctionProto) -> None:
        label = _qualified((function.domain, function.name, function.overload))
        known = set(function.input)
        if len(known) != len(function.input):
            raise ModelError(f"function {label} has two inputs with the same name")
        self._check_nodes(function.node, known, (), 1)
        for name in function.output:
            if name not in known:
                raise ModelError(f"function {label}: no node produces its output {name!r}")

    def _size_of_functions(self) -> None:
        """Counts nodes with called functions inlined, callees first; recursion is an error."""
        calls = {key: set(self._calls_in(function.node)) for key, function in self._functions.items()}
        depth = dict.fromkeys(calls, 0)
        while len(self._sizes) < len(calls):
            ready = [key for key, callees in calls.items() if key not in self._sizes and callees <= self._sizes.keys()]
            if not ready:
                recursive = next(key for key in calls if key not in self._sizes)
                raise ModelError(f"function {_qualified(recursive)} calls itself")
            for key in ready:
                depth[key] = 1 + max((depth[callee] for callee in calls[key]), default=0)
                self._sizes[key] = self._inlined(self._functions[key].node)
                if depth[key] > _MAX_NESTED:
                    raise ModelError(f"function calls are nested more than {_MAX_NESTED} deep, at {_qualified(key)}")

    def _calls_in(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[_Function]:
        for node in nested_nodes(nodes):
            key = (node.domain, node.op_type, node.overload)
            if key in self._functions:
                yield key

    def _inlined(self, nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(self._sizes.get((node.domain, node.op_type, node.overload), 1) for node in nested_nodes(nodes))

    def _check_graph(self, graph: onnx.GraphProto, outer: _Scope, depth: int) -> None:
        if depth > _MAX_NESTED:
            raise ModelError(f"its subgraphs are nested more than {_MAX_NESTED} deep")
        known: set[str] = set()
        for value in graph.input:
            if not value.name or value.name in known:
                raise ModelError(f"two inputs are named {value.name!r}" if value.name else "an input has no name")
            known.add(value.name)
            _check_type(value)
        own: set[str] = set()
        sparse = [item.values for item in graph.sparse_initializer]
        for tensor in (*graph.initializer, *sparse):
            if not tensor.name or tensor.name in own:
                raise ModelError(
                    f"two initializers are named {tensor.name!r}" if tensor.name else "an initializer has no name"
                )
            own.add(tensor.name)
            check_tensor(tensor)
        for item in graph.sparse_initializer:
            check_tensor(item.indices)
        known |= own
        self._check_nodes(graph.node, known, outer, depth)
        outputs = set()
        for value in graph.output:
            if value.name in outputs:
                raise ModelError(f"two outputs are named {value.name!r}")
            outputs.add(value.name)
            if not any(value.name in names for names in (known, *outer)):
                raise ModelError(f"no node produces the output {value.name!r}")
            _check_type(value)
        for value in graph.value_info:
            _check_type(value)

    def _check_nodes(self, nodes: Iterable[onnx.NodeProto], known: set[str], outer: _Scope, depth: int) -> None:
        """Checks that each node reads only tensors produced before it; adds its outputs to ``known``."""
        nodes = list(nodes)
        made = {name for node in nodes for name in node.output}
        for node in nodes:
            if not node.op_type:
                raise ModelError(f"node {node.name!r} has no operator type")
            for name in node.input:
                if name and not any(name in names for names in (known, *outer)):
                    if name in made:
                        raise ModelError(
                            f"node {_label(node)} reads {name!r}, which a later node produces: "
                            "the graph has a cycle or is not in topological order"
                        )
                    raise ModelError(f"node {_label(node)} reads {name!r}, which no node produces")
            if node.attribute:
                self._check_attributes(node, known, outer, depth)
            for name in node.output:
                if name and name in known:
                    raise ModelError(f"node {_label(node)} produces {name!r}, which already exists")
                known.add(name)
            known.discard("")

    def _check_attributes(self, node: onnx.NodeProto, known: set[str], outer: _Scope, depth: int) -> None:
        names = set()
        for attribute in node.attribute:
            if not attribute.name or attribute.name in names:
                raise ModelError(f"node {_label(node)} has a duplicate or unnamed attribute {attribute.name!r}")
            names.add(attribute.name)
            payload = _PAYLOADS.get(attribute.type)
            if payload is not None and not attribute.ref_attr_name and not attribute.HasField(payload):
                raise ModelError(f"node {_label(node)}: attribute {attribute.name!r} has no value")
        for _, graph in subgraphs(node):
            self._check_graph(graph, (known, *outer), depth + 1)
        for tensor in node_tensors(node):
            check_tensor(tensor, at=_label(node))


def _check_signatures(nodes: Iterable[onnx.NodeProto], version: int) -> None:
    """Checks that standard operators have a valid number of inputs and outputs, and attributes of the right type.

    Of this package's own ops, it checks versions and attributes.
    """
    schemas: dict[str, Any] = {}
    for node in nested_nodes(nodes):
        if not is_standard(node):
            check_own_op(node, _label(node))
            continue
        if node.op_type not in schemas:
            try:
                schemas[node.op_type] = defs.get_schema(node.op_type, version, "")
            except defs.SchemaError:  # custom, or of another version: the runtime decides
                schemas[node.op_type] = None
        schema = schemas[node.op_type]
        if schema is None:
            continue
        if not schema.min_input <= len(node.input) <= schema.max_input:
            raise ModelError(f"node {_label(node)} has {counted(len(node.input), 'input')}, expected {_range(schema)}")
        if len(node.output) > schema.max_output:
            raise ModelError(
                f"node {_label(node)} has {counted(len(node.output), 'output')}, expected {schema.max_output} at most"
            )
        for attribute in node.attribute:
            known = schema.attributes.get(attribute.name)
            if known is not None and int(known.type) != attribute.type:
                raise ModelError(f"node {_label(node)}: attribute {attribute.name!r} is not a {known.type.name}")
            if attribute.type == AttributeProto.STRING and not attribute.ref_attr_name:
                _check_word(node, attribute)


def _check_word(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    try:
        word = attribute.s.decode()
    except UnicodeDecodeError:
        raise ModelError(f"node {_label(node)}: attribute {attribute.name!r} is not valid UTF-8") from None
    if node.op_type == "GridSample" and word not in _SAMPLER_WORDS.get(attribute.name, (word,)):
        words = ", ".join(_SAMPLER_WORDS[attribute.name])
        raise ModelError(f"node {_label(node)}: {attribute.name} {word[:20]!r} is not one of {words}")


def _range(schema: Any) -> str:
    low, high = schema.min_input, schema.max_input
    return str(low) if low == high else f"{low} to {high}" if high < _UNBOUNDED else f"{low} or more"


def check_tensor(tensor: TensorProto, at: str = "") -> None:
    """Checks that the length of a tensor's data matches its dimensions; external data are checked in load.py.

    Raises:
        ModelError: the length differs, or the dimensions or the type are invalid.
    """
    what = f"tensor {tensor.name!r}" + (f" of node {at}" if at else "")
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which no runtime reads")
    count = elements(tensor)
    kind = _TYPE_NAMES.get(tensor.data_type, "UNDEFINED")
    if kind == "STRING":
        if len(tensor.string_data) != count or tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"{what} should hold {count} strings, but holds {len(tensor.string_data)}")
        return
    size = tensor_bytes(tensor)
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
        if held != size:
            raise ModelError(f"{what} has dimensions {_format_dims(tensor.dims)}, {size} bytes, but holds {held}")
        return
    field, entries = _FIELDS.get(kind, ("int32_data", 1))
    wanted = count * entries
    if _BITS[kind] < 8 and kind not in ("FLOAT6E2M3", "FLOAT6E3M2"):
        wanted = size  # packed: several elements per byte, one byte per entry
    held = len(getattr(tensor, field))
    if held != wanted:
        raise ModelError(f"{what} has dimensions {_format_dims(tensor.dims)}, {wanted} values, but holds {held}")


def _check_type(value: onnx.ValueInfoProto) -> None:
    if not value.type.HasField("tensor_type"):
        return
    for dim in value.type.tensor_type.shape.dim:
        # Some exporters write -1 for a dynamic size.
        if dim.dim_value < -1 or dim.dim_value > _MAX_ELEMENTS:
            raise ModelError(f"{value.name!r} has the invalid dimension {dim.dim_value}")
    if value.type.tensor_type.elem_type not in _TYPE_NAMES:
        raise ModelError(f"{value.name!r} has the unknown type {value.type.tensor_type.elem_type}")


def _label(node: onnx.NodeProto) -> str:
    return f"{node.name or (node.output[0] if node.output else '')!r} ({node.op_type})"


def _qualified(key: _Function) -> str:
    return f"{key[0]}::{key[1]}"


def _format_dims(dims: Iterable[int]) -> str:
    text = str(list(dims))
    return text if len(text) <= 80 else text[:79] + "…"


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sorts ``graph``'s nodes topologically, in place; the sort is stable.

    Some exporters write another order. ONNX does not allow that, but onnxruntime corrects it.

    Returns:
        Whether any node moved. A graph with a cycle is not changed.
    """
    made = producers(graph.node)
    needs = [{made[name] for name in names_read(node) if name in made} for node in graph.node]
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return False
    order = _topological(dict(enumerate(needs)))
    if len(order) < len(graph.node):
        return False
    replace_all(graph.node, [graph.node[index] for index in order])
    return True


def _topological(needs: Mapping[int, set[int]]) -> list[int]:
    """Kahn's algorithm, smallest index first. The result is shorter than ``needs`` if there is a cycle."""
    import heapq

    waiting = {index: len(before) for index, before in needs.items()}
    users: dict[int, list[int]] = {index: [] for index in needs}
    for index, before in needs.items():
        for other in before:
            users[other].append(index)
    ready = [index for index, count in waiting.items() if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    return order
