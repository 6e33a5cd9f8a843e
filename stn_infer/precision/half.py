"""Converts a float32 graph to half precision: weights and features to float16 or bfloat16, coordinates stay float32.

Inputs and outputs of the graph stay float32; casts are inserted between the types. A tensor's original name always
denotes its float32 value, and its half value has another name, so nodes that stay in float32 (and subgraphs) are not
changed. Three rules determine a node's type:

* A node that computes a sampling grid, back to and including the layer that outputs the transformation's parameters,
  stays in float32: half-precision coordinates have errors of pixels.
* Layers with weights and spatial transformers become half (transformers sample in float32 internally, see ``op.py``).
* An operator that is safe in half precision becomes half if one of its inputs is already half. Every other operator,
  such as a softmax, a normalization or a sum over an axis, stays in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper

from stn_infer.errors import ExportError
from stn_infer.fusion.op import is_op
from stn_infer.precision.coordinates import LAYERS, coordinate_nodes
from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import is_standard, names_read, opset_of

Half = Literal["fp16", "bf16"]

#: The minimum opset of each type: convolutions support bfloat16 only from 22 on.
OPSETS: dict[Half, int] = {"fp16": 16, "bf16": 22}

_TYPES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY: dict[Half, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_SCHEMA_TYPES: dict[Half, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

# Operators that are safe in half precision: each output is an input value, or depends on only a few of them.
# fmt: off
_SAFE = frozenset({
    "Abs", "Add", "AveragePool", "Clip", "Concat", "DepthToSpace", "Div", "Dropout", "Elu", "Expand", "Flatten",
    "Gather", "GatherElements", "Gelu", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max",
    "MaxPool", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
# Operators that read a tensor of either type and return no float.
_EITHER = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class RangeFinding:
    """A tensor with values out of the half type's range.

    Attributes:
        tensor: its name.
        problem: ``overflow`` (a value would become infinite, so the nodes that use it stay in float32), ``vanishing``
            (all values would become zero, so the nodes stay in float32 too) or ``underflow`` (some values become zero).
        message: one sentence, with the numbers.
    """

    tensor: str
    problem: Literal["overflow", "vanishing", "underflow"]
    message: str


@dataclass(frozen=True)
class HalfModel:
    """The result of :func:`to_half`.

    Attributes:
        model: the converted model, with float32 inputs and outputs.
        findings: tensors with values out of the type's range.
        half_nodes, float_nodes: the number of nodes that compute in half precision, and in float32.
    """

    model: onnx.ModelProto
    findings: tuple[RangeFinding, ...]
    half_nodes: int
    float_nodes: int


def largest(half: Half) -> float:
    """The largest finite value of the type."""
    limits: Any = ml_dtypes.finfo(_NUMPY[half])  # type: ignore[no-untyped-call]
    return float(limits.max)


def smallest(half: Half) -> float:
    """The smallest positive value of the type, a subnormal one."""
    limits: Any = ml_dtypes.finfo(_NUMPY[half])  # type: ignore[no-untyped-call]
    return float(limits.smallest_subnormal)


def to_half(model: onnx.ModelProto, half: Half, *, peaks: dict[str, float] | None = None) -> HalfModel:
    """Returns ``model`` with features and weights in half precision; the given model is not changed.

    Args:
        model: a float32 model, fused or not, of opset 16 or later (22 or later for ``bf16``).
        half: ``fp16`` or ``bf16``.
        peaks: the largest observed magnitude of each activation, by tensor name; nodes with an activation that exceeds
            the type's range stay in float32. None: not measured.

    Raises:
        ExportError: the model's opset is too old for the type.
    """
    if opset_of(model) < OPSETS[half]:
        raise ExportError(f"{half} needs a model of opset {OPSETS[half]} or later, given opset {opset_of(model)}")
    return _Converter(model, half).convert(peaks or {})


class _Converter:
    """One conversion; the given model is not changed."""

    def __init__(self, model: onnx.ModelProto, half: Half) -> None:
        self._half: Half = half
        self._model = copy_of(model)
        self._graph = self._model.graph
        self._opset = opset_of(model)
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._floats = _float_tensors(model)
        self._names = Names(self._graph)
        self._halves: dict[str, str] = {}  # tensor name -> name of its half value
        self._made: set[str] = set()  # names of tensors whose float32 value exists
        self._nodes: list[onnx.NodeProto] = []
        self._findings: dict[str, RangeFinding] = {}

    def convert(self, peaks: dict[str, float]) -> HalfModel:
        for tensor in self._graph.initializer:
            if tensor.name in self._floats:
                self._check_range(tensor)
        for name, peak in peaks.items():
            # A factor of 2, because other inputs may reach further; the comparison is negated so that NaN counts.
            if name in self._floats and not 2 * peak <= largest(self._half):
                self._note(name, "overflow", f"activation {name!r} reaches {peak:.3g}")
        blocked = {name for name, finding in self._findings.items() if finding.problem != "underflow"}
        coordinates = coordinate_nodes(self._model)
        self._made = set(self._floats) & (set(self._constants) | {value.name for value in self._graph.input})
        home: set[str] = set()  # tensors that half nodes produce
        used: set[str] = set()
        half_nodes = 0
        for index, node in enumerate(self._graph.node):
            slots = self._half_slots(node)
            touched = {*node.input, *node.output}
            half = bool(slots) and index not in coordinates and blocked.isdisjoint(touched)
            if half and not (node.op_type in LAYERS or is_op(node)):
                half = any(node.input[slot] in home for slot in slots)
            if half:
                half_nodes += 1
                home.update(name for name in node.output if name in self._floats)
                used.update(self._add_half(node, slots))
            else:
                self._add_float(node)
        for value in self._graph.output:
            self._need_float(value.name)
        used_findings = [
            finding for name, finding in self._findings.items() if finding.problem != "underflow" or name in used
        ]
        total = len(self._graph.node)
        self._finish()
        return HalfModel(self._model, tuple(used_findings), half_nodes, total - half_nodes)

    # ---- which type ----------------------------------------------------------------------------------------------

    def _half_slots(self, node: onnx.NodeProto) -> list[int]:
        """The inputs that become half if the node does; empty if the node can't become half."""
        if is_op(node):  # its coordinates stay float32
            return [0] if node.input[0] in self._floats else []
        if node.op_type not in _SAFE | LAYERS or not is_standard(node):
            return []
        schema = defs.get_schema(node.op_type, self._opset)
        allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
        kinds = [_parameter(schema.inputs, index).type_str for index in range(len(node.input))]
        # The type parameter of the features; e.g. a Resize's scales have another one.
        main = next((kind for kind, name in zip(kinds, node.input, strict=True) if name in self._floats), None)
        if main is None or _SCHEMA_TYPES[self._half] not in allowed.get(main, ()):
            return []
        for index, name in enumerate(node.output):
            if name in self._floats and _parameter(schema.outputs, index).type_str != main:
                return []
        return [index for index, name in enumerate(node.input) if name in self._floats and kinds[index] == main]

    def _check_range(self, tensor: onnx.TensorProto) -> None:
        """Records a finding if a constant has values out of the type's range."""
        values = numpy_helper.to_array(tensor)
        magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
        if magnitudes.size == 0:
            return
        if not np.isfinite(self._rounded(magnitudes.max(keepdims=True))).all():
            self._note(tensor.name, "overflow", f"weight {tensor.name!r} reaches {magnitudes.max():.3g}")
            return
        lost = int(np.count_nonzero(self._rounded(magnitudes) == 0))
        if lost == magnitudes.size:
            self._note(tensor.name, "vanishing", f"weight {tensor.name!r} is at most {magnitudes.max():.3g}")
        elif lost:
            self._note(tensor.name, "underflow", f"{lost} of {values.size} values of weight {tensor.name!r}")

    def _note(self, tensor: str, problem: Literal["overflow", "vanishing", "underflow"], what: str) -> None:
        if problem == "overflow":
            what += f", above {self._half}'s maximum {largest(self._half):.6g}: the nodes that use it stay in float32"
        else:
            limit = f"{self._half}'s smallest positive value {smallest(self._half):.2g}"
            what += (
                f", below {limit}: the nodes that use it stay in float32"
                if problem == "vanishing"
                else f" are below {limit} and become 0"
            )
        self._findings[tensor] = RangeFinding(tensor, problem, what)

    def _rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(values.astype(_NUMPY[self._half]))

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def _add_half(self, node: onnx.NodeProto, slots: list[int]) -> list[str]:
        """Adds the node on half values; returns the names of the inputs read as half."""
        new = copy_of(node)
        read = [node.input[slot] for slot in slots]
        for index, name in enumerate(node.input):
            if index in slots:
                new.input[index] = self._half_name(name)
            elif name:
                self._need_float(name)
        for index, name in enumerate(node.output):
            if name in self._floats:
                new.output[index] = self._halves[name] = self._names.fresh(f"{name}.{self._half}")
        self._nodes.append(new)
        return read

    def _add_float(self, node: onnx.NodeProto) -> None:
        new = copy_of(node)
        for index, name in enumerate(node.input):
            if node.op_type in _EITHER and name in self._halves and name not in self._made:
                new.input[index] = self._halves[name]
            elif name:
                self._need_float(name)
        for name in names_read(node):
            if name not in node.input:  # a subgraph's
                self._need_float(name)
        self._nodes.append(new)
        self._made.update(node.output)

    def _half_name(self, name: str) -> str:
        """Returns the name of a tensor's half value; adds the value if it does not exist yet."""
        if name not in self._halves:
            half = self._halves[name] = self._names.fresh(f"{name}.{self._half}")
            if name in self._constants:
                values = self._rounded(numpy_helper.to_array(self._constants[name]))
                tensor = helper.make_tensor(half, _TYPES[self._half], values.shape, values.tobytes(), raw=True)
                self._graph.initializer.append(tensor)
            else:
                self._nodes.append(helper.make_node("Cast", [name], [half], name=f"cast_{half}", to=_TYPES[self._half]))
        return self._halves[name]

    def _need_float(self, name: str) -> None:
        """Adds a tensor's float32 value if it does not exist yet."""
        if name in self._halves and name not in self._made:
            self._made.add(name)
            half = self._halves[name]
            self._nodes.append(helper.make_node("Cast", [half], [name], name=f"cast_{name}", to=TensorProto.FLOAT))

    def _finish(self) -> None:
        graph = self._graph
        read = {name for node in self._nodes for name in names_read(node)} | {value.name for value in graph.output}
        replace_all(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
        replace_all(graph.node, self._nodes)
        del graph.value_info[:]


def _parameter(parameters: Any, index: int) -> Any:
    """The schema's formal parameter for the input or output ``index``; the last one may be variadic."""
    return parameters[min(index, len(parameters) - 1)]


def _float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """The float32 tensors of the main graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    found |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    # Shape inference may not look into functions.
    for node in model.graph.node:
        if is_op(node) and node.input[0] in found:
            found.add(node.output[0])
    return frozenset(found)
