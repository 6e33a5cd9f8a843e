"""Opset and IR version as runtimes read them."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from stn_infer.fusion.samplers import find_samplers, infer_facts, reads_nearest
from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.traversal import given_inputs, opset_of, tensors_of
from stn_infer.repairs.opset import lower_opset
from stn_infer.repairs.result import NotRepairable, PassResult, Repair

#: The newest that onnxruntime 1.31 reads.
NEWEST_OPSET, NEWEST_IR = 26, 13
# The last that spells modes as every TensorRT reads them.
_BILINEAR_OPSET = 19


def lower_versions(model: onnx.ModelProto) -> PassResult[Repair]:
    """An opset or IR version that onnxruntime doesn't read yet is lowered where the file means the same there.

    Raises:
        NotRepairable: an operator is newer or was revised, or there are tensors of a type that is newer.
    """
    opset, ir_version = opset_of(model), model.ir_version
    notes: list[Repair] = []
    changed = model
    if opset > NEWEST_OPSET:
        changed = lower_opset(changed, NEWEST_OPSET)
        message = f"opset {opset} lowered to {NEWEST_OPSET}: every operator is the same there"
        notes.append(Repair("opset-too-new", message))
    if ir_version > NEWEST_IR:
        newest = max((tensor.data_type for tensor in tensors_of(model)), default=0)
        if newest > TensorProto.INT2:
            raise NotRepairable(f"it holds tensors of type {TensorProto.DataType.Name(newest)}, new in IR version 14")
        changed = copy_of(changed)
        changed.ir_version = NEWEST_IR
        notes.append(Repair("ir-too-new", f"IR version {ir_version} lowered to {NEWEST_IR}"))
    return PassResult(changed, bool(notes), tuple(notes))


def drop_default_inputs(model: onnx.ModelProto) -> PassResult[Repair]:
    """Weights that are listed as inputs too, as IR versions before 4 had to, become constants."""
    given = given_inputs(model.graph)
    count = len(model.graph.input) - len(given)
    if not count or model.ir_version >= 4:
        return PassResult(model)
    changed = copy_of(model)
    replace_all(changed.graph.input, given)
    changed.ir_version = 4
    message = f"{count} weights are no longer inputs; IR version 4"
    return PassResult(changed, True, (Repair("weights-as-inputs", message),))


def older_mode_names(model: onnx.ModelProto) -> PassResult[Repair]:
    """A file whose samplers TensorRT up to 11.1 takes for nearest is brought to opset 19, where they are ``bilinear``.

    Raises:
        NotRepairable: an operator in it is newer, or means something else there.
    """
    opset = opset_of(model)
    facts = infer_facts(model) if opset >= 20 else {}
    if opset < 20 or not any(reads_nearest(model, sampler, facts) for sampler in find_samplers(model)):
        return PassResult(model)
    message = f"opset {opset} lowered to {_BILINEAR_OPSET}, which spells mode 'bilinear'"
    return PassResult(lower_opset(model, _BILINEAR_OPSET), True, (Repair("opset-20-trap", message),))
