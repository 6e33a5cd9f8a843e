"""onnxruntime's variants: which file, with the plugin library or without, with IO binding, in a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stn_infer.arrays import Array
from stn_infer.backends.device import Device
from stn_infer.backends.ort import OrtBackend
from stn_infer.benchmarking.harness.cuda import EventTimer, require_gpu
from stn_infer.benchmarking.harness.variant import BoundVariant, Clock, Inspection, OpenVariant
from stn_infer.benchmarking.prepare.case import Setup, onnx_file
from stn_infer.errors import ModelError
from stn_infer.proto.session import import_onnxruntime, reason


class OrtVariant(OpenVariant):
    """A session in onnxruntime."""

    def __init__(self, name: str, setup: Setup) -> None:
        device, method = setup.device, setup.method
        if name == "ort-binding" and method.boundary == "device":
            raise ModelError(
                "at the device boundary every onnxruntime variant binds its inputs and outputs: see ort-fused"
            )
        self.device, self.method = device, method
        self.graph = name.endswith("graph")
        self.bound = self.graph or name == "ort-binding" or method.boundary == "device"
        self.stream: Any = None
        self.cuts = setup.prepared.cuts
        self._bindings = 0
        cuda_options: dict[str, Any] = {"enable_cuda_graph": "1"} if self.graph else {}
        if device != "cpu" and method.boundary == "device":
            self.stream = _stream(device)
            cuda_options["user_compute_stream"] = str(self.stream.cuda_stream)
        # Where variants share a process, threads of a session that is not running must sleep: they would take the cores
        # of the next variant.
        self.file = Path(onnx_file(name, setup.prepared))
        self.open = partial(
            OrtBackend,
            device=device,
            threads=setup.threads,
            spin="always" if method.separate else "while-running",
            plugin=True if "fused" in name else None if name == "ort-binding" else False,
        )
        self.backend = self.open(self.file, cuda_options=cuda_options)

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return _BoundArrays(self, inputs) if self.bound else _Arrays(self, inputs)

    def graph_number(self) -> str:
        """A number for the CUDA graph of one binding.

        A session keeps one graph per number and replays it regardless of the bindings: another batch size would get the
        outputs of the first. 0 is onnxruntime's own.
        """
        self._bindings += 1
        return str(self._bindings)

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        found = {**self.backend.describe(), "IO binding": "yes" if self.bound else "no"}
        if self.device != "cpu":
            found |= {"TF32": "off", "CUDA graph": "yes" if self.graph else "no"}
            if self.method.boundary == "host":
                found["copies"] = "by onnxruntime, from memory that is not pinned"
            elif self.graph:
                found["waits"] = "releases of onnxruntime before mid-2026 wait after each replay, between the events"
        return found

    def close(self) -> None:
        """Release the session."""
        self.backend.close()


class _Arrays(BoundVariant):
    """Arrays in, arrays out: ``session.run``."""

    def __init__(self, variant: OrtVariant, inputs: Sequence[Array]) -> None:
        self._variant = variant
        self.concurrent = True
        backend = variant.backend
        self._feeds = dict(zip((spec.name for spec in backend.inputs), inputs, strict=True))

    def call(self) -> object:
        return self._variant.backend.run(self._feeds)

    def outputs(self) -> Sequence[Array]:
        return list(self._variant.backend.run(self._feeds).values())

    def inspect(self) -> Inspection:
        """By onnxruntime's profiler, in a session of its own."""
        from stn_infer.benchmarking.variants.ort_stages import inspect_session, named_nodes

        variant = self._variant
        fused = variant.backend.describe()["plugin"] != "none"
        return inspect_session(
            variant.open, named_nodes(variant.file, fused), self._feeds, variant.cuts, variant.device
        )


class _BoundArrays(_Arrays):
    """Inputs and outputs bound to memory that stays: nothing is allocated in a call.

    At the host boundary on a GPU, a call copies the inputs there and the outputs back.
    """

    def __init__(self, variant: OrtVariant, inputs: Sequence[Array]) -> None:
        super().__init__(variant, inputs)
        self.concurrent = False
        self.alone = "inputs and outputs that are bound serve one caller"
        ort = import_onnxruntime()
        self._session = variant.backend.session
        target = Device.parse(variant.device)
        place = (target.kind, target.index)
        names = [spec.name for spec in variant.backend.outputs]
        shaped = _shapes(variant, self._feeds)
        try:
            self._inputs = {
                name: ort.OrtValue.ortvalue_from_numpy(array, *place) for name, array in self._feeds.items()
            }
            self._outputs = [
                ort.OrtValue.ortvalue_from_shape_and_type(list(value.shape), value.dtype.type, *place)
                for value in shaped
            ]
            self._binding = self._session.raw.io_binding()
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)
            for name, value in zip(names, self._outputs, strict=True):
                self._binding.bind_ortvalue_output(name, value)
        except Exception as error:
            raise ModelError(f"onnxruntime cannot bind inputs and outputs: {reason(error)}") from error
        self._options = ort.RunOptions()
        if variant.graph:
            self._options.add_run_config_entry("gpu_graph_id", variant.graph_number())
        self._timer: EventTimer | None = None
        if variant.stream is not None:
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            self._timer = EventTimer(variant.device, variant.method.l2 == "flushed", variant.stream)
        self._copies = variant.device != "cpu" and variant.method.boundary == "host"

    def _compute(self) -> None:
        try:
            self._session.raw.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise self._session.failure(error, self._feeds) from error

    def call(self) -> object:
        if self._copies:
            for name, value in self._inputs.items():
                value.update_inplace(self._feeds[name])
            self._compute()
            return [value.numpy() for value in self._outputs]
        self._compute()
        if self._variant.stream is not None:
            self._variant.stream.synchronize()
        return self._outputs

    def burst(self, count: int, clock: Clock) -> list[float]:
        if self._timer is not None:
            return self._timer.burst(self._compute, count)
        return super().burst(count, clock)

    def outputs(self) -> Sequence[Array]:
        self.call()
        return [value.numpy() for value in self._outputs]


def _shapes(variant: OrtVariant, feeds: dict[str, Array]) -> list[Any]:
    """Outputs of another session: a captured graph cannot allocate its own, and the first call is not timed yet."""
    backend = variant.open(variant.file)
    try:
        return backend.session.run(feeds)
    finally:
        backend.close()


def _stream(device: str) -> Any:
    """A PyTorch stream for onnxruntime to use, so that events can time it.

    Raises:
        MissingDependencyError: this PyTorch has no CUDA.
    """
    import torch

    require_gpu(device)
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
