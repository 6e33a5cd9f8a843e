"""The OpenVINO backend: runs ONNX models on the CPU.

OpenVINO knows no model-local functions. Where its extension is built (:mod:`~stn_infer.backends.openvino.extension`),
the plugin library's kernels run this package's ops, other than the two for lattices; those, and without the extension
all, are inlined as plain operators.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import (
    check_inputs,
    fixed_batch,
    free_batch,
    run_in_fixed_batches,
    run_on_empty_axes,
    with_batch_axes,
)
from stn_infer.backends.device import Device
from stn_infer.backends.openvino.extension import OPS, find
from stn_infer.backends.openvino.runtime import OpenVino, core_with, load_openvino, reason
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.proto.traversal import given_inputs, walk_back

if TYPE_CHECKING:
    import onnx

_DTYPES: dict[str, Any] = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "boolean": np.bool_,
    **{f"{kind[0]}{bits}": np.dtype(f"{kind}{bits}").type for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}

#: Operators whose output may be their first input as it is.
_COPIES = {"Cast", "CastLike", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze"} | {
    *("Tile", "Transpose", "Unsqueeze"),
}


@dataclass(frozen=True)
class NodeTime:
    """The time of one node in one run: its name, its operator, the implementation that ran it, milliseconds."""

    name: str
    operator: str
    implementation: str
    ms: float


class OpenVinoBackend:
    """An ONNX model in OpenVINO; a :class:`~stn_infer.backends.base.Backend`.

    All arithmetic is in float32 or in the file's own types; OpenVINO's default is a half precision on some processors.

    Args:
        model: a file, or its bytes. A file may store its weights in external data.
        device: ``cpu``.
        threads: threads per call; None: OpenVINO's choice.
        callers: calls that run side by side, each on its own threads; None: with one thread per call, as many as there
            are processors, otherwise one.
        plugin: whether the extension runs the model's spatial transformers by the plugin library's kernels instead of
            OpenVINO's own operators; None: if it is built.
        label: the model's name in messages; None: the file's name, or ``the model``.
        profile: measure the time of each node, for :meth:`profile`.

    Raises:
        UsageError: another device.
        ModelError: the file is missing or unreadable, or OpenVINO rejects it.
        MissingDependencyError: OpenVINO is not installed, or the extension was requested and is not built.
    """

    name = "openvino"

    def __init__(
        self,
        model: Path | bytes,
        device: str = "cpu",
        threads: int | None = None,
        *,
        callers: int | None = None,
        plugin: bool | None = None,
        label: str | None = None,
        profile: bool = False,
    ) -> None:
        if Device.parse(device).kind != "cpu":
            raise UsageError(f"backend openvino runs on the CPU: device is cpu, not {device!r}")
        self.device = "cpu"
        self._label = label or (model.name if isinstance(model, Path) else "the model")
        self._openvino: OpenVino = load_openvino()
        self._threads = threads
        self._plugin = None if plugin is False else _extension(self._openvino, required=plugin is True)
        plain, source = _readable(model, self._label, OPS if self._plugin else ())
        try:
            core = core_with(self._openvino, self._plugin)
            read = core.read_model(source)
            options = {**_configuration(threads, callers), "PERF_COUNT": profile}
            self._compile: Callable[[], Any] = partial(core.compile_model, read, "CPU", options)
            self._compiled: Any = self._compile()
        except Exception as error:  # its exceptions have no common base class
            raise ModelError(f"OpenVINO rejects {self._label}: {reason(error)}") from error
        self._share = not _returns_input(plain.graph)
        self._output_names = [value.name for value in plain.graph.output]
        # a port may have the names of several tensors, where a node between them was removed
        ports = list(self._compiled.inputs)
        places = {name: place for place, port in enumerate(ports) for name in port.get_names()}
        self._places = {value.name: places[value.name] for value in given_inputs(plain.graph)}
        shapes = {
            value.name: [dim.dim_param or dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
            for value in (*plain.graph.input, *plain.graph.output)
        }
        axes = {name: shape[0] for name, shape in shapes.items() if shape and isinstance(shape[0], str)}
        inputs = with_batch_axes(
            [_spec(name, ports[place], axes.get(name, "batch")) for name, place in self._places.items()],
            [shapes[name] for name in self._places],
        )
        outputs = [
            _spec(name, port, axes.get(name, "batch"))
            for name, port in zip(self._output_names, self._compiled.outputs, strict=True)
        ]
        self._fixed_batch = fixed = fixed_batch(inputs, self._label)
        self.inputs: tuple[TensorSpec, ...] = free_batch(inputs, fixed)
        self.outputs: tuple[TensorSpec, ...] = free_batch(outputs, fixed)
        self.metadata = ModelMetadata.from_props({entry.key: entry.value for entry in plain.metadata_props})
        self._idle: list[Any] = []  # requests that no caller uses
        self._failed = False
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name; see :meth:`stn_infer.backends.base.Backend.run`.

        Raises:
            InputError: the inputs do not match ``self.inputs``.
            ModelError: OpenVINO failed, or the backend is closed.
        """
        batch = check_inputs(self.inputs, inputs)
        empty = run_on_empty_axes(self.run, self.inputs, inputs)
        if empty is not None:
            return empty
        if self._fixed_batch is not None and batch != self._fixed_batch:
            return run_in_fixed_batches(self._run, inputs, batch, self._fixed_batch)
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            if self._compiled is None:
                raise ModelError("this backend is closed; open it again")
            if self._failed:  # it keeps shapes of the call that failed, and would refuse others (2026.4)
                self._compiled, self._failed = self._compile(), False
            compiled = self._compiled
            request = self._idle.pop() if self._idle else None
        try:
            request = request or compiled.create_infer_request()
            given = {self._places[name]: np.asarray(value, order="C") for name, value in inputs.items()}
            found = request.infer(given, share_inputs=self._share)
        except Exception as error:
            with self._lock:
                self._failed = True
                self._idle.clear()
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise ModelError(f"OpenVINO fails while running {self._label} on {shapes}: {reason(error)}") from error
        values = {name: np.asarray(found[place]) for place, name in enumerate(self._output_names)}
        with self._lock:
            if compiled is self._compiled and not self._failed:
                self._idle.append(request)
        return values

    def profile(self, inputs: Mapping[str, Array]) -> list[NodeTime]:
        """Run once more, and return the time of each node that was executed; for a backend opened with ``profile``."""
        request = self._compiled.create_infer_request()
        request.infer({self._places[name]: value for name, value in inputs.items()})
        return [
            NodeTime(entry.node_name, entry.node_type, entry.exec_type, entry.real_time.total_seconds() * 1e3)
            for entry in request.profiling_info
            if "EXECUTED" in str(entry.status)
        ]

    def describe(self) -> dict[str, str]:
        """Runtime and version, device, threads, the extension."""
        return {
            "runtime": "OpenVINO",
            "version": self._openvino.release,
            "device": self.device,
            "threads": str(self._threads or "OpenVINO's choice"),
            "plugin": "none" if self._plugin is None else self._plugin.name,
        }

    def close(self) -> None:
        """Release the model."""
        self._idle.clear()
        self._compiled = None


