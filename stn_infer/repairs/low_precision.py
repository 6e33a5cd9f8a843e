"""Takes quantization and half precision off the path from theta to a sampler.

A coordinate's rounding is a shift in the image: int8 steps of 2 / 255 are 4 pixels at width 1024, and float16 is off by
a quarter of one. The path is what computes the grid, back to the layer that outputs theta, or to the convolution that
outputs a flow field. The layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from stn_infer.fusion.op import is_op, reads_grid
from stn_infer.fusion.samplers import UNKNOWN, Facts, infer_facts
from stn_infer.proto.edit import copy_of, drop_unused, followed, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.retype import HALF_TYPES, widen_node
from stn_infer.proto.traversal import is_standard, producers, subgraphs, walk_back
from stn_infer.repairs.result import PassResult, Repair

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "LSTM", "GRU", "RNN"})
_DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor on the path to a sampler that has been quantized.

    Attributes:
        sampler: the sampler's name, or its output's.
        tensor: the dequantized tensor.
        source: the tensor before it was quantized; "" if the file does not have it: a constant, or an integer operator.
        scale: the largest step between two of its values; 0 if it is not a constant.
    """

    sampler: str
    tensor: str
    source: str
    scale: float

    def pixels(self, width: int) -> float:
        """The step in pixels of an image of ``width`` pixels, of a coordinate from -1 to 1."""
        return self.scale * width / 2


def quantized_tensors(model: onnx.ModelProto, facts: Facts | None = None) -> Iterator[QuantizedTensor]:
    """Yields the quantized tensors on the paths to the main graph's samplers."""
    if not _is_quantized(model):
        return
    path = _Paths(model, infer_facts(model) if facts is None else facts)
    for sampler in path.samplers():
        for name in path.tensors(sampler.input[1]):
            node = path.maker(name)
            if node is not None and _is(node, "DequantizeLinear"):
                source, scale = path.before_quantization(node), path.scale(node)
                yield QuantizedTensor(sampler.name or sampler.output[0], name, source, scale)


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def without_quantized_grids(model: onnx.ModelProto) -> PassResult:
    """Lets the path to each sampler read the tensors before they were quantized.

    Constants that are stored as integers, and tensors that an integer operator computes, stay.
    """
    if not _is_quantized(model):
        return PassResult(model)
    facts = infer_facts(model)
    found = list(quantized_tensors(model, facts))
    sources = {entry.tensor: entry.source for entry in found if entry.source}
    stay = [entry for entry in found if not entry.source]
    notes = [
        Repair(
            "quantized-grid",
            f"{entry.tensor!r}, on the path to {entry.sampler!r}, is stored or computed in integers only",
            done=False,
        )
        for entry in stay
    ]
    if not sources:
        return PassResult(model, notes=tuple(notes))
    changed = copy_of(model)
    path = _Paths(changed, facts)
    reached = {name for sampler in path.samplers() for name in path.tensors(sampler.input[1])}
    for node in changed.graph.node:
        on_path = not reached.isdisjoint(node.output) and not path.is_layer(node)
        for index, name in enumerate(node.input):
            grid = index == 1 and _is_sampler(node)
            if (on_path or grid) and not _is(node, "DequantizeLinear", "QuantizeLinear"):
                node.input[index] = followed(sources, name)
    drop_unused(changed.graph)
    tensors = ", ".join(map(repr, sources))
    notes.append(Repair("quantized-grid", f"the path to the samplers no longer reads quantized tensors ({tensors})"))
    return PassResult(changed, True, tuple(notes))


def without_half_grids(model: onnx.ModelProto) -> PassResult:
    """Computes half-precision grids in float32, from theta on; a GridSample's image and output are cast."""
    if not any(map(reads_grid, model.graph.node)):
        return PassResult(model)
    facts = infer_facts(model)
    changed = copy_of(model)
    path = _Paths(changed, facts)
    wanted, notes = [], []
    for node in filter(reads_grid, changed.graph.node):
        copied = path.rounded(node.input[1])
        if any(any(subgraphs(maker)) for name in copied if (maker := path.maker(name)) is not None):
            message = f"a branch or a loop computes the grid of {node.name or node.output[0]!r} in half precision"
            notes.append(Repair("half-grid", message, done=False))
        elif copied or path.is_half(node.input[1]):
            wanted.append((node, copied))
    if not wanted:
        return PassResult(model, notes=tuple(notes))
    _Widened(changed, path, facts).samplers(wanted)
    notes += [
        Repair("half-grid", f"{node.name or node.output[0]!r} computes its grid in float32, from theta on")
        for node, _ in wanted
    ]
    drop_unused(changed.graph)
    return PassResult(changed, True, tuple(notes))


