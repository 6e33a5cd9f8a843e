"""What is known of runtimes that are not installed: enough to refuse a file, hardly ever to accept one.

Sources: TensorRT's release notes and support matrices, onnx-tensorrt's ``docs/Changelog.md`` (GridSample 8.5, functions
9.0) and ``docs/operators.md`` (opsets), bug reports (the mode names of opset 20; names of tensors in functions before
10.8); what TensorRT-RTX 1.7.1 and OpenVINO 2026.4 did with files of ours. Of every other operator nothing is claimed.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto

from stn_infer.errors import ModelError
from stn_infer.fusion.samplers import UNKNOWN, TensorFacts, spec_of
from stn_infer.proto.edit import inline_functions
from stn_infer.proto.traversal import (
    STANDARD_DOMAINS,
    attributes_of,
    every_node,
    is_standard,
    nested_nodes,
    opset_of,
    subgraphs,
)
from stn_infer.repairs.large_weights import is_stand_in
from stn_infer.targets.judgment import Judgment, Reason
from stn_infer.targets.target import Target

#: The newest opset that onnx-tensorrt's documentation lists, by the release that it was first listed for.
_OPSETS = {(8, 5): 17, (10, 0): 20, (10, 15): 24}
_FUNCTIONS_FROM, _SOUND_FUNCTIONS_FROM = (9, 0), (10, 8)
_TRAP_UP_TO = (11, 1)
_VOLUMES_FROM = (11, 2)  # 11.2.1, to be exact; no known version lies between
#: What the inliner appends to names of a function's nodes.
_COPY = re.compile(r"__\d+$")
_GRIDS: dict[int, str] = {TensorProto.FLOAT: "float", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


@dataclass(frozen=True)
class _Placed:
    """A node with what is known of its tensors, and where it is."""

    node: onnx.NodeProto
    within: str
    facts: Mapping[str, TensorFacts]

    @property
    def name(self) -> str:
        return self.node.name or next(iter(self.node.output), "")

    def refused(self, text: str) -> Reason:
        return Reason(text, self.name, self.within)


def judge_by_facts(model: onnx.ModelProto, target: Target) -> Judgment:
    """Judge a model by what is known of a target.

    Args:
        model: a checked model, with or without its large weights.
        target: the runtime, and for TensorRT its version.
    """
    why = "whose installed parser could not judge it" if target.installed else "which is not installed here"
    judge = f"what is known of {target}, {why}"
    reasons: list[Reason] = []
    unjudged: Counter[str] = Counter()
    try:
        flat = inline_functions(model) if model.functions else model
    except ModelError as error:
        return Judgment(judge, note=str(error))
    for name, place in _calls(model):
        if why := _function_problem(target):
            reasons.append(place.refused(f"{name} is a model-local function: {why}"))
        elif target.runtime == "tensorrt" and target.release < _SOUND_FUNCTIONS_FROM:
            unjudged[f"{name} (a function)"] += 1
    opset = opset_of(flat)
    beyond = target.runtime == "tensorrt" and opset > _newest_opset(target.release)
    for place in _placed(flat, {node.name for node in every_node(model)}):
        if not is_standard(place.node, "GridSample", "AffineGrid"):
            unjudged[_operator(place.node)] += not is_stand_in(place.node)
            continue
        problem = _sampler_problem(place, target, opset)
        if problem:
            reasons.append(place.refused(problem))
        elif problem is None:
            unjudged[_operator(place.node)] += 1
    counted = tuple(f"{name} ({count} node{'s' if count > 1 else ''})" for name, count in (+unjudged).most_common())
    newest = _newest_opset(target.release)
    note = f"opset {opset} is newer than {newest}, the newest documented for this version" if beyond else ""
    return Judgment(judge, tuple(reasons), counted, note)


def _newest_opset(release: tuple[int, int]) -> int:
    return max((opset for first, opset in _OPSETS.items() if first <= release), default=0)


def _function_problem(target: Target) -> str:
    """Why a target refuses model-local functions; "" if it does not."""
    if target.runtime == "openvino":
        return "OpenVINO knows none"
    if target.runtime == "tensorrt" and target.release < _FUNCTIONS_FROM:
        return "TensorRT knows them from 9.0 on"
    return ""


def _sampler_problem(place: _Placed, target: Target, opset: int) -> str | None:
    """Why a target refuses GridSample or AffineGrid; "" if it takes the node, None if that is not known."""
    node = place.node
    if target.runtime not in ("tensorrt", "tensorrt-rtx"):
        return None
    if node.op_type == "AffineGrid":
        return "AffineGrid has no importer in any TensorRT version"
    if len(node.input) < 2:
        return None
    image, grid = (place.facts.get(name, UNKNOWN) for name in node.input[:2])
    if image.elem_type and grid.elem_type and image.elem_type != grid.elem_type:
        return f"image and grid must be of one type, not {image.type_name} and {grid.type_name}"
    if target.runtime == "tensorrt-rtx" or opset < 16:
        return None
    volume = len(image.dims or grid.dims or ()) == 5
    if volume and spec_of(node).mode == "bicubic":
        return "bicubic sampling of volumes is not implemented"
    if volume and target.release < _VOLUMES_FROM:
        return "GridSample of volumes (5-D) is native from 11.2.1 on"
    if image.elem_type == TensorProto.BFLOAT16 and target.release < _VOLUMES_FROM:
        return "GridSample of bfloat16 is native from 11.2.1 on"
    if image.elem_type in (TensorProto.INT8, TensorProto.UINT8):
        return "GridSample of 8-bit integers is not implemented"
    known = image.elem_type in _GRIDS and grid.elem_type and len(image.dims or ()) in (4, 5)
    spelling = str(attributes_of(node).get("mode", ""))
    if opset >= 20 and not volume and spelling != "nearest":
        trapped = spelling in ("linear", "cubic") and target.release <= _TRAP_UP_TO
        return f"mode {spelling!r} is read as NEAREST: the engine builds, and its values are wrong" if trapped else None
    return "" if known else None


def _operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"


def _calls(model: onnx.ModelProto) -> Iterator[tuple[str, _Placed]]:
    """The calls of functions in the main graph and its subgraphs."""
    functions = {(function.domain, function.name) for function in model.functions}
    for node in nested_nodes(model.graph.node):
        if (node.domain, node.op_type) in functions:
            yield _operator(node), _Placed(node, "", {})


def _placed(model: onnx.ModelProto, names: Collection[str]) -> Iterator[_Placed]:
    """All nodes of a model without functions, with types and shapes of the tensors that they see.

    Args:
        model: the model.
        names: of the nodes of the file, in which functions were not inlined yet.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a C++ exception of no particular class; the file's own types and shapes remain
        inferred = model
    for place in _in_graph(inferred.graph, "", ChainMap()):
        original = _COPY.sub("", place.node.name)
        if place.node.name not in names and original in names:
            place.node.name = original
            yield replace(place, within="a function")
        else:
            yield place


def _in_graph(graph: onnx.GraphProto, within: str, outer: ChainMap[str, TensorFacts]) -> Iterator[_Placed]:
    own = {tensor.name: TensorFacts(tensor.data_type, tuple(map(int, tensor.dims))) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        own[value.name] = TensorFacts.of(value)
    facts = outer.new_child(own)
    for node in graph.node:
        yield _Placed(node, within, facts)
        for _, inner in subgraphs(node):
            yield from _in_graph(inner, f"{node.op_type} {node.name!r}", facts)
