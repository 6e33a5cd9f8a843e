"""The samplers of an ONNX file — GridSample, its custom relatives, our own ops — and the facts of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from stn_infer.fusion.op import is_spatial
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, nested_nodes, opset_of
from stn_infer.samplers import MODES, PADDING_MODES, spell_mode

CUSTOM = {
    ("com.microsoft", "GridSample"),
    ("mmdeploy", "grid_sampler"),
    ("aten", "grid_sampler"),
    ("org.pytorch.aten", "ATen"),
}


@dataclass(frozen=True)
class TensorFacts:
    """What the file or shape inference says of a tensor.

    Attributes:
        elem_type: ONNX's number; 0 where unknown.
        dims: a size, or None where it is open; the whole is None where the rank is unknown.
    """

    elem_type: int = 0
    dims: tuple[int | None, ...] | None = None

    @property
    def type_name(self) -> str:
        """float16, float, …"""
        return TensorProto.DataType.Name(self.elem_type).lower() if self.elem_type else "of unknown type"


Facts = Mapping[str, TensorFacts]
UNKNOWN = TensorFacts()


@dataclass(frozen=True)
class Sampler:
    """One sampler in the file.

    Attributes:
        node: its name, or its output's.
        op_type, domain: what it is.
        where: "" in the main graph, else the subgraph's or function's name.
        input, grid, output: tensor names; of our own ops the grid is "".
        mode: bilinear, nearest or bicubic, whatever the file's spelling.
        padding_mode, align_corners: as GridSample's.
        spelling: the mode as the file has it.
    """

    node: str
    op_type: str
    domain: str
    where: str
    input: str
    grid: str
    output: str
    mode: str
    padding_mode: str
    align_corners: bool
    spelling: str

    @property
    def custom(self) -> bool:
        """Whether another runtime's operator stands here."""
        return self.domain not in STANDARD_DOMAINS and not self.fused

    @property
    def fused(self) -> bool:
        """Whether it is one of our own ops."""
        return self.domain == "stn"


def find_samplers(model: onnx.ModelProto) -> tuple[Sampler, ...]:
    """Every sampler: of the main graph, its subgraphs, and the functions but our own."""
    constants = small_constants(model)
    found = list(_in_nodes(model.graph.node, "", constants))
    for node in model.graph.node:
        for inner in list(nested_nodes([node]))[1:]:
            found += _in_nodes([inner], f"a subgraph of {node.name or node.op_type!r}", constants)
    for function in model.functions:
        if function.domain != "stn":
            for inner in nested_nodes(function.node):
                found += _in_nodes([inner], f"the function {function.domain}::{function.name}", {})
    return tuple(found)


def _in_nodes(nodes: Any, where: str, constants: Mapping[str, int]) -> Iterator[Sampler]:
    for node in nodes:
        if not node.output or len(node.input) < 2:
            continue
        settings = sampler_settings(node, constants)
        if settings is None:
            continue
        mode, padding, aligned, spelling = settings
        grid = "" if is_spatial(node) else node.input[1]
        name = node.name or node.output[0]
        yield Sampler(
            name,
            node.op_type,
            node.domain,
            where,
            node.input[0],
            grid,
            node.output[0],
            mode,
            padding,
            aligned,
            spelling,
        )


def sampler_settings(node: onnx.NodeProto, constants: Mapping[str, int]) -> tuple[str, str, bool, str] | None:
    """(mode, padding, align_corners, the mode's spelling) of a sampler; None for any other node.

    Args:
        constants: the scalars that the file holds, for samplers that take their settings as inputs.
    """
    attributes = attributes_of(node)
    if is_spatial(node) or (node.op_type == "GridSample" and node.domain in (*STANDARD_DOMAINS, "com.microsoft")):
        spelling = str(attributes.get("mode", "bilinear"))
        padding = str(attributes.get("padding_mode", "zeros"))
        return spell_mode(spelling), padding, bool(attributes.get("align_corners", 0)), spelling
    if (node.domain, node.op_type) == ("mmdeploy", "grid_sampler"):
        numbers = [attributes.get(key, 0) for key in ("interpolation_mode", "padding_mode", "align_corners")]
    elif (node.domain, node.op_type) == ("aten", "grid_sampler") or (
        node.op_type == "ATen" and str(attributes.get("operator", "")).startswith("grid_sampler")
    ):
        if len(node.input) < 5 or any(name not in constants for name in node.input[2:5]):
            return None
        numbers = [constants[name] for name in node.input[2:5]]
    else:
        return None
    mode, padding_number, aligned = numbers
    if mode not in (0, 1, 2) or padding_number not in (0, 1, 2):
        return None
    return MODES[mode], PADDING_MODES[padding_number], bool(aligned), MODES[mode]


def small_constants(model: onnx.ModelProto) -> dict[str, int]:
    """By name, the whole numbers and truth values that stand in the file as scalars."""
    found: dict[str, int] = {}
    # from IR version 4 on a caller may override them
    inputs = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    kinds = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer if tensor.name not in inputs]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors.append((node.output[0], attribute.t))
                elif attribute.name == "value_int":
                    found[node.output[0]] = attribute.i
    for name, tensor in tensors:
        scalar = list(tensor.dims) in ([], [1])
        if scalar and tensor.data_type in kinds and tensor.data_location != TensorProto.EXTERNAL:
            found[name] = int(numpy_helper.to_array(tensor).ravel()[0])
    return found


def infer_facts(model: onnx.ModelProto) -> dict[str, TensorFacts]:
    """Types and shapes of the main graph's tensors, as far as onnx's shape inference gets."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a C++ exception of no particular class; what the file itself says is left
        inferred = model
    facts = {
        tensor.name: TensorFacts(tensor.data_type, tuple(int(size) for size in tensor.dims))
        for tensor in inferred.graph.initializer
    }
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        tensor_type = value.type.tensor_type
        dims = None
        if tensor_type.HasField("shape"):
            dims = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in tensor_type.shape.dim)
        facts[value.name] = TensorFacts(tensor_type.elem_type, dims)
    return facts


def reads_nearest(model: onnx.ModelProto, sampler: Sampler, facts: Facts) -> bool:
    """Whether TensorRT up to 11.1 takes it for nearest: opset 20's ``linear`` and ``cubic``, in images."""
    dims = facts.get(sampler.input, UNKNOWN).dims
    volume = dims is not None and len(dims) == 5
    return sampler.spelling in ("linear", "cubic") and opset_of(model) >= 20 and not volume
