"""Replaces samplers by ``stn`` nodes; folds the map to theta into the preceding linear layer if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.basis import NO_CLAMP
from stn_infer.fusion.dataflow import GraphView
from stn_infer.fusion.lattices.find import LatticeMap
from stn_infer.fusion.lattices.plan import Plan
from stn_infer.fusion.lattices.separable import Float32, add_product
from stn_infer.fusion.measure import Cut, ThetaMap
from stn_infer.fusion.monomials import Monomials
from stn_infer.fusion.op import (
    DOMAIN,
    SAMPLER,
    node_attributes,
    quotient_attributes,
    sampler_attributes,
    tensor_product_shapes,
)
from stn_infer.fusion.shapes import SINGLE, Observation
from stn_infer.proto.edit import NewNodes
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import attributes_of, opset_of
from stn_infer.samplers import SamplerSpec

_PIECE = 4096


class Rewriter:
    """Edits one graph of a model in place; :meth:`finish` inserts the new nodes.

    Args:
        view: the graph.
        observed: its shapes and types.
        names: the model's names, shared by the rewriters of all its graphs.
        prefixes: name prefixes, one per transformer, shared by the rewriters of all its graphs.
    """

    def __init__(self, view: GraphView, observed: Observation, names: Names, prefixes: Iterator[str]) -> None:
        self._view, self._observed, self._names, self._prefixes = view, observed, names, prefixes
        self._graph = view.scope.graph
        self._opset = opset_of(view.scope.model)
        self._thetas: dict[tuple[object, ...], str] = {}
        self._stored: dict[tuple[object, ...], str] = {}  # constants, by type, shape and contents, or by factors
        self._new: dict[str, list[onnx.NodeProto]] = {}  # sampler's output -> nodes that replace the sampler

    def replace(self, sampler: onnx.NodeProto, plan: Plan, spec: SamplerSpec) -> None:
        """Registers the replacement of one GridSample by an op that computes the grid from theta, sampling as in
        ``spec``.
        """
        prefix = next(self._prefixes)
        new, image, found = NewNodes(self._names, prefix), sampler.input[0], plan.found
        values = node_attributes(plan.kind, found.output_size, spec, self._opset)
        if isinstance(found, LatticeMap):
            theta = self._lattice_theta(new, image, plan.cut, found)
            constants = self._constants(new, found.basis.constants)
            values |= tensor_product_shapes(found.basis.lattice, found.output_size)
        else:
            theta = self._theta(new, image, plan.cut, found)
            if found.general:
                least = NO_CLAMP if found.w_min is None else found.w_min
                values |= quotient_attributes(len(found.output_size), least, found.move)
            if plan.factors:
                constants = [self._multiplied(new, plan.factors)]
            else:
                arrays = {"basis": found.basis} if plan.sparse is None else plan.sparse.constants
                constants = self._constants(new, arrays)
        node = helper.make_node(
            plan.op,
            [image, theta, *constants],
            list(sampler.output),
            name=sampler.name or self._names.fresh(prefix),
            domain=DOMAIN,
        )
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(values.items()))
        self._new[sampler.output[0]] = [*new.nodes, node]
        self._graph.initializer.extend(new.constants)

    def _constants(self, new: NewNodes, arrays: Mapping[str, NDArray[Any]]) -> list[str]:
        """Returns the names of initializers, floating-point ones in float32; adds those that the graph has not yet."""
        names = []
        for name, given in arrays.items():
            values = np.ascontiguousarray(given, np.float32 if given.dtype.kind == "f" else given.dtype)
            key = (values.dtype, values.shape, sha256(values.data).digest())
            if key not in self._stored:
                self._stored[key] = new.constant(name, values)
            names.append(self._stored[key])
        return names

    def _multiplied(self, new: NewNodes, factors: Sequence[Float32]) -> str:
        """Returns the name of a basis; adds the nodes that multiply its factors, unless they exist."""
        key = ("product", *(factor.tobytes() for factor in factors))
        if key not in self._stored:
            self._stored[key] = add_product(new, factors)
        return self._stored[key]

    def _lattice_theta(self, new: NewNodes, image: str, cut: Cut, found: LatticeMap) -> str:
        """Returns the name of theta [N, D, K] of a lattice; adds the nodes that compute it, unless they exist."""
        repeated = self._observed.batches > 1
        key = (
            *(cut.tensors, cut.units, cut.rows, found.shape, found.order, found.pads, found.lattice, found.dimensions),
            found.mix.tobytes(),
            b"" if found.offset is None else found.offset.tobytes(),
            image if repeated else "",
        )
        if key not in self._thetas:
            theta = self._ordered(new, cut, found)
            self._thetas[key] = _repeat(new, theta, image, 3) if repeated else theta
        return self._thetas[key]

    def _ordered(self, new: NewNodes, cut: Cut, found: LatticeMap) -> str:
        """Adds the nodes that compute theta of a lattice from the cut's tensor; returns its name."""
        name = _single(new, cut.tensors[0], self._observed.dtypes.get(cut.tensors[0]))
        total, count = found.mix.shape
        inner = [m.shape[1] - pad for m, pad in zip(found.matrices, found.pads, strict=True)]
        if found.order != tuple(range(len(found.order))):
            name = new.node("Reshape", [name, self._shape(new, cut, found.shape)], "parameters")
            name = new.node("Transpose", [name], "ordered", perm=[0, *(1 + axis for axis in found.order)])
        padded = any(found.pads)
        mixed = not np.array_equal(found.mix, np.eye(total, count))
        if mixed:
            flat = self._shape(new, cut, (count, prod(inner)))
            name = new.node("Reshape", [name, flat], "components")
            mix = new.constant("mix", np.ascontiguousarray(found.mix, np.float32))
            name = new.node("MatMul", [mix, name], "coordinates")
        if padded:
            name = new.node("Reshape", [name, self._shape(new, cut, (total, *inner))], "lattice")
            ends = np.array([0] * (2 + len(inner)) + [0, 0, *found.pads], np.int64)
            name = new.node("Pad", [name, new.constant("pads", ends)], "padded")
        name = new.node("Reshape", [name, self._shape(new, cut, (total, prod(found.lattice)))], "theta")
        if found.offset is not None:
            offset = np.ascontiguousarray(found.offset.reshape(1, total, -1), np.float32)
            name = new.node("Add", [name, new.constant("offset", offset)], "moved")
        if cut.rows > 1:
            shape = np.array([-1, found.dimensions, prod(found.lattice)], np.int64)
            name = new.node("Reshape", [name, new.constant("theta_shape", shape)], "thetas")
        return name

    def _shape(self, new: NewNodes, cut: Cut, sizes: tuple[int, ...]) -> str:
        """A constant shape: the units, then ``sizes``."""
        units = 0 if cut.units != SINGLE else 1
        return new.constant("shape", np.array([units, *sizes], np.int64))

    def sample(self, sampler: onnx.NodeProto, spec: SamplerSpec, *, cast: bool) -> None:
        """Registers the replacement of one GridSample by ``Sampler`` at the same grid.

        Args:
            sampler: the GridSample.
            spec: its settings.
            cast: whether its grid is to be converted to float32 first.
        """
        prefix = next(self._prefixes)
        new = NewNodes(self._names, prefix)
        image, grid = sampler.input
        if cast:
            grid = new.node("Cast", [grid], "grid", to=TensorProto.FLOAT)
        name = sampler.name or self._names.fresh(prefix)
        node = helper.make_node(SAMPLER, [image, grid], list(sampler.output), name=name, domain=DOMAIN)
        values = sampler_attributes(spec, self._opset)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(values.items()))
        self._new[sampler.output[0]] = [*new.nodes, node]

    def finish(self) -> None:
        """Replaces the samplers by the new nodes."""
        graph = self._graph
        for index in reversed(range(len(graph.node))):
            outputs = graph.node[index].output
            if outputs and outputs[0] in self._new:
                *before, node = self._new[outputs[0]]
                graph.node[index].CopyFrom(node)
                for other in reversed(before):
                    graph.node.insert(index, other)

    def _theta(self, new: NewNodes, image: str, cut: Cut, found: ThetaMap) -> str:
        """Returns the name of theta [N, D, K]; adds the nodes that compute it, unless they exist."""
        alone = all(cut.shared)
        # An input may have a separate batch size, which is broadcast to the images.
        repeated = self._observed.batches > 1 or (alone and cut.units != SINGLE)
        key = (
            cut.tensors,
            found.matrix.tobytes(),
            found.offset.tobytes(),
            len(found.basis),
            b"" if found.products is None else found.products.indices.tobytes(),
            image if repeated else "",
        )
        if key in self._thetas:
            return self._thetas[key]
        values = self._fold(new, cut, found) or self._apply(new, image, cut, found)
        # A unit's rows are contiguous in the values.
        leading = 0 if cut.rows == 1 else -1
        shape = np.array([leading, found.dimensions, len(found.basis)], np.int64)
        theta = new.node("Reshape", [values, new.constant("theta_shape", shape)], "theta")
        if repeated:
            theta = _repeat(new, theta, image, 3)
        self._thetas[key] = theta
        return theta

    def _fold(self, new: NewNodes, cut: Cut, found: ThetaMap) -> str | None:
        """Adds a Gemm that computes theta directly from the layer's input, with weights M·W and bias M·b + m.

        Returns None if the cut is not the output of such a layer.
        """
        layer = self._view.node_of(cut.tensors[0])
        if len(cut.tensors) > 1 or layer is None or layer.op_type != "Gemm" or found.products is not None:
            return None
        attributes = attributes_of(layer)
        parts = [self._view.initializers.get(name) for name in layer.input[1:] if name]
        if attributes.get("transA", 0) or cut.sizes[0] != cut.shapes[0][-1].factor:
            return None
        arrays = [
            numpy_helper.to_array(part)
            for part in parts
            if part is not None and part.data_location != TensorProto.EXTERNAL
        ]
        if len(arrays) != len(parts):
            return None
        weight = arrays[0] if attributes.get("transB", 0) else arrays[0].T  # [Q, features]
        bias = np.zeros(1) if len(arrays) < 2 else arrays[1].astype(np.float64) * attributes.get("beta", 1.0)
        if bias.size not in (1, len(weight)):
            return None
        bias = np.broadcast_to(bias.ravel(), len(weight))
        features = _single(new, layer.input[0], self._observed.dtypes.get(cut.tensors[0]))
        folded = _product(found.matrix * attributes.get("alpha", 1.0), weight)
        return _gemm(new, features, folded, found.matrix @ bias + found.offset)

    def _apply(self, new: NewNodes, image: str, cut: Cut, found: ThetaMap) -> str:
        """Adds theta = M · p + m on the cut's values; only a reshape if M is the identity and m is zero."""
        flat = []
        for number, (tensor, shape, size) in enumerate(zip(cut.tensors, cut.shapes, cut.sizes, strict=True)):
            name = _single(new, tensor, self._observed.dtypes.get(tensor))
            one = cut.shared[number] or cut.units == SINGLE
            whole = len(shape) == 2 and shape[1].factor == size and not (one and shape[0].factor != 1)
            if not whole:
                leading = 1 if one else 0 if shape[0] == cut.units else -1
                sizes = new.constant(f"size_{number}", np.array([leading, size], np.int64))
                name = new.node("Reshape", [name, sizes], f"parameters_{number}")
            flat.append(name)
        if len(flat) > 1 and self._observed.batches > 1 and cut.rows == 1 and not all(cut.shared):
            # Inputs with separate batch sizes: one of them may be 1, to be broadcast.
            flat = [_repeat(new, name, image, 2) for name in flat]
        elif any(cut.shared) and not all(cut.shared):
            sample = flat[cut.shared.index(False)]
            flat = [
                _repeat(new, name, sample, 2) if shared else name for name, shared in zip(flat, cut.shared, strict=True)
            ]
        values = flat[0] if len(flat) == 1 else new.node("Concat", flat, "parameters", axis=1)
        if found.products is not None:
            return _gemm(new, _products(new, values, found.products), found.matrix, found.offset)
        square = found.matrix.shape[0] == found.matrix.shape[1]
        if square and np.array_equal(found.matrix, np.eye(cut.size)) and not found.offset.any():
            return values
        return _gemm(new, values, found.matrix, found.offset)


