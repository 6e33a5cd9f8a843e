"""The samplers of an ONNX file (GridSample, custom samplers, this package's ops) and facts about their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.errors import ModelError
from stn_infer.fusion.basis import AnyBasis, Kind, basis_of
from stn_infer.fusion.lattices.separable import read_constant
from stn_infer.fusion.op import DOMAIN, SPATIAL, is_op, is_spatial, op_of
from stn_infer.proto.edit import copy_of
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, is_standard, nested_nodes, opset_of
from stn_infer.samplers import SamplerSpec
from stn_infer.spellings import SPELLINGS, Custom, Spelling, looks_like_a_sampler, read_custom

#: onnxruntime's own GridSample, from before ONNX had one.
_MICROSOFT = "com.microsoft"
UNKNOWN_OPERATOR = "the operator is not known here"


@dataclass(frozen=True)
class TensorFacts:
    """A tensor's type and shape, from the file or from shape inference.

    Attributes:
        elem_type: ONNX's type number; 0 if unknown.
        dims: one entry per axis, None if the size is dynamic; None instead of a tuple if the rank is unknown.
    """

    elem_type: int = 0
    dims: tuple[int | None, ...] | None = None

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> TensorFacts:
        """What a file's own entry for a tensor says."""
        tensor_type = value.type.tensor_type
        dims = None
        if tensor_type.HasField("shape"):
            dims = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in tensor_type.shape.dim)
        return cls(tensor_type.elem_type, dims)

    @property
    def type_name(self) -> str:
        """float16, float, …"""
        return TensorProto.DataType.Name(self.elem_type).lower() if self.elem_type else "of unknown type"


Facts = Mapping[str, TensorFacts]
UNKNOWN = TensorFacts()


@dataclass(frozen=True)
class SamplerNode:
    """A sampler and its location in a file. A sampler that PyTorch ran has neither a location nor names.

    Attributes:
        spec: the sampling mode, padding mode and align_corners.
        basis: maps theta to the grid; None if the sampler takes a grid, and for results of :func:`find_samplers`.
        name: the node's name, or its output's.
        op_type, domain: the operator.
        where: "" in the main graph, else a description of the subgraph or function.
        input, grid, theta, output: tensor names; spatial transformers have a theta, all others a grid; the other is "".
        spelling: the mode as spelled in the file.
        dtype: the image's type, if known.
    """

    spec: SamplerSpec
    basis: AnyBasis | None = None
    name: str = ""
    op_type: str = "GridSample"
    domain: str = ""
    where: str = ""
    input: str = ""
    grid: str = ""
    theta: str = ""
    output: str = ""
    spelling: str = ""
    dtype: str = "float32"

    @property
    def custom(self) -> bool:
        """Whether it is another runtime's operator."""
        standard = self.domain in STANDARD_DOMAINS and self.op_type == "GridSample"
        return not standard and not self.ours

    @property
    def ours(self) -> bool:
        """Whether it is one of this package's ops."""
        return self.domain == DOMAIN

    @property
    def fused(self) -> bool:
        """Whether it is one of this package's ops that compute the grid from theta."""
        return self.ours and bool(self.theta)


def find_samplers(model: onnx.ModelProto) -> tuple[SamplerNode, ...]:
    """Returns every sampler in the main graph, its subgraphs, and the functions outside domain ``stn``."""
    constants = small_constants(model)
    found = list(_in_nodes(model.graph.node, "", constants))
    for node in model.graph.node:
        for inner in list(nested_nodes([node]))[1:] if node.attribute else ():
            found += _in_nodes([inner], f"a subgraph of {node.name or node.op_type!r}", constants)
    for function in model.functions:
        if function.domain != DOMAIN:
            for inner in nested_nodes(function.node):
                found += _in_nodes([inner], f"the function {function.domain}::{function.name}", {})
    return tuple(found)


def _in_nodes(nodes: Any, where: str, constants: Mapping[str, int]) -> Iterator[SamplerNode]:
    for node in nodes:
        if not node.output or len(node.input) < 2:
            continue
        spec = sampler_spec(node, constants)
        if spec is not None:
            yield _sampler_node(node, spec, where=where)


def _sampler_node(
    node: onnx.NodeProto, spec: SamplerSpec, basis: AnyBasis | None = None, where: str = ""
) -> SamplerNode:
    image, points = node.input[:2]
    grid, theta = ("", points) if is_spatial(node) else (points, "")
    name, spelling = node.name or node.output[0], str(attributes_of(node).get("mode", spec.mode))
    return SamplerNode(
        spec, basis, name, node.op_type, node.domain, where, image, grid, theta, node.output[0], spelling
    )


def spec_of(node: onnx.NodeProto) -> SamplerSpec:
    """Returns the settings of a GridSample or of one of this package's ops."""
    attributes = attributes_of(node)
    mode, padding_mode = str(attributes.get("mode", "bilinear")), str(attributes.get("padding_mode", "zeros"))
    return SamplerSpec.of(mode, padding_mode, bool(attributes.get("align_corners", 0)))


