"""Replaces custom samplers by the standard GridSample, and gives image and grid the same type."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import onnx
from onnx import TensorProto, helper

from stn_infer.fusion.samplers import (
    UNKNOWN,
    Facts,
    custom_sampler,
    infer_facts,
    sampler_spec,
    small_constants,
    unknown_samplers,
)
from stn_infer.proto.edit import NewNodes, copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.retype import HALF_TYPES
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, every_node, is_standard, opset_of, subgraphs
from stn_infer.repairs.affine_grids import replace_aten_grids
from stn_infer.repairs.opset import raise_opset
from stn_infer.repairs.result import PassResult, Repair
from stn_infer.samplers import SamplerSpec
from stn_infer.spellings import Custom, Spelling

_FLOATS = HALF_TYPES | {TensorProto.FLOAT}


def standard_samplers(model: onnx.ModelProto) -> PassResult:
    """Replaces custom samplers by GridSample, and raises the file's opset to at least 16.

    A sampler that cannot be replaced stays, with a note.

    Raises:
        NotRepairable: the opset can't be raised.
    """
    opset = opset_of(model)
    changed = copy_of(model)
    replaced = _Replaced(model, opset)
    replaced.in_nodes(changed.graph.node, small_constants(model), Names(changed.graph))
    for function in changed.functions:  # constants of the main graph are not visible there
        replaced.in_nodes(function.node, {}, Names(function))
    grids = replace_aten_grids(changed)
    notes = [Repair("custom-sampler", f"{_title(node)}: {why}", done=False) for node, why in unknown_samplers(changed)]
    notes += replaced.notes
    if not replaced.count and not grids:
        return PassResult(model, notes=tuple(notes))
    if replaced.count:
        notes.append(Repair("custom-sampler", f"replaced {replaced.count} custom samplers by the standard GridSample"))
    if grids:
        notes.append(Repair("custom-sampler", f"replaced {grids} ATen affine_grid_generator by a matrix product"))
    if opset < 16:
        changed = raise_opset(changed, 16)
        notes.append(Repair("custom-sampler", f"raised opset {opset} to 16, the first with GridSample"))
    used = {*STANDARD_DOMAINS, *(node.domain for node in every_node(changed))}
    replace_all(changed.opset_import, [entry for entry in changed.opset_import if entry.domain in used])
    return PassResult(changed, True, tuple(notes))


def _title(node: onnx.NodeProto) -> str:
    operator = attributes_of(node).get("operator", "") if node.op_type == "ATen" else ""
    kind = f"{node.domain or 'default domain'}::{node.op_type}" + (f" {operator}" if operator else "")
    return f"{node.name or node.output[0]!r} ({kind})"


class _Replaced:
    """Replaces custom samplers in lists of nodes.

    Attributes:
        count: the number of samplers replaced.
        notes: those that stay although their settings are known, and what some kernels compute instead.
    """

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self._model, self._opset = model, opset
        self.count = 0
        self.notes: list[Repair] = []

    @cached_property
    def _facts(self) -> Facts:
        return infer_facts(self._model)

    def in_nodes(self, nodes: Any, constants: Mapping[str, int], names: Names) -> None:
        """Replaces samplers in a graph's or a function's nodes, in place, and in the subgraphs of these."""
        kept: list[onnx.NodeProto] = []
        for node in nodes:
            for _, graph in subgraphs(node):
                self.in_nodes(graph.node, constants, names)
            custom = custom_sampler(node, constants)
            old = self._opset < 16 and is_standard(node, "GridSample")
            if old:
                custom = Custom(sampler_spec(node, constants), Spelling())
            if custom is not None and custom.spec is not None:
                kept += self._standard(node, custom, custom.spec, names)
            kept.append(node)
        if len(kept) > len(nodes):  # the samplers themselves are changed in place
            replace_all(nodes, kept)

    def _standard(
        self, node: onnx.NodeProto, custom: Custom, spec: SamplerSpec, names: Names
    ) -> Sequence[onnx.NodeProto]:
        """Makes ``node`` a GridSample, in place; returns new nodes to be put before it."""
        problem = ""
        if any(attribute.ref_attr_name for attribute in node.attribute):
            problem = "a function takes its settings as attributes"
        rank = self._rank(node) if custom.spelling.axes_first else 0
        if custom.spelling.axes_first and not rank:
            problem = "the file does not tell whether it samples images or volumes"
        if problem:
            self.notes.append(Repair("custom-sampler", f"{_title(node)}: {problem}", done=False))
            return ()
        if custom.deviation:
            self.notes.append(
                Repair("custom-sampler", f"{_title(node)}: {custom.deviation}; the result has what the file says")
            )
        new = NewNodes(names, node.output[0])
        grid = node.input[1]
        if custom.spelling.axes_first:
            grid = new.node("Transpose", [grid], "grid", perm=[0, *range(2, rank + 2), 1])
        if custom.spelling.unit != 1:
            kind = self._facts.get(node.input[1], UNKNOWN).elem_type or TensorProto.FLOAT
            unit = helper.make_tensor("unit", kind, [], [custom.spelling.unit])
            grid = new.node("Div", [grid, new.node("Constant", [], "unit", value=unit)], "coordinates")
        self.count += 1
        inputs = [node.input[0], grid]
        node.op_type, node.domain, node.overload = "GridSample", "", ""
        del node.attribute[:], node.input[:]
        node.input.extend(inputs)
        attributes = spec.attributes(self._opset)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return new.nodes

    def _rank(self, node: onnx.NodeProto) -> int:
        """2 for images, 3 for volumes, by the operator's name or the tensors' ranks; 0 if the file does not tell."""
        named = re.search(r"[23](?=D)", node.op_type)
        if named:
            return int(named[0])
        ranks = {len(dims) for name in node.input[:2] if (dims := self._facts.get(name, UNKNOWN).dims) is not None}
        return ranks.pop() - 2 if ranks in ({4}, {5}) else 0


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
