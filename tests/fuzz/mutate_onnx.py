"""Mutations of an ONNX file by field: dims, types, opsets, names, attributes, raw data, edges, bodies, functions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper

from stn_infer.errors import StnInferError
from tests.fuzz.mutate_bytes import FLOATS, integer, mutate_bytes, text
from tests.fuzz.mutate_graphs import change_structure
from tests.fuzz.mutate_text import mutate_json

_INTEGERS = (
    *(FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
    *(FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64),
)
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_MOST_SITES = 20_000
_ATTRIBUTE_VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**40,
    0.5,
    float("nan"),
    "",
    "nearest",
    "linear",
    [0],
    [1, -1],
    [2**40, 2],
    [0.5],
)
#: Operators that native libraries shape, unroll or allocate by: they are put in place of another.
_OPERATORS = (
    *("Range", "Expand", "Tile", "ConstantOfShape", "Pad", "Resize", "GridSample", "AffineGrid", "Reshape", "Gather"),
    *("Concat", "Split", "Slice", "Conv", "ConvTranspose", "Einsum", "Loop", "If", "Scan", "Cast", "Where", "NonZero"),
    *(
        "MatMul",
        "Gemm",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Shape",
        "Size",
        "Constant",
        "SpatialTransformer",
    ),
    *("QuantizeLinear", "DequantizeLinear", "OneHot", "ScatterND", "Upsample", "MaxPool", "Softmax", "Div", "Pow"),
)


class _Site:
    """One field of one message."""

    def __init__(self, message: Message, field: FieldDescriptor) -> None:
        self.message, self.field = message, field

    @property
    def value(self) -> Any:
        return getattr(self.message, self.field.name)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _messages(message: Message) -> Iterator[Message]:
    waiting, count = [message], 0
    while waiting and count < _MOST_SITES:
        found = waiting.pop()
        count += 1
        yield found
        for field, value in found.ListFields():
            if field.cpp_type == field.CPPTYPE_MESSAGE:
                waiting.extend(value if _repeated(field) else [value])


def mutate_onnx(data: bytes, generator: random.Random, other: bytes = b"") -> bytes | None:
    """An ONNX file with one field changed; None if ``data`` is not one."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return None
    nodes = [it for it in _messages(model) if isinstance(it, onnx.NodeProto)]
    kind = generator.random()
    if model.metadata_props and kind < 0.4:
        _change_metadata(model, generator)
    elif nodes and kind < 0.45:
        _change_node(model, generator.choice(nodes), nodes, generator)
    elif kind < 0.55:
        _change_whole(model, generator)
    elif nodes and kind < 0.65:
        change_structure(model, generator)
    else:
        _change_field(model, generator, other)
    try:
        return model.SerializeToString()
    except (ValueError, DecodeError):
        return None


def _change_metadata(model: onnx.ModelProto, generator: random.Random) -> None:
    """A value in the JSON of one of our entries, or the entry itself."""
    entry = generator.choice(model.metadata_props)
    changed = mutate_json(entry.value.encode(), generator)
    if changed is None or generator.random() < 0.1:
        entry.value = text(generator, [it.value for it in model.metadata_props])
    else:
        entry.value = changed.decode(errors="replace")


def is_sound(data: bytes) -> bool:
    """Whether the structure passes: what follows reads deeper into the file."""
    from stn_infer.proto.load import parse_model

    try:
        parse_model(data)
    except StnInferError:
        return False
    except Exception:
        pass  # a finding, which the command shall show
    return True


def _change_field(model: onnx.ModelProto, generator: random.Random, other: bytes) -> None:
    messages = list(_messages(model))
    by_type: dict[type, list[Message]] = {}
    for message in messages:
        by_type.setdefault(type(message), []).append(message)
    chosen = generator.choice(by_type[generator.choice(list(by_type))])  # each type as likely, however many it has
    fields = [field for field, _ in chosen.ListFields()]
    if not fields or generator.random() < 0.25:
        fields = list(chosen.DESCRIPTOR.fields)
    site = _Site(chosen, generator.choice(fields))
    same = [_Site(it, site.field) for it in by_type[type(chosen)]]
    if site.field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        _change_messages(site, by_type, generator)
    elif _repeated(site.field):
        _change_list(site, same, generator)
    else:
        setattr(chosen, site.field.name, _scalar(site.field, site.value, [it.value for it in same], generator, other))


