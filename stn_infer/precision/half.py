"""A float32 graph in half precision: weights and features in float16 or bfloat16, coordinates in float32.

Inputs and outputs of the graph stay float32; casts stand where a value crosses from one type to the other. A tensor's
own name always means its float32 value, and its half value has a name of its own, so that whatever stays in float32
(subgraphs too) is left as it is. Three rules say which node computes in which type:

* a node on the way to a sampling grid, back to and including the layer that gives the transformation's parameters,
  stays in float32: coordinates in half precision are off by pixels;
* layers with weights, and the spatial transformers, are half (these sample in float32 inside, see ``op.py``);
* an operator that is safe in half precision is half where a value that it reads is half already; every other one,
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
from stn_infer.fusion.op import is_spatial
from stn_infer.precision.coordinates import LAYERS, coordinate_nodes
from stn_infer.proto.edit import copy_of, replace_all
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import is_standard, names_read, opset_of

Half = Literal["fp16", "bf16"]

#: The opset that each type needs: convolutions take bfloat16 from 22 on only.
OPSETS: dict[Half, int] = {"fp16": 16, "bf16": 22}

_TYPES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY: dict[Half, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_SCHEMA_TYPES: dict[Half, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

# Safe in half precision: each output is one of the inputs' values, or a short sum of them.
# fmt: off
_SAFE = frozenset({
    "Abs", "Add", "AveragePool", "Clip", "Concat", "DepthToSpace", "Div", "Dropout", "Elu", "Expand", "Flatten",
    "Gather", "GatherElements", "Gelu", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max",
    "MaxPool", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
# Read a tensor of either type and give no float back.
_EITHER = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class RangeFinding:
    """A value that the half type can't hold.

    Attributes:
        tensor: its name.
        problem: ``overflow`` (it would become infinite; the nodes that use it stay in float32), ``vanishing`` (all its
            values would become zero; likewise) or ``underflow`` (some would, and do).
        message: one sentence, with the figures.
    """

    tensor: str
    problem: Literal["overflow", "vanishing", "underflow"]
    message: str


@dataclass(frozen=True)
class HalfModel:
    """What :func:`to_half` made.

    Attributes:
        model: with float32 inputs and outputs.
        findings: values out of the type's range.
        half_nodes, float_nodes: how many nodes compute on half values, and how many on float32 ones.
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
    """``model`` with its features and weights in half precision; the given model is not changed.

    Args:
        model: a float32 model, fused or not, of opset 16 or later (22 or later for ``bf16``).
        half: ``fp16`` or ``bf16``.
        peaks: the largest magnitude that each activation was seen to reach, by tensor name; nodes at one that the type
            can't hold stay in float32. None: nobody looked.

    Raises:
        ExportError: the model's opset is too old for the type.
    """
    if opset_of(model) < OPSETS[half]:
        raise ExportError(f"{half} needs a model of opset {OPSETS[half]} or later, given opset {opset_of(model)}")
    return _Converter(model, half).convert(peaks or {})


class _Converter:
    """One conversion; the given model is only read."""

    def __init__(self, model: onnx.ModelProto, half: Half) -> None:
        self._half: Half = half
        self._model = copy_of(model)
        self._graph = self._model.graph
        self._opset = opset_of(model)
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._floats = _float_tensors(model)
        self._names = Names(self._graph)
        self._halves: dict[str, str] = {}  # a tensor's name -> its half value's
        self._made: set[str] = set()  # float32 names whose value exists
        self._nodes: list[onnx.NodeProto] = []
        self._findings: dict[str, RangeFinding] = {}

    def convert(self, peaks: dict[str, float]) -> HalfModel:
        for tensor in self._graph.initializer:
            if tensor.name in self._floats:
                self._look_at(tensor)
        for name, peak in peaks.items():
            # as much again, since other inputs may go further; written so that not-a-number counts
            if name in self._floats and not 2 * peak <= largest(self._half):
                self._note(name, "overflow", f"activation {name!r} reaches {peak:.3g}")
        blocked = {name for name, finding in self._findings.items() if finding.problem != "underflow"}
        coordinates = coordinate_nodes(self._model)
        self._made = set(self._floats) & (set(self._constants) | {value.name for value in self._graph.input})
        home: set[str] = set()  # tensors that a half node makes
        used: set[str] = set()
        half_nodes = 0
        for index, node in enumerate(self._graph.node):
            slots = self._half_slots(node)
            touched = {*node.input, *node.output}
            half = bool(slots) and index not in coordinates and blocked.isdisjoint(touched)
            if half and not (node.op_type in LAYERS or is_spatial(node)):
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
        """The inputs that become half where the node does; empty where it can't."""
        if is_spatial(node):
            return [0] if node.input[0] in self._floats else []
        if node.op_type not in _SAFE | LAYERS or not is_standard(node):
            return []
        schema = defs.get_schema(node.op_type, self._opset)
        allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
        kinds = [_parameter(schema.inputs, index).type_str for index in range(len(node.input))]
        # the type parameter of the features: a Resize's scales, say, have another
        main = next((kind for kind, name in zip(kinds, node.input, strict=True) if name in self._floats), None)
        if main is None or _SCHEMA_TYPES[self._half] not in allowed.get(main, ()):
            return []
        for index, name in enumerate(node.output):
            if name in self._floats and _parameter(schema.outputs, index).type_str != main:
                return []
        return [index for index, name in enumerate(node.input) if name in self._floats and kinds[index] == main]

    def _look_at(self, tensor: onnx.TensorProto) -> None:
        """Note what of a constant's values the type can't hold."""
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
            what += f", and {self._half} ends at {largest(self._half):.6g}: the nodes that use it stay in float32"
        else:
            limit = f"{self._half}'s smallest value, {smallest(self._half):.2g}"
            what += (
                f", below {limit}: the nodes that use it stay in float32"
                if problem == "vanishing"
                else f" lie below {limit}, and become 0"
            )
        self._findings[tensor] = RangeFinding(tensor, problem, what)

    def _rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(values.astype(_NUMPY[self._half]))

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def _add_half(self, node: onnx.NodeProto, slots: list[int]) -> list[str]:
        """Put the node in on half values; the names that it reads as such."""
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
        """The name of a tensor's half value, made where there is none yet."""
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
        """See that a tensor's float32 value exists."""
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
    """A schema's formal parameter for an actual one; the last may be variadic."""
    return parameters[min(index, len(parameters) - 1)]


def _float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """The float32 tensors of the main graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    found |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    # inference may not look into functions
    for node in model.graph.node:
        if is_spatial(node) and node.input[0] in found:
            found.add(node.output[0])
    return frozenset(found)
