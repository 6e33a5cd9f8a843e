"""Inlines the model-local functions that contain a sampler or compute a sampling grid."""

from __future__ import annotations

import onnx

from stn_infer.fusion.dataflow import GraphView
from stn_infer.fusion.op import DOMAIN
from stn_infer.fusion.proof import LINEAR_OPS
from stn_infer.fusion.scopes import scopes
from stn_infer.proto.edit import copy_of, inline_functions
from stn_infer.proto.traversal import is_standard, nested_nodes

_Key = tuple[str, str]
_MAX_ROUNDS = 16


def with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of ``model`` in which all samplers, and the nodes that compute their grids, are in a graph.

    Functions of domain ``stn`` are not inlined: their samplers are already fused.
    """
    copy = copy_of(model)
    for _ in range(_MAX_ROUNDS):
        before = _own_functions(copy)
        chosen = before and (_with_samplers(copy) or _before_grids(copy))
        if not chosen:
            break
        copy = inline_functions(copy, only=sorted(chosen))
        if _own_functions(copy) == before:
            break  # the inliner does not inline functions that import another opset
    return copy


def _own_functions(model: onnx.ModelProto) -> set[_Key]:
    return {(function.domain, function.name) for function in model.functions if function.domain != DOMAIN}


def sampling_functions(model: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The model-local functions that still contain a sampler."""
    return [
        function
        for function in model.functions
        if function.domain != DOMAIN and any(is_standard(node, "GridSample") for node in nested_nodes(function.node))
    ]


def _with_samplers(model: onnx.ModelProto) -> set[_Key]:
    """Functions that contain a sampler, directly or through a call."""
    found = {(function.domain, function.name) for function in sampling_functions(model)}
    while True:
        more = {
            (function.domain, function.name)
            for function in model.functions
            if function.domain != DOMAIN
            and any((node.domain, node.op_type) in found for node in nested_nodes(function.node))
        }
        if more <= found:
            return found
        found |= more


def _before_grids(model: onnx.ModelProto) -> set[_Key]:
    """Functions at whose calls the backward traversal from a grid ends."""
    called = set()
    for scope in scopes(model):
        view = GraphView(scope)
        for sampler in scope.samplers:
            grid = sampler.input[1]
            region = view.region(grid, LINEAR_OPS)
            for name in (grid, *(name for index in region for name in view.varying_inputs(view.nodes[index]))):
                node = view.node_of(name)
                if node is not None:
                    called.add((node.domain, node.op_type))
    return called & _own_functions(model)
