"""Put a model's own functions in place of their calls, where a sampler or what makes its grid is in one."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from stn_infer.fusion.dataflow import GraphView
from stn_infer.fusion.op import DOMAIN
from stn_infer.fusion.proof import LINEAR_OPS
from stn_infer.fusion.scopes import is_sampler, scopes
from stn_infer.proto.traversal import all_nodes

_Key = tuple[str, str]
_MOST_ROUNDS = 16
_LARGE = 2**12


def with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which every sampler, and what a grid is computed with, is in a graph.

    Functions of domain ``stn`` stay: their samplers are fused already.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if all(function.domain == DOMAIN for function in model.functions):
        return copy
    for _ in range(_MOST_ROUNDS):
        chosen = _with_samplers(copy) or _before_grids(copy)
        if not chosen:
            break
        before = {(function.domain, function.name) for function in copy.functions}
        _inline(copy, chosen)
        if {(function.domain, function.name) for function in copy.functions} == before:
            break  # the inliner leaves what imports another opset
    return copy


def sampling_functions(model: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The model's own functions that still hold a sampler."""
    return [f for f in model.functions if f.domain != DOMAIN and any(map(is_sampler, all_nodes(f.node)))]


def _with_samplers(model: onnx.ModelProto) -> list[_Key]:
    """Functions that hold a sampler, or call one that does."""
    found = {(function.domain, function.name) for function in sampling_functions(model)}
    while True:
        more = {
            (function.domain, function.name)
            for function in model.functions
            if function.domain != DOMAIN
            and any((node.domain, node.op_type) in found for node in all_nodes(function.node))
        }
        if more <= found:
            return sorted(found)
        found |= more


def _before_grids(model: onnx.ModelProto) -> list[_Key]:
    """Functions at whose calls a walk back from a grid ends."""
    functions = {(function.domain, function.name) for function in model.functions if function.domain != DOMAIN}
    found = set()
    for scope in scopes(model):
        view = GraphView(scope)
        for sampler in scope.samplers:
            grid = sampler.input[1]
            region = view.region(grid, LINEAR_OPS)
            for name in (grid, *(name for index in region for name in view.varying_inputs(view.nodes[index]))):
                index = view.producer.get(name)
                if index is not None and (key := (view.nodes[index].domain, view.nodes[index].op_type)) in functions:
                    found.add(key)
    return sorted(found)


def _inline(model: onnx.ModelProto, chosen: list[_Key]) -> None:
    """Inline, in place; the inliner passes models as bytes, so large tensors stay behind."""
    from onnx import inliner

    aside = {tensor.name: tensor for tensor in model.graph.initializer if tensor.ByteSize() > _LARGE}
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if hasattr(value, "extend"):
            getattr(light, field.name).extend(value)
        else:
            setattr(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name == "initializer":
            light.graph.initializer.extend(_hollow(t) if t.name in aside else t for t in value)
        elif hasattr(value, "extend"):
            getattr(light.graph, field.name).extend(value)
        else:
            setattr(light.graph, field.name, value)
    inlined = inliner.inline_selected_functions(light, chosen)
    tensors = [aside.get(tensor.name, tensor) for tensor in inlined.graph.initializer]
    full = onnx.ModelProto()
    full.CopyFrom(inlined)
    del full.graph.initializer[:]
    full.graph.initializer.extend(tensors)
    model.CopyFrom(full)


def _hollow(tensor: TensorProto) -> TensorProto:
    """A tensor's name, type and dimensions."""
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
