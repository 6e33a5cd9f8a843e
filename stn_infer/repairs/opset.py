"""Bring a file to another opset where every operator in it means the same there."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, defs, version_converter

from stn_infer.errors import one_line
from stn_infer.fusion.op import DOMAIN, OP_TYPES, attach_functions, is_spatial
from stn_infer.proto.traversal import every_node, opset_of
from stn_infer.samplers import spell_mode

_DEFAULT = ("", "ai.onnx")
# Same signature, another meaning: GroupNormalization's scale is per group up to 20, per channel from 21 on.
_REDEFINED = {"GroupNormalization": 21}
# Their new attributes default to what they did without them, or concern types that the older version lacks.
_EXTENDED = ("QuantizeLinear", "DequantizeLinear", "Cast", "CastLike")
_PENDING = "stn.pending"


class NotRepairable(Exception):
    """Why a repair can't be made: one clause."""


def lower_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy of ``model`` at an older opset.

    Every operator must be the same at both: not revised between them, or revised only in the types that it takes
    (signatures are compared, and onnxruntime checks the types afterwards). GridSample is respelled.

    Raises:
        NotRepairable: an operator is newer, or was revised, or a function takes a sampler's mode as an attribute.
    """
    present = opset_of(model)
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    _drop_own_functions(lowered)
    for node in every_node(lowered):
        if node.domain in _DEFAULT:
            _check_same(node, present, version)
    for node in every_node(lowered):
        if (node.op_type == "GridSample" and node.domain in _DEFAULT) or is_spatial(node):
            _respell(node, version)
    _set_version(lowered.opset_import, version)
    for function in lowered.functions:
        _set_version(function.opset_import, min(version, _version(function.opset_import, version)))
    attach_functions(lowered)
    return lowered


def raise_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy of ``model`` at a newer opset: by name where nothing was revised, else by onnx's own converter.

    A GridSample of the default domain may stand in the file although its old opset has none.

    Raises:
        NotRepairable: the converter can't, or the file has functions, which the converter drops.
    """
    if model.functions:
        raise NotRepairable("the file has model-local functions, which onnx's version converter drops")
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    pending = [node for node in every_node(raised) if node.op_type == "GridSample" and node.domain in _DEFAULT]
    for node in pending:
        node.domain = _PENDING
    if any(
        _since(node.op_type, opset_of(model)) != _since(node.op_type, version)
        for node in every_node(raised)
        if node.domain in _DEFAULT
    ):
        raised = _convert(raised, model, version)
    for node in every_node(raised):
        if node.domain == _PENDING:
            node.domain = ""
    _set_version(raised.opset_import, version)
    for entry in [entry for entry in raised.opset_import if entry.domain == _PENDING]:
        raised.opset_import.remove(entry)
    raised.ir_version = max(raised.ir_version, 8)
    return raised


def _convert(pending: onnx.ModelProto, model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    pending.opset_import.add(domain=_PENDING, version=1)
    try:
        converted: onnx.ModelProto = version_converter.convert_version(pending, version)
    except Exception as error:  # a C++ exception of no particular class
        raise NotRepairable(f"onnx's version converter fails ({one_line(error, 160)})") from None
    if not converted.graph.node:
        raise NotRepairable("onnx's version converter gives back nothing")
    # it knows no open shape and forgets what it does not know
    for field in ("input", "output"):
        del getattr(converted.graph, field)[:]
        getattr(converted.graph, field).extend(getattr(model.graph, field))
    del converted.graph.value_info[:]
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
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
    """Whether all that ``now`` has more than ``then`` is attributes that the node leaves out."""
    before, after = _signature(then), _signature(now)
    given = {attribute.name for attribute in node.attribute}
    extra = after[2].keys() - before[2].keys()
    common = {key: value for key, value in after[2].items() if key not in extra}
    return before[:2] == after[:2] and common == before[2] and not extra & given and node.op_type in _EXTENDED


def _signature(schema: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Inputs, outputs and attributes, without the types that are allowed."""
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


def _drop_own_functions(model: onnx.ModelProto) -> None:
    kept = []
    for function in model.functions:
        if function.domain != DOMAIN or function.name not in OP_TYPES:
            copy = onnx.FunctionProto()
            copy.CopyFrom(function)
            kept.append(copy)
    del model.functions[:]
    model.functions.extend(kept)


def _version(imports: Any, default: int) -> int:
    return next((int(entry.version) for entry in imports if entry.domain in _DEFAULT), default)


def _set_version(imports: Any, version: int) -> None:
    for entry in imports:
        if entry.domain in _DEFAULT:
            entry.version = version