def _extension(openvino: OpenVino, required: bool) -> Path | None:
    """The extension, if it is built.

    Raises:
        MissingDependencyError: it is required and is not built.
    """
    try:
        return find(openvino)
    except MissingDependencyError:
        if required:
            raise
    return None


def _readable(
    model: Path | bytes, label: str, kept: Iterable[tuple[str, str]]
) -> tuple[onnx.ModelProto, str | io.BytesIO]:
    """The model without functions other than ``kept``, and what OpenVINO reads: its bytes, or the file as it is.

    Raises:
        ModelError: it is missing or damaged, or it is larger than 2 GB and has functions.
    """
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    from stn_infer.proto.load import embed, external_tensors, parse_model, read_graph
    from stn_infer.repairs.inlined import inlined

    graph = read_graph(model) if isinstance(model, Path) else parse_model(model)
    plain = inlined(graph, keep=kept)
    if isinstance(model, Path):
        places = external_tensors(plain, model.parent)
        if places and plain is graph and model.suffix == ".onnx":
            return plain, str(model)
        for tensor, place in places:
            embed(tensor, place)
    try:
        return plain, io.BytesIO(plain.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"{label} is larger than 2 GB and has functions, which OpenVINO does not know; "
            "write it with `stn-infer optimize --functions inline`"
        ) from error


def _returns_input(graph: onnx.GraphProto) -> bool:
    """Whether an output may be an input as it is.

    OpenVINO then writes the output to the input's memory, and crashes if that memory is the caller's (2026.4).
    """
    before = {name: node.input[0] for node in graph.node if node.op_type in _COPIES for name in node.output}
    inputs = {value.name for value in graph.input}
    return any(not inputs.isdisjoint(walk_back([value.name], partial(_before, before))) for value in graph.output)


def _before(before: Mapping[str, str], name: str) -> tuple[str, ...]:
    return (before[name],) if name in before else ()


def _configuration(threads: int | None, callers: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if callers is None and threads == 1:
        callers = len(os.sched_getaffinity(0))
    if threads is None or callers in (None, 1):
        return found | {"PERFORMANCE_HINT": "LATENCY"} | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})
    # a stream has threads of its own, and calls at once are spread over the streams
    return found | {"NUM_STREAMS": callers, "INFERENCE_NUM_THREADS": callers * threads, "ENABLE_CPU_PINNING": False}


def _spec(name: str, port: Any, batch: str) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise ModelError(f"{name!r} has type {kind} in OpenVINO; expected a type that numpy has")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise ModelError(f"OpenVINO cannot tell the number of dimensions of {name!r}")
    sizes = tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
    return TensorSpec(name, sizes, np.dtype(_DTYPES[kind]), batch)
