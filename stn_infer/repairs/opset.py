"""Converts a file to another opset if every operator in it has the same meaning there."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, defs, version_converter

from stn_infer.errors import one_line
from stn_infer.fusion.op import DOMAIN, OP_TYPES, attach_functions, is_op
from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.traversal import STANDARD_DOMAINS, every_node, is_standard, opset_of
from stn_infer.repairs.result import NotRepairable
from stn_infer.samplers import spell_mode

# Operators with the same signature but another meaning: GroupNormalization's scale is per group up to opset 20, per
# channel from 21 on.
_REDEFINED = {"GroupNormalization": 21}
# Operators whose new attributes default to the old behavior, or concern types that the older version lacks.
_EXTENDED = ("QuantizeLinear", "DequantizeLinear", "Cast", "CastLike")
_PENDING = "stn.pending"
_OWN = {(DOMAIN, name) for name in OP_TYPES}


def lower_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Returns a copy of ``model`` at an older opset.

    Every operator must be the same at both opsets: not revised between them, or revised only in its supported types
    (signatures are compared here, and onnxruntime checks the types afterwards). GridSample's mode is respelled.

    Raises:
        NotRepairable: an operator is newer or was revised, or a function takes a sampler's mode as an attribute.
    """
    present = opset_of(model)
    lowered = copy_of(model)
    # This package's functions are written again at the new opset.
    others = [function for function in model.functions if (function.domain, function.name) not in _OWN]
    replace_all(lowered.functions, others)
    for node in every_node(lowered):
        if is_standard(node):
            _check_same(node, present, version)
    for node in every_node(lowered):
        if is_standard(node, "GridSample") or is_op(node):
            _respell(node, version)
    for entry in (entry for holder in (lowered, *lowered.functions) for entry in holder.opset_import):
        if entry.domain in STANDARD_DOMAINS:
            entry.version = min(entry.version, version)
    attach_functions(lowered)
    return lowered


def raise_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Returns a copy of ``model`` at a newer opset: relabeled if no operator was revised, else by onnx's converter.

    The file may contain a GridSample of the default domain although its old opset does not define one; its mode is
    respelled.

    Raises:
        NotRepairable: the converter fails, or the file has functions, which the converter drops.
    """
    if model.functions:
        raise NotRepairable("the file has model-local functions, which onnx's version converter drops")
    raised, present = copy_of(model), opset_of(model)
    for node in every_node(raised):
        if is_standard(node, "GridSample"):
            node.domain = _PENDING
    used = {node.op_type for node in every_node(raised) if is_standard(node)}
    if any(_since(name, present) != _since(name, version) for name in used):
        raised = _convert(raised, model, version)
    for node in every_node(raised):
        if node.domain == _PENDING:
            node.domain = ""
            _respell(node, version)
    for entry in raised.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = version
    replace_all(raised.opset_import, [entry for entry in raised.opset_import if entry.domain != _PENDING])
    raised.ir_version = max(raised.ir_version, 8)
    return raised


def _convert(pending: onnx.ModelProto, model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    pending.opset_import.add(domain=_PENDING, version=1)
    try:
        converted: onnx.ModelProto = version_converter.convert_version(pending, version)
    except Exception as error:  # a C++ exception of no particular class
        raise NotRepairable(f"onnx's version converter fails ({one_line(error, 160)})") from None
    if not converted.graph.node:
        raise NotRepairable("onnx's version converter returns an empty graph")
    # The converter does not support dynamic shapes and drops what it does not support.
    replace_all(converted.graph.input, model.graph.input)
    replace_all(converted.graph.output, model.graph.output)
    replace_all(converted.metadata_props, model.metadata_props)
    del converted.graph.value_info[:]
    converted.ir_version = model.ir_version
    return converted


def _check_same(node: onnx.NodeProto, present: int, version: int) -> None:
    name = node.op_type
    now, then = _schema(name, present), _schema(name, version)
    if now is None:
        raise NotRepairable(f"{name} is unknown at opset {present}")
    if then is None:
        raise NotRepairable(f"{name} (node {node.name or node.output[0]!r}) does not exist at opset {version}")
    if now.since_version == then.since_version or name == "GridSample":
        return
    same = _signature(now) == _signature(then) or _uses_only(node, now, then)
    redefined = _REDEFINED.get(name, 0)
    if not same or then.since_version < redefined <= now.since_version:
        raise NotRepairable(f"{name} (node {node.name or node.output[0]!r}) was revised at opset {now.since_version}")


def _uses_only(node: onnx.NodeProto, now: Any, then: Any) -> bool:
    """Whether ``now`` differs from ``then`` only by attributes that the node does not set."""
    before, after = _signature(then), _signature(now)
    given = {attribute.name for attribute in node.attribute}
    extra = after[2].keys() - before[2].keys()
    common = {key: value for key, value in after[2].items() if key not in extra}
    return before[:2] == after[:2] and common == before[2] and not extra & given and node.op_type in _EXTENDED


def _signature(schema: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Inputs, outputs and attributes, without the allowed types."""
    return (
        [(value.name, str(value.option)) for value in schema.inputs],
        [(value.name, str(value.option)) for value in schema.outputs],
        {
            name: (str(attribute.type), attribute.default_value.SerializeToString(), attribute.required)
            for name, attribute in schema.attributes.items()
        },
    )


def _schema(name: str, version: int) -> Any:
    try:
        return defs.get_schema(name, version, "")
    except defs.SchemaError:
        return None


def _since(name: str, version: int) -> int:
    schema = _schema(name, version)
    return -1 if schema is None else int(schema.since_version)


def _respell(node: onnx.NodeProto, version: int) -> None:
    for attribute in node.attribute:
        if attribute.name != "mode":
            continue
        if attribute.ref_attr_name:
            raise NotRepairable(f"a function takes the mode of GridSample {node.output[0]!r} as an attribute")
        if attribute.type == AttributeProto.STRING:
            attribute.s = spell_mode(attribute.s.decode(errors="replace"), version).encode()
