"""ONNX files of a single sampler, for benchmarks, the conformance tables and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.basis import NO_CLAMP, Kind
from stn_infer.fusion.op import (
    DOMAIN,
    PROJECTIVE,
    SAMPLER,
    SPATIAL,
    attach_functions,
    node_attributes,
    quotient_attributes,
    sampler_attributes,
)
from stn_infer.samplers import SamplerSpec

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def op_file(
    kind: Kind,
    image_shape: Sequence[int],
    basis: Array,
    output_size: Sequence[int],
    sampler: SamplerSpec,
    *,
    opset: int = 18,
    dtype: str = "float32",
    batch: str | int = "batch",
    standard: bool = False,
    sampler_op: bool = False,
    w_min: float | None = None,
    offset: Sequence[float] = (),
) -> onnx.ModelProto:
    """Make a file with inputs ``input`` [N, C, *in] and ``theta``, and ``output`` [N, C, *output_size].

    ``theta`` is [N, D, K], that of a projective grid [N, D + 1, K].

    Args:
        kind: ``affine``, ``basis`` or ``projective``.
        image_shape: [C, *in].
        basis: [K, P], stored in float32.
        output_size: the output's spatial size, of P points.
        sampler: how the grid is read; its mode is spelled as ``opset`` requires.
        opset: of the standard operators.
        dtype: the type that the image is cast to before sampling; inputs and output stay float32.
        batch: N of the inputs.
        standard: compute the grid with standard operators and sample with GridSample instead of our op; only for the
            kinds ``affine`` and ``basis``.
        sampler_op: the same, and sample with ``stn::Sampler``.
        w_min: the lower bound of a projective grid's denominator, for version 2 of the op; None: version 1.
        offset: of version 2; empty: zeros.
    """
    output_size = tuple(output_size)
    constants = {"basis": np.ascontiguousarray(basis, np.float32)}
    image, warped = ("input", "output") if dtype == "float32" else ("image", "warped")
    if standard or sampler_op:
        op, domain = (SAMPLER, DOMAIN) if sampler_op else ("GridSample", "")
        settings = sampler_attributes(sampler, opset) if sampler_op else sampler.attributes(opset)
        constants["shape"] = np.array([-1, *output_size, len(output_size)], np.int64)
        nodes = [
            helper.make_node("MatMul", ["theta", "basis"], ["points"]),
            helper.make_node("Transpose", ["points"], ["transposed"], perm=[0, 2, 1]),
            helper.make_node("Reshape", ["transposed", "shape"], ["grid"]),
            helper.make_node(op, [image, "grid"], [warped], name="sampler", domain=domain, **settings),
        ]
    else:
        attributes = node_attributes(kind, output_size, sampler, opset)
        if w_min is not None:
            attributes |= quotient_attributes(len(output_size), w_min, offset)
        op_type = PROJECTIVE if kind == "projective" else SPATIAL
        general = w_min is not None or bool(offset) or len(output_size) == 3 or len(basis) != 3
        if kind == "projective" and general:
            attributes |= quotient_attributes(len(output_size), NO_CLAMP if w_min is None else w_min, offset)
        inputs = [image, "theta", "basis"]
        nodes = [helper.make_node(op_type, inputs, [warped], name="transformer", domain=DOMAIN, **attributes)]
    if dtype != "float32":
        nodes.insert(0, helper.make_node("Cast", ["input"], [image], to=_TYPES[dtype]))
        nodes.append(helper.make_node("Cast", [warped], ["output"], to=TensorProto.FLOAT))
    rows = len(output_size) + (kind == "projective")
    shapes = {"input": image_shape, "theta": (rows, len(basis)), "output": (image_shape[0], *output_size)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape]) for name, shape in shapes.items()]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sampler", values[:2], values[2:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach_functions(model)
    return model


def run_op(
    kind: Kind,
    image: Array,
    theta: Array,
    basis: Array,
    output_size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    opset: int = 18,
    *,
    library: bool | None = None,
    w_min: float | None = None,
    offset: Sequence[float] = (),
) -> Array:
    """Run our op in float32 in onnxruntime: ``image`` [N, C, *in] is warped to [N, C, *output_size].

    Args:
        kind: as for :func:`op_file`.
        image: [N, C, *in], cast to float32.
        theta: [N, D, K], projective [N, D + 1, K]; cast to float32.
        basis: as for :func:`op_file`.
        output_size: as for :func:`op_file`.
        mode: in either spelling.
        padding_mode: the sampler's.
        align_corners: the sampler's.
        opset: as for :func:`op_file`.
        library: run the plugin library's kernel, or the function in the file; None: the library, if it is built.
        w_min, offset: as for :func:`op_file`.
    """
    sampler = SamplerSpec.of(mode, padding_mode, align_corners)
    model = op_file(kind, image.shape[1:], basis, output_size, sampler, opset=opset, w_min=w_min, offset=offset)
    onnx.checker.check_model(model)
    backend = OrtBackend(model.SerializeToString(), threads=1, plugin=library)
    try:
        return backend.run({"input": image.astype(np.float32), "theta": theta.astype(np.float32)})["output"]
    finally:
        backend.close()