class _Widened:
    """Rewrites samplers, and copies the nodes that compute their grids, in float32."""

    def __init__(self, model: onnx.ModelProto, path: _Paths, facts: Facts) -> None:
        self._graph, self._path, self._facts = model.graph, path, facts
        self._names = Names(model.graph)
        self._nodes: list[NodeProto] = []
        self._wide: dict[str, str] = {}  # float32 forms of tensors

    def samplers(self, wanted: list[tuple[NodeProto, frozenset[str]]]) -> None:
        """Rewrites samplers, each with the tensors to copy, in place."""
        copied = frozenset().union(*(tensors for _, tensors in wanted))
        rewritten = [node for node, _ in wanted]
        for node in self._graph.node:
            if node in rewritten:
                self._sampler(node)
                continue
            self._nodes.append(node)
            if not copied.isdisjoint(node.output):
                twin = copy_of(node)
                twin.input[:] = [self._float(name) for name in node.input]
                for index, name in enumerate(node.output):
                    self._wide[name] = twin.output[index] = self._names.fresh(f"{name}_float32")
                twin.name = ""
                widen_node(twin)
                self._nodes.append(twin)
        replace_all(self._graph.node, self._nodes)
        del self._graph.value_info[:]

    def _float(self, name: str) -> str:
        """The float32 form of a tensor; outside of the path, by a cast."""
        if self._path.is_half(name) and name not in self._wide:
            self._wide[name] = self._names.fresh(f"{name}_float32")
            self._nodes.append(helper.make_node("Cast", [name], [self._wide[name]], to=TensorProto.FLOAT))
        return self._wide.get(name, name)

    def _sampler(self, node: NodeProto) -> None:
        image, output = node.input[0], node.output[0]
        sampler = copy_of(node)
        sampler.input[1] = self._float(node.input[1])
        half = self._path.is_half(image) and not is_op(node)  # this package's op takes such an image with this grid
        if half:
            sampler.input[0] = self._float(image)
            sampler.output[0] = self._names.fresh(f"{output}_float32")
        self._nodes.append(sampler)
        if half:
            kind = self._facts[image].elem_type
            self._nodes.append(helper.make_node("Cast", [sampler.output[0]], [output], to=kind))


class _Paths:
    """The paths to the samplers of a model's main graph."""

    def __init__(self, model: onnx.ModelProto, facts: Facts) -> None:
        self._nodes, self._facts = model.graph.node, facts
        self._made = producers(model.graph.node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if is_standard(node, "Constant") and node.attribute[:1] and node.attribute[0].HasField("t"):
                self._constants[node.output[0]] = node.attribute[0].t

    def samplers(self) -> Iterator[NodeProto]:
        """Nodes whose second input is a grid or theta."""
        return (node for node in self._nodes if _is_sampler(node))

    def maker(self, name: str) -> NodeProto | None:
        """The node that produces a tensor."""
        return self._nodes[self._made[name]] if name in self._made else None

    def tensors(self, grid: str) -> Iterator[str]:
        """The tensors of the path, ``grid`` first; the last ones are what layers output."""
        return walk_back([grid], self.before)

    def before(self, name: str) -> Iterable[str]:
        """The tensors of the path that ``name`` is computed from."""
        node = self.maker(name)
        if node is None or self.is_layer(node):
            return ()
        if _is(node, "DequantizeLinear"):
            source = self.before_quantization(node)
            return (source,) if source else ()
        return tuple(node.input)

    def rounded(self, grid: str) -> frozenset[str]:
        """The tensors of the path that are in half precision, and those that are computed from these."""
        found: set[str] = set()
        for name in sorted(filter(self.is_part, self.tensors(grid)), key=self._made.__getitem__):
            if self.is_half(name) or not found.isdisjoint(self.before(name)):
                found.add(name)
        return frozenset(found)

    def is_part(self, name: str) -> bool:
        """Whether a tensor is computed on the path, and not by a layer or from constants alone."""
        node = self.maker(name)
        return node is not None and not self.is_layer(node)

    def is_layer(self, node: NodeProto) -> bool:
        """Whether a node has learned weights. Points [N, ..., K] times a basis are a matrix product of rank 3."""
        if is_standard(node, "MatMul"):
            dims = self._facts.get(node.input[0], UNKNOWN).dims
            return self._is_constant(node.input[1]) and dims is not None and len(dims) == 2
        return is_standard(node, *_LAYERS)

    def is_half(self, name: str) -> bool:
        """Whether a tensor is float16 or bfloat16."""
        return self._facts.get(name, UNKNOWN).elem_type in HALF_TYPES

    def before_quantization(self, node: NodeProto) -> str:
        """The tensor that a DequantizeLinear restores; "" if the file does not have it."""
        quantize = self.maker(node.input[0])
        same = (
            quantize is not None
            and _is(quantize, "QuantizeLinear")
            and list(quantize.input[1:]) == list(node.input[1:])
        )
        return quantize.input[0] if quantize is not None and same else ""

    def scale(self, node: NodeProto) -> float:
        """The largest scale of a DequantizeLinear; 0 if it is not a constant."""
        tensor = self._constants.get(node.input[1])
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return 0.0
        return float(np.max(np.abs(numpy_helper.to_array(tensor).astype(np.float64)), initial=0.0))

    def _is_constant(self, name: str) -> bool:
        node = self.maker(name)
        if node is not None and _is(node, "DequantizeLinear"):
            name = node.input[0]
        return name in self._constants


def _is(node: NodeProto, *op_types: str) -> bool:
    return node.domain in _DOMAINS and node.op_type in op_types


def _is_sampler(node: NodeProto) -> bool:
    return (is_op(node) or reads_grid(node)) and len(node.input) > 1
