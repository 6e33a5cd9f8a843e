"""Converts a file to an opset and IR version that runtimes support."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from stn_infer.fusion.samplers import find_samplers, infer_facts, reads_nearest
from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.traversal import given_inputs, opset_of, tensors_of
from stn_infer.repairs.opset import lower_opset
from stn_infer.repairs.result import NotRepairable, PassResult, Repair

#: The newest versions that onnxruntime 1.31 supports.
NEWEST_OPSET, NEWEST_IR = 26, 13
# The last opset with mode names that every TensorRT version reads correctly.
_BILINEAR_OPSET = 19


def lower_versions(model: onnx.ModelProto) -> PassResult:
    """Lowers an opset or IR version that onnxruntime does not support yet, if the file's meaning does not change.

    Raises:
        NotRepairable: an operator is newer or was revised, or a tensor has a newer type.
    """
    opset, ir_version = opset_of(model), model.ir_version
    notes: list[Repair] = []
    changed = model
    if opset > NEWEST_OPSET:
        changed = lower_opset(changed, NEWEST_OPSET)
        message = f"lowered opset {opset} to {NEWEST_OPSET}; all operators are the same in both"
        notes.append(Repair("opset-too-new", message))
    if ir_version > NEWEST_IR:
        newest = max((tensor.data_type for tensor in tensors_of(model)), default=0)
        if newest > TensorProto.INT2:
            raise NotRepairable(f"it has tensors of type {TensorProto.DataType.Name(newest)}, new in IR version 14")
        changed = copy_of(changed)
        changed.ir_version = NEWEST_IR
        notes.append(Repair("ir-too-new", f"lowered IR version {ir_version} to {NEWEST_IR}"))
    return PassResult(changed, bool(notes), tuple(notes))


def drop_default_inputs(model: onnx.ModelProto) -> PassResult:
    """Turns weights that are also inputs, which IR versions before 4 required, into constants."""
    given = given_inputs(model.graph)
    count = len(model.graph.input) - len(given)
    if not count or model.ir_version >= 4:
        return PassResult(model)
    changed = copy_of(model)
    replace_all(changed.graph.input, given)
    changed.ir_version = 4
    message = f"removed {count} weights from the inputs; IR version 4"
    return PassResult(changed, True, (Repair("weights-as-inputs", message),))


def older_mode_names(model: onnx.ModelProto) -> PassResult:
    """Lowers a file with samplers that TensorRT up to 11.1 reads as nearest to opset 19, which spells ``bilinear``.

    Raises:
        NotRepairable: an operator is newer, or has another meaning in opset 19.
    """
    opset = opset_of(model)
    facts = infer_facts(model) if opset >= 20 else {}
    if opset < 20 or not any(reads_nearest(model, sampler, facts) for sampler in find_samplers(model)):
        return PassResult(model)
    message = f"lowered opset {opset} to {_BILINEAR_OPSET}, which spells the mode 'bilinear'"
    return PassResult(lower_opset(model, _BILINEAR_OPSET), True, (Repair("opset-20-trap", message),))
