"""The reference for an ONNX file without its source: the graph evaluated in float64.

Every float32, float16 and bfloat16 value in the file becomes a double, so that no cast rounds. ONNX's reference
operators evaluate the nodes. Convolutions and pooling run in PyTorch's float64, because ONNX's are Python loops.
Samplers run in :mod:`stn_infer.reference.sampling`. The ops of domain ``stn`` are computed from their definition, not
from the functions in the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from stn_infer.arrays import Array
from stn_infer.errors import ModelError, one_line
from stn_infer.extras import require
from stn_infer.fusion.basis import Kind, basis_of, canonical_basis, map_points
from stn_infer.fusion.op import DOMAIN, LATTICE, PROJECTIVE, SAMPLER, SPATIAL, TENSOR_PRODUCT, op_of
from stn_infer.fusion.samplers import SamplerNode
from stn_infer.proto.retype import doubled
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import given_inputs
from stn_infer.reference.calls import SamplerCall
from stn_infer.reference.taps import tap, without_other_functions
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import sample


class OnnxReference:
    """An ONNX graph in float64 that records sampler calls; a :class:`~stn_infer.reference.model.ReferenceModel`.

    Raises:
        ModelError: the graph has an operator without a float64 implementation.
        MissingDependencyError: PyTorch is not installed.
    """

    dtype = "float64"

    def __init__(self, model: onnx.ModelProto, name: str = "the file") -> None:
        from onnx.reference import ReferenceEvaluator

        require("torch", "the evaluation of a file in float64 needs")  # without it, every convolution would fail
        self.model = model
        self._name = name
        self._inputs = [value.name for value in given_inputs(model.graph)]
        self._state = _State()
        wide = doubled(without_other_functions(model))  # removes stn functions: these ops have their own definition
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._evaluator = ReferenceEvaluator(wide, new_ops=_operators(self._state))
        except Exception as error:  # onnx may raise any exception
            raise ModelError(f"the graph cannot be evaluated in float64: {one_line(error)}") from error

    @property
    def title(self) -> str:
        """See :class:`~stn_infer.reference.model.ReferenceModel`."""
        return f"{self._name} evaluated in float64"

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[SamplerCall]]:
        """Run the graph; see :meth:`stn_infer.reference.model.Reference.run`.

        Raises:
            ModelError: an operator fails.
        """
        self._state.calls, self._state.warps = [], list(warps or ())
        wide = [value.astype(np.float64) if value.dtype.kind == "f" else value for value in inputs]
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                outputs = self._evaluator.run(None, dict(zip(self._inputs, wide, strict=True)))
        except Exception as error:
            raise ModelError(f"the graph cannot be evaluated in float64: {one_line(error)}") from error
        return [np.asarray(output) for output in outputs], list(self._state.calls)


class OrtReference:
    """The reference where float64 is not available: onnxruntime in float32, without optimizations, on one thread.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """

    dtype = "float32"

    def __init__(self, model: onnx.ModelProto, name: str = "the file") -> None:
        self._name = name
        self._tapped = tap(model, inlined=True)
        self._session = open_session(Stored(self._tapped.model), label=name, optimized=False, threads=1)

    @property
    def title(self) -> str:
        """See :class:`~stn_infer.reference.model.ReferenceModel`."""
        return f"{self._name} in float32 onnxruntime without optimizations"

    def run(
        self, inputs: Sequence[Array], warps: Sequence[Array | None] | None = None
    ) -> tuple[list[Array], list[SamplerCall]]:
        """Run the file; ``warps`` are ignored, because a session cannot replace results.

        Raises:
            ModelError: onnxruntime fails.
        """
        values = self._session.run(dict(zip(self._session.inputs, inputs, strict=True)))
        run = self._tapped.read(dict(zip(self._session.outputs, values, strict=True)))
        return list(run.outputs.values()), list(run.calls)


# ---- operators ---------------------------------------------------------------------------------------------------


class _State:
    """The recorded sampler calls, and the warped images that replace their results."""

    def __init__(self) -> None:
        self.calls: list[SamplerCall] = []
        self.warps: list[Array | None] = []

    def sample(self, image: Array, grid: Array, spec: SamplerSpec) -> Array:
        index, warped = len(self.calls), sample(spec, image, grid)
        self.calls.append(SamplerCall.of(SamplerNode(spec), image, grid, warped))
        given = self.warps[index] if index < len(self.warps) else None
        return given.astype(np.float64) if given is not None and given.shape == warped.shape else warped


def _operators(state: _State) -> list[Any]:
    """Operators that replace ONNX's own, or that ONNX does not have."""
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops._op_list import load_op

    class GridSample(OpRun):
        op_domain = ""

        def _run(self, image: Array, grid: Array, mode: Any = None, padding_mode: Any = None, **rest: Any) -> Any:
            spec = SamplerSpec.of(mode or "linear", padding_mode or "zeros", bool(rest.get("align_corners")))
            return (state.sample(image, grid, spec),)

    class AffineGrid(OpRun):
        op_domain = ""

        def _run(self, theta: Array, size: Array, align_corners: Any = None) -> Any:
            output_size = [int(length) for length in size[2:]]
            return (map_points(theta, canonical_basis(output_size, bool(align_corners)), output_size),)

    found: list[Any] = [GridSample, AffineGrid]
    sampler = {"op_domain": DOMAIN, "_run": GridSample._run, "op_schema": _schema(SAMPLER, ("input", "grid"))}
    found.append(type(SAMPLER, (OpRun,), sampler))
    found += [_transformer(OpRun, name, inputs, state) for name, inputs in _CONSTANTS.items()]
    found += [_by_torch(load_op("", name, None), name) for name in ("Conv", "MaxPool", "AveragePool")]
    return found


