"""Replaces custom samplers by the standard GridSample, and gives image and grid the same type."""

from __future__ import annotations

from itertools import chain

import onnx
from onnx import TensorProto, helper

from stn_infer.fusion.samplers import CUSTOM, UNKNOWN, infer_facts, sampler_spec, small_constants
from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.retype import HALF_TYPES
from stn_infer.proto.traversal import STANDARD_DOMAINS, every_node, is_standard, nested_nodes, opset_of
from stn_infer.repairs.opset import raise_opset
from stn_infer.repairs.result import NotRepairable, PassResult, Repair

_FLOATS = HALF_TYPES | {TensorProto.FLOAT}


def standard_samplers(model: onnx.ModelProto) -> PassResult:
    """Replaces custom samplers by GridSample, and raises the file's opset to at least 16.

    Raises:
        NotRepairable: an mmdeploy sampler is bicubic (its kernels compute bilinear), a function takes a sampler's
            settings as attributes, or the opset can't be raised.
    """
    changed = copy_of(model)
    opset = opset_of(model)
    constants = small_constants(model)
    graphs = [(changed.graph.node, constants)]
    graphs += [(function.node, {}) for function in changed.functions]  # constants of the main graph are not visible
    count = 0
    for node, known in chain.from_iterable(((node, known) for node in nested_nodes(nodes)) for nodes, known in graphs):
        spec = sampler_spec(node, known)
        old = is_standard(node) and opset < 16
        if spec is None or not (old or (node.domain, node.op_type) in CUSTOM):
            continue
        if any(attribute.ref_attr_name for attribute in node.attribute):
            raise NotRepairable(f"a function takes the settings of {node.name or node.output[0]!r} as attributes")
        if node.domain == "mmdeploy" and spec.mode == "bicubic":
            raise NotRepairable(f"{node.name!r} has mode bicubic, but mmdeploy's kernels compute bilinear")
        count += 1
        node.op_type, node.domain = "GridSample", ""
        del node.attribute[:], node.input[2:]
        node.attribute.extend(helper.make_attribute(key, value) for key, value in spec.attributes(opset).items())
    if not count:
        return PassResult(model)
    notes = [Repair("custom-sampler", f"replaced {count} custom samplers by the standard GridSample")]
    if opset < 16:
        changed = raise_opset(changed, 16)
        notes.append(Repair("custom-sampler", f"raised opset {opset} to 16, the first with GridSample"))
    used = {*STANDARD_DOMAINS, *(node.domain for node in every_node(changed))}
    replace_all(changed.opset_import, [entry for entry in changed.opset_import if entry.domain in used])
    return PassResult(changed, True, tuple(notes))


def one_type(model: onnx.ModelProto) -> PassResult:
    """Casts a sampler's image and grid to float32 if their types differ; the output keeps its type."""
    if not any(is_standard(node, "GridSample") for node in model.graph.node):
        return PassResult(model)
    facts = infer_facts(model)
    changed = copy_of(model)
    names = Names(changed.graph)
    nodes: list[onnx.NodeProto] = []
    notes: list[Repair] = []
    for node in changed.graph.node:
        image, grid = (facts.get(name, UNKNOWN).elem_type for name in (*node.input[:2], "", "")[:2])
        plain = is_standard(node, "GridSample") and len(node.input) > 1
        if not plain or image == grid or image not in _FLOATS or grid not in _FLOATS:
            nodes.append(node)
            continue
        after = []
        for index, kind in enumerate((image, grid)):
            if kind != TensorProto.FLOAT:
                name = names.fresh(f"{node.input[index]}_float")
                nodes.append(helper.make_node("Cast", [node.input[index]], [name], to=TensorProto.FLOAT))
                node.input[index] = name
        if image != TensorProto.FLOAT:
            output, name = node.output[0], names.fresh(f"{node.output[0]}_float")
            node.output[0] = name
            after.append(helper.make_node("Cast", [name], [output], to=image))
        nodes += [node, *after]
        notes.append(Repair("mixed-types", f"cast image and grid of {node.name or node.output[0]!r} to float32"))
    if not notes:
        return PassResult(model)
    replace_all(changed.graph.node, nodes)
    del changed.graph.value_info[:]
    return PassResult(changed, True, tuple(notes))