def _scalar(field: FieldDescriptor, value: Any, others: list[Any], generator: random.Random, other: bytes = b"") -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return generator.choice([it.number for it in field.enum_type.values])
    if field.cpp_type in _INTEGERS:
        lowest, highest = _BITS[field.cpp_type]
        number = generator.choice(others) if others and generator.random() < 0.3 else integer(generator, value)
        return min(max(number, lowest), highest)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return generator.choice(FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    if field.type == FieldDescriptor.TYPE_BYTES:
        if generator.random() < 0.3:
            return generator.choice([it for it in others if isinstance(it, bytes)] or [b""])
        return mutate_bytes(value, generator, other)
    return text(generator, [it for it in others if isinstance(it, str)])


def _change_list(site: _Site, same: list[_Site], generator: random.Random) -> None:
    values = list(site.value)
    pool = [value for it in same for value in list(it.value)[:50]]
    at = generator.randrange(len(values) + 1)
    match generator.randrange(6):
        case 0 if values:
            at %= len(values)
            values[at] = _scalar(site.field, values[at], pool, generator)
        case 1 if values:
            del values[at % len(values)]
        case 2:
            values.insert(
                at, _scalar(site.field, values[0] if values else 0, pool, generator) if _numeric(site) or pool else ""
            )
        case 3:
            values = values[:at]
        case 4:
            generator.shuffle(values)
        case _:
            values = (values * generator.choice((2, 3, 30)))[:5000]
    del site.value[:]
    site.value.extend(values)


def _numeric(site: _Site) -> bool:
    return site.field.cpp_type != FieldDescriptor.CPPTYPE_STRING


def _change_messages(site: _Site, by_type: dict[type, list[Message]], generator: random.Random) -> None:
    name = site.field.message_type.name
    pool = [it for kind, found in by_type.items() if kind.__name__ == name for it in found]
    pool = [it for it in pool if it.ByteSize() < 100_000]
    if not _repeated(site.field):
        if not pool or generator.random() < 0.3:
            site.message.ClearField(site.field.name)
        else:
            copy = type(pool[0])()
            copy.CopyFrom(generator.choice(pool))
            getattr(site.message, site.field.name).CopyFrom(copy)
        return
    values = site.value
    match generator.randrange(5):
        case 0 if values:
            del values[generator.randrange(len(values))]
        case 1 if pool:
            values.add().CopyFrom(generator.choice(pool))
        case 2:
            copies = [type(it).FromString(it.SerializeToString()) for it in values]
            generator.shuffle(copies)
            del values[:]
            values.extend(copies)
        case 3 if values:
            first, second = generator.choice(values), generator.choice(values)
            copy = type(first).FromString(first.SerializeToString())
            first.CopyFrom(second)
            second.CopyFrom(copy)
        case _:
            values.add()


def _change_node(
    model: onnx.ModelProto, node: onnx.NodeProto, nodes: list[onnx.NodeProto], generator: random.Random
) -> None:
    names = [name for it in nodes for name in (*it.input, *it.output)] + [it.name for it in model.graph.initializer]
    match generator.randrange(8):
        case 0 | 1 if node.input:
            node.input[generator.randrange(len(node.input))] = (
                text(generator, names) if generator.random() < 0.2 else generator.choice(names)
            )
        case 2 if node.output:
            node.output[generator.randrange(len(node.output))] = generator.choice([*names, "", "new"])
        case 3:
            node.op_type = generator.choice([*_OPERATORS, *(it.name for it in model.functions)])
        case 4:
            node.domain = generator.choice(
                ["", "ai.onnx", "stn", "com.microsoft", *(it.domain for it in model.functions)]
            )
        case 5 if node.attribute:
            attribute = generator.choice(node.attribute)
            _change_attribute(attribute, generator)
        case 6 if node.attribute:
            del node.attribute[generator.randrange(len(node.attribute))]
        case 7:
            other = generator.choice(nodes)
            node.attribute.extend(other.attribute[:1])
        case _:
            node.input.append(generator.choice([*names, ""]))


def _change_attribute(attribute: onnx.AttributeProto, generator: random.Random) -> None:
    """Another value, most often of the same type."""
    if generator.random() < 0.15:
        value = generator.choice(_ATTRIBUTE_VALUES)
        attribute.CopyFrom(helper.make_attribute(attribute.name, value, attr_type=None if value != [] else 7))
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = integer(generator, attribute.i)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = generator.choice(FLOATS)
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = generator.choice(
            (b"", b"nearest", b"bilinear", b"linear", b"cubic", b"border", b"\xff", b"i->j", b"reflection")
        )
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        at = generator.randrange(len(attribute.ints))
        attribute.ints[at] = integer(generator, attribute.ints[at])
    elif attribute.type == onnx.AttributeProto.FLOATS and attribute.floats:
        attribute.floats[generator.randrange(len(attribute.floats))] = generator.choice(FLOATS)


def _change_whole(model: onnx.ModelProto, generator: random.Random) -> None:
    """What no single field says: an opset, a constant of sizes, a body in a body, a function that calls itself."""
    graph = model.graph
    match generator.randrange(8):
        case 0:
            for entry in model.opset_import:
                entry.version = generator.choice(
                    (0, 1, 7, 9, 11, 13, 15, 16, 18, 20, 21, 22, 25, 99, -1, 2**31, 2**63 - 1)
                )
        case 1 | 2:
            _change_numbers(model, generator)
        case 3 if model.functions:
            function = generator.choice(model.functions)
            function.node.add(op_type=function.name, domain=function.domain, input=function.input, output=["again"])
        case 4:
            parent = generator.choice(
                [it for it in _messages(model) if isinstance(it, onnx.NodeProto)] or [graph.node.add()]
            )
            body = onnx.GraphProto.FromString(graph.SerializeToString())
            parent.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.CopyFrom(body)
        case 5:
            for value in generator.choice((graph.input, graph.output)):
                for axis in value.type.tensor_type.shape.dim:
                    axis.dim_value = integer(generator, axis.dim_value)
        case 6:
            for value in (*graph.input, *graph.output, *graph.value_info):
                if generator.random() < 0.5:
                    value.type.tensor_type.elem_type = generator.randrange(27)
        case _:
            for tensor in graph.initializer:
                if generator.random() < 0.5:
                    tensor.data_location = TensorProto.EXTERNAL
                    del tensor.external_data[:]
                    for key in ("location", "offset", "length", "checksum"):
                        if generator.random() < 0.7:
                            value = "model.onnx.data" if key == "location" else str(integer(generator))
                            tensor.external_data.add(
                                key=key, value=text(generator) if generator.random() < 0.2 else value
                            )


def _change_numbers(model: onnx.ModelProto, generator: random.Random) -> None:
    """Other values in a small constant of integers: a shape, axes, a trip count."""
    tensors = [
        it
        for it in _messages(model)
        if isinstance(it, TensorProto) and it.data_type in (TensorProto.INT64, TensorProto.INT32)
    ]
    if not tensors:
        return
    tensor = generator.choice(tensors)
    try:
        values = onnx.numpy_helper.to_array(tensor).copy()
    except Exception:
        return
    if values.size:
        flat = values.reshape(-1)
        bound = 2**31 - 1 if tensor.data_type == TensorProto.INT32 else 2**63 - 1
        for _ in range(generator.choice((1, 1, 3))):
            at = generator.randrange(flat.size)
            flat[at] = min(max(integer(generator, int(flat[at])), -bound), bound)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
