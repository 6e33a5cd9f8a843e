"""Inlines the model-local functions that contain a sampler or compute a sampling grid."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from stn_infer.fusion.dataflow import GraphView
from stn_infer.fusion.op import DOMAIN
from stn_infer.fusion.proof import LINEAR_OPS
from stn_infer.fusion.scopes import scopes
from stn_infer.proto.edit import copy_of, copy_without_initializers, replace_all
from stn_infer.proto.traversal import is_standard, nested_nodes

_Key = tuple[str, str]
_MAX_ROUNDS = 16
_LARGE = 2**12


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
        copy = _inlined(copy, sorted(chosen))
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


def _inlined(model: onnx.ModelProto, chosen: list[_Key]) -> onnx.ModelProto:
    """Returns a copy with calls inlined. Large tensors are left out meanwhile: the inliner copies models as bytes."""
    from onnx import inliner

    large = {tensor.name: tensor for tensor in model.graph.initializer if tensor.ByteSize() > _LARGE}
    light = copy_without_initializers(model)
    light.graph.initializer.extend(_without_data(t) if t.name in large else t for t in model.graph.initializer)
    inlined = inliner.inline_selected_functions(light, chosen)
    replace_all(inlined.graph.initializer, (large.get(t.name, t) for t in inlined.graph.initializer))
    return inlined


def _without_data(tensor: TensorProto) -> TensorProto:
    """Returns a tensor's name, type and dimensions without its data."""
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