def sampler_spec(node: onnx.NodeProto, constants: Mapping[str, int]) -> SamplerSpec | None:
    """Returns the settings of a sampler. None for any other node.

    Args:
        node: any node.
        constants: the file's scalar constants, for samplers that take their settings as inputs.
    """
    if is_op(node) or (node.op_type == "GridSample" and node.domain in (*STANDARD_DOMAINS, "com.microsoft")):
        return spec_of(node)
    custom = custom_sampler(node, constants)
    return None if custom is None else custom.spec


def custom_sampler(node: onnx.NodeProto, constants: Mapping[str, int]) -> Custom | None:
    """Returns what is known about a sampler of another runtime. None for any other node.

    Args:
        node: any node.
        constants: the file's scalar constants, for samplers that take their settings as inputs.
    """
    if node.op_type == "GridSample":
        return Custom(spec_of(node), Spelling()) if node.domain == _MICROSOFT else None
    named = node.op_type in SPELLINGS or node.op_type == "ATen"
    if not named or len(node.input) < 2 or not node.output:
        return None
    return read_custom(node.domain, node.op_type, attributes_of(node), [constants.get(name) for name in node.input[2:]])


def unknown_samplers(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yields nodes that are, or seem to be, samplers of other runtimes that nothing here can read, and why."""
    constants = small_constants(model)
    own = {(function.domain, function.name) for function in model.functions}
    for holder in (model.graph, *model.functions):
        known = constants if holder is model.graph else {}
        for node in nested_nodes(holder.node):
            standard = is_standard(node) and onnx.defs.has(node.op_type)
            if node.domain == DOMAIN or standard or (node.domain, node.op_type) in own or not node.output:
                continue
            custom = custom_sampler(node, known)
            if custom is not None and custom.spec is None:
                yield node, custom.problem
            elif custom is None and looks_like_a_sampler(node.op_type, attributes_of(node)):
                yield node, UNKNOWN_OPERATOR


def spatial_nodes(model: onnx.ModelProto) -> tuple[SamplerNode, ...]:
    """Returns the spatial transformers of ``model``'s main graph with their bases, in graph order.

    Raises:
        ModelError: a node's basis is not a constant, or it lacks an attribute.
    """
    return tuple(sampler for sampler, _ in _spatial(model))


def kind_of(node: onnx.NodeProto) -> Kind:
    """Returns the kind of a spatial transformer's basis; raises KeyError if the node does not say it."""
    if node.op_type == SPATIAL:
        kind: Kind = attributes_of(node)["kind"]
        return kind
    others: tuple[Kind, ...] = ("projective", "tensor_product", "lattice")
    return next(kind for kind in others if op_of(kind) == node.op_type)


def _spatial(model: onnx.ModelProto) -> Iterator[tuple[SamplerNode, AnyBasis]]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in filter(is_spatial, model.graph.node):
        values = attributes_of(node)
        try:
            size = tuple(int(length) for length in values["grid_shape"][1:-1])
            arrays = [read_constant(name, constants, makers) for name in node.input[2:]]
            basis = basis_of(kind_of(node), arrays, size, values)
            spec = SamplerSpec.of(values["mode"], values["padding_mode"], values["align_corners"])
            yield _sampler_node(node, spec, basis), basis
        except (KeyError, IndexError) as error:
            raise ModelError(f"node {node.name!r} ({DOMAIN}::{node.op_type}) lacks {error}; export it again") from None


def with_theta(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of ``model`` with theta [N, D, K] of every spatial transformer as an extra output.

    The output is named ``theta`` if there is one transformer, else ``theta_0``, ``theta_1``, … in graph order.
    """
    copy = copy_of(model)
    nodes, names = list(_spatial(copy)), Names(copy.graph)
    for index, (node, basis) in enumerate(nodes):
        name = names.fresh("theta" if len(nodes) == 1 else f"theta_{index}")
        rows = len(basis.output_size) + (basis.kind == "projective")
        batch = copy.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
        copy.graph.node.append(helper.make_node("Identity", [node.theta], [name], name=f"stn_{name}"))
        copy.graph.output.append(
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [batch, rows, None if basis.kind == "lattice" else basis.count]
            )
        )
    return copy


def small_constants(model: onnx.ModelProto) -> dict[str, int]:
    """Returns the file's scalar integer and boolean constants by name."""
    found: dict[str, int] = {}
    # From IR version 4 on, a caller may override initializers that are also inputs.
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
    """Returns types and shapes of the main graph's tensors, as far as onnx's shape inference determines them."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a C++ exception of no particular class; the file's own types and shapes remain
        inferred = model
    facts = {
        tensor.name: TensorFacts(tensor.data_type, tuple(int(size) for size in tensor.dims))
        for tensor in inferred.graph.initializer
    }
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        facts[value.name] = TensorFacts.of(value)
    return facts


def reads_nearest(model: onnx.ModelProto, sampler: SamplerNode, facts: Facts) -> bool:
    """Whether TensorRT up to 11.1 reads the mode as nearest: opset 20's ``linear`` and ``cubic``, for images."""
    dims = facts.get(sampler.input, UNKNOWN).dims
    volume = dims is not None and len(dims) == 5
    return sampler.spelling in ("linear", "cubic") and opset_of(model) >= 20 and not volume