# The inputs of each op after theta.
_CONSTANTS = {
    SPATIAL: ("basis",),
    PROJECTIVE: ("basis",),
    TENSOR_PRODUCT: ("planes", "rows", "columns"),
    LATTICE: ("index", "weight"),
}
_KINDS: dict[str, Kind] = {op_of(kind): kind for kind in ("projective", "tensor_product", "lattice")}


def _transformer(base: Any, name: str, constants: Sequence[str], state: _State) -> Any:
    def _run(self: Any, image: Array, theta: Array, *arrays: Array, **attributes: Any) -> Any:
        size = tuple(int(length) for length in attributes["grid_shape"][1:-1])
        kind = _KINDS[name] if name in _KINDS else attributes["kind"]
        mesh = canonical_basis(size)
        if kind == "affine" and mesh.shape == arrays[0].shape:
            arrays = (mesh,)
        spec = SamplerSpec.of(attributes["mode"], attributes["padding_mode"], attributes["align_corners"])
        return (state.sample(image, basis_of(kind, arrays, size, attributes).exact().grid(theta), spec),)

    # onnx's evaluator passes a node's attributes by name; the schema declares them
    schema = _schema(name, ("input", "theta", *constants))
    return type(name, (base,), {"op_domain": DOMAIN, "_run": _run, "op_schema": schema})


def _schema(name: str, inputs: Sequence[str]) -> Any:
    from onnx.defs import OpSchema

    kinds = OpSchema.AttrType
    attributes = {
        "kind": kinds.STRING,
        "mode": kinds.STRING,
        "padding_mode": kinds.STRING,
        "align_corners": kinds.INT,
        "grid_shape": kinds.INTS,
        "theta_shape": kinds.INTS,
        "lattice_shape": kinds.INTS,
        "plugin_namespace": kinds.STRING,
        "plugin_version": kinds.STRING,
        "w_min": kinds.FLOAT,
        "offset": kinds.FLOATS,
    }
    return OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(item, "tensor(int32)" if item == "index" else "tensor(double)") for item in inputs
        ],
        outputs=[OpSchema.FormalParameter("output", "tensor(double)")],
        attributes=[OpSchema.Attribute(key, kind, required=False) for key, kind in attributes.items()],
    )


def _by_torch(base: Any, name: str) -> Any:
    """``Conv`` or a pooling in PyTorch's float64; cases that PyTorch cannot express run in ONNX's loops."""

    class Operator(base):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Array, *others: Any, **attributes: Any) -> Any:
            found = None
            if x.dtype == np.float64 and len(self.output) == 1:
                found = _convolve(x, others, attributes) if name == "Conv" else _pool(name, x, attributes)
            return super()._run(x, *others, **attributes) if found is None else (found,)

    Operator.__name__ = name
    return Operator


def _padding(attributes: Any, rank: int) -> list[int] | None:
    """The padding of each axis in PyTorch's order, last axis first; None if it depends on the input's size."""
    if (attributes.get("auto_pad") or "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads = list(attributes.get("pads") or [0] * 2 * rank)
    return [int(pads[axis + side]) for axis in reversed(range(rank)) for side in (0, rank)]


def _convolve(x: Array, others: Any, attributes: Any) -> Array | None:
    import torch
    import torch.nn.functional as F

    rank = x.ndim - 2
    padding = _padding(attributes, rank)
    if padding is None or rank not in (1, 2, 3):
        return None
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    weight, *rest = others
    bias = torch.from_numpy(rest[0]) if rest and rest[0] is not None else None
    result = function(
        F.pad(torch.from_numpy(np.ascontiguousarray(x)), padding),
        torch.from_numpy(np.ascontiguousarray(weight)),
        bias,
        stride=tuple(attributes.get("strides") or [1] * rank),
        dilation=tuple(attributes.get("dilations") or [1] * rank),
        groups=int(attributes.get("group") or 1),
    )
    return np.asarray(result.numpy())


def _pool(name: str, x: Array, attributes: Any) -> Array | None:
    import torch
    import torch.nn.functional as F

    rank = x.ndim - 2
    padding = _padding(attributes, rank)
    plain = not attributes.get("ceil_mode") and not attributes.get("storage_order")
    dilations = tuple(attributes.get("dilations") or [1] * rank)
    if padding is None or rank not in (1, 2, 3) or not plain:
        return None
    image = torch.from_numpy(np.ascontiguousarray(x))
    kernel, stride = tuple(attributes["kernel_shape"]), tuple(attributes.get("strides") or [1] * rank)
    if name == "MaxPool":
        padded = F.pad(image, padding, value=-float("inf"))
        functions = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
        return np.asarray(functions[rank - 1](padded, kernel, stride, dilation=dilations).numpy())
    if any(padding) or any(size != 1 for size in dilations):
        return None
    averages = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    return np.asarray(averages[rank - 1](image, kernel, stride).numpy())