def _products(new: NewNodes, values: str, products: Monomials) -> str:
    """Adds nodes that compute products [N, M] of values [N, Q]."""
    if (products.indices == products.parameters).any():
        one = new.constant("one", np.array(1, np.float32))
        values = new.node("Pad", [values, new.constant("pads", np.array([0, 0, 0, 1])), one], "with_one")
    factors = [
        new.node("Gather", [values, new.constant(f"factor_{number}", column)], f"factors_{number}", axis=1)
        for number, column in enumerate(np.ascontiguousarray(products.indices.T))
    ]
    result = factors[0]
    for number, factor in enumerate(factors[1:]):
        result = new.node("Mul", [result, factor], f"products_{number}")
    return result


def _repeat(new: NewNodes, values: str, like: str, rank: int) -> str:
    """Repeats ``values`` [1 or N, ...] to the batch size of ``like`` [N, ...]."""
    size = new.node("Shape", [like], "batch", start=0, end=1)
    ones = new.constant("ones", np.ones(rank - 1, np.int64))
    shape = new.node("Concat", [size, ones], "repeats", axis=0)
    return new.node("Expand", [values, shape], "repeated")


def _single(new: NewNodes, tensor: str, dtype: str | None) -> str:
    """Returns the name of ``tensor`` in float32; adds a cast if needed."""
    return tensor if dtype == "float" else new.node("Cast", [tensor], "single", to=TensorProto.FLOAT)


def _gemm(new: NewNodes, values: str, matrix: NDArray[Any], offset: NDArray[np.float64]) -> str:
    weight = new.constant("weight", np.asarray(matrix, np.float32))
    bias = new.constant("bias", offset.astype(np.float32))
    return new.node("Gemm", [values, weight, bias], "theta_values", name=new.name("gemm"), transB=1)


def _product(matrix: NDArray[np.float64], weight: NDArray[Any]) -> NDArray[np.float32]:
    """Returns ``matrix @ weight``, computed in float64 piece by piece, because a layer may have many features."""
    product = np.empty((len(matrix), weight.shape[1]), np.float32)
    for start in range(0, weight.shape[1], _PIECE):
        product[:, start : start + _PIECE] = matrix @ weight[:, start : start + _PIECE].astype(np.float64)
    return product
