"""What several tests, and the conformance benchmark, need."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.op import DOMAIN, PROJECTIVE, SPATIAL, Kind, attach_functions, node_attributes
from stn_infer.samplers import spell_mode

Array = NDArray[Any]


@contextmanager
def nothing_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond ``size`` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_op(
    kind: Kind,
    image: Array,
    theta: Array,
    basis: Array,
    output_size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    opset: int = 18,
) -> Array:
    """Our op in float32, from a portable file of ``opset`` that holds nothing else, in onnxruntime.

    Args:
        kind: ``affine``, ``basis`` or ``projective``.
        image: [N, C, H, W] or [N, C, D, H, W].
        theta: [N, D, K]; projective [N, 3, 3].
        basis: [K, P].
        output_size: of P points.
        mode: in any spelling; the file has that of ``opset``.
        padding_mode, align_corners: the sampler's.
    """
    op_type = PROJECTIVE if kind == "projective" else SPATIAL
    attributes = node_attributes(kind, tuple(output_size), spell_mode(mode, opset), padding_mode, align_corners)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["input", "theta", "basis"], ["output"], domain=DOMAIN, **attributes)],
        "op",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *image.shape[1:]]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["batch", *theta.shape[1:]]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", image.shape[1], *output_size])],
        [numpy_helper.from_array(np.ascontiguousarray(basis, dtype=np.float32), "basis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach_functions(model)
    onnx.checker.check_model(model)
    backend = OrtBackend(model.SerializeToString(), threads=1)
    try:
        return backend.run({"input": image.astype(np.float32), "theta": theta.astype(np.float32)})["output"]
    finally:
        backend.close()
