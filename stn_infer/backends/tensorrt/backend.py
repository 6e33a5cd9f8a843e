"""The TensorRT backend: runs engines from ``stn-infer build``, or built from a model through the engine cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import (
    check_inputs,
    fixed_batch,
    free_batch,
    is_batched,
    own_axes,
    run_within,
)
from stn_infer.backends.device import Device
from stn_infer.backends.pixels import as_input, interleaved, normalize_on_device, pixel_input
from stn_infer.backends.tensorrt.compatibility import check_usable, library_of
from stn_infer.backends.tensorrt.engine_cache import Sidecar, load_engine, profile_texts
from stn_infer.backends.tensorrt.options import VERSION_COMPATIBLE
from stn_infer.backends.tensorrt.plan import check_header
from stn_infer.backends.tensorrt.runtime import (
    Gpu,
    RuntimeName,
    TensorRT,
    current_gpu,
    load_runtime,
    make_logger,
    runtime_name,
)
from stn_infer.backends.tensorrt.selection import Rows, nearest
from stn_infer.budget import Budget
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess

if TYPE_CHECKING:
    import torch

    from stn_infer.backends.slots import Slot, Streams
    from stn_infer.backends.tensorrt.executor import Executor, IoTensor
    from stn_infer.backends.tensorrt.options import BuildOptions


def open_engine(path: Path, runtime: str = "tensorrt", device: str = "cuda:0") -> TensorRTBackend:
    """Open an engine file; its sidecar, if there is one, describes it.

    Raises:
        ModelError: the engine is truncated, or was built for another runtime, version, GPU or plugin library.
        UsageError, MissingDependencyError: as :func:`open_tensorrt`.
    """
    chosen, target = _chosen(runtime, device)
    engine, sidecar = load_engine(path)
    return _opened(path.name, engine, sidecar, chosen, target)


def open_tensorrt(
    model: Path | bytes,
    runtime: str = "tensorrt",
    device: str = "cuda:0",
    options: BuildOptions | None = None,
    *,
    name: str | None = None,
    budget: Budget | None = None,
) -> TensorRTBackend:
    """Build a model's engine, or take it from the cache, and open it.

    Args:
        model: an ONNX file, or the bytes of one.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        device: ``cuda`` or ``cuda:N``.
        options: how to build it; None: the defaults of ``build``.
        name: the model's name in messages; None: from its file or graph.
        budget: limits for parsing the model before an engine is built; None: the environment's.

    Raises:
        UsageError: an unknown runtime, or a device that is not a GPU.
        MissingDependencyError: the runtime, a GPU or the plugin library is missing.
        ModelError: the model cannot be built.
    """
    from stn_infer.backends.tensorrt.engine import engine_for
    from stn_infer.backends.tensorrt.options import BuildOptions

    chosen, target = _chosen(runtime, device)
    built = engine_for(model, options or BuildOptions(runtime=chosen, device=target.index), name=name, budget=budget)
    return _opened(built.sidecar.source, built.data, built.sidecar, chosen, target)


def _chosen(runtime: str, device: str) -> tuple[RuntimeName, Device]:
    chosen = runtime_name(runtime)
    target = Device.parse(device)
    if target.kind != "cuda":
        raise UsageError(f"engines run on GPUs: device is cuda or cuda:N, not {device!r}")
    return chosen, target


def _opened(label: str, engine: bytes, sidecar: Sidecar | None, chosen: RuntimeName, target: Device) -> TensorRTBackend:
    if sidecar is not None and sidecar.key.runtime != chosen:
        raise ModelError(
            f"{label} is a {sidecar.key.runtime} engine, not a {chosen} engine; use --backend {sidecar.key.runtime}"
        )
    loaded = load_runtime(chosen)
    gpu = current_gpu(target.index)
    if sidecar is None:
        check_header(engine, label, loaded)
    else:
        check_usable(label, sidecar, loaded, gpu)

    from stn_infer.backends.slots import CudaStreams
    from stn_infer.backends.tensorrt.cuda_stream import CudaDevice
    from stn_infer.backends.tensorrt.executor import Executor

    logger = make_logger(loaded.module)
    register_plugins(label, sidecar, loaded, logger)
    device = CudaDevice(target.index)
    host_code = sidecar is not None and VERSION_COMPATIBLE in sidecar.key.flags
    executor = Executor(loaded, engine, device, logger, host_code=host_code)
    metadata = ModelMetadata() if sidecar is None else ModelMetadata.from_props(sidecar.metadata)
    fused, axes = (len(sidecar.fused), sidecar.batch_axes) if sidecar is not None else (0, {})
    opened = Opened(label, loaded, gpu, str(target), fused, axes)
    return TensorRTBackend(executor, opened, metadata, CudaStreams(device.device))


def register_plugins(label: str, sidecar: Sidecar | None, runtime: TensorRT, logger: Any) -> None:
    """Register the plugin library that an engine was built with; for an engine without a sidecar, ours if it is there.

    Raises:
        MissingDependencyError: the engine needs the plugin library, which is not built.
        ModelError: the plugin library is not the one that the engine was built with, or TensorRT rejects it.
    """
    from stn_infer import plugin
    from stn_infer.backends.tensorrt.builder import load_plugins

    if sidecar is None:
        if runtime.name == "tensorrt":
            with suppress(MissingDependencyError, ModelError):  # the engine may need none
                load_plugins(runtime.module, plugin.library_path(), logger)
    elif sidecar.key.plugin_sha256:
        load_plugins(runtime.module, library_of(label, sidecar.key), logger)


@dataclass(frozen=True)
class Opened:
    """An opened engine's name, runtime and device.

    Attributes:
        label: the engine or the model, as given by the user.
        runtime, gpu, device: what the engine runs on; ``device`` is PyTorch's name of ``gpu``.
        fused: the number of nodes that the plugin runs.
        batch_axes: the names of axes 0, from the engine's sidecar.
    """

    label: str
    runtime: TensorRT
    gpu: Gpu
    device: str
    fused: int
    batch_axes: Mapping[str, str] = field(default_factory=dict)


class TensorRTBackend:
    """An engine on a GPU; a :class:`~stn_infer.backends.base.Backend`.

    ``run`` takes batches of any size: one above the profiles' maximum is split, another one that is in no profile is
    padded, each batch axis by itself. Calls from several threads overlap (``slots.py``), and ``run_pixels`` normalizes
    images on the GPU. ``executor`` runs PyTorch tensors that are already there, without copies.
    """

    takes_pixels = full_batches = True

    def __init__(self, executor: Executor, opened: Opened, metadata: ModelMetadata, streams: Streams) -> None:
        from stn_infer.backends.slots import SLOTS, Slots

        self.in_flight = SLOTS
        self._slots = Slots(streams)
        self.name: str = opened.runtime.name
        self.device = opened.device
        self.metadata = metadata
        self.executor = executor
        axes = _axes(executor, opened.batch_axes)
        specs = [_spec(tensor, axes) for tensor in executor.inputs]
        self.inputs: tuple[TensorSpec, ...] = free_batch(specs, fixed_batch(specs, opened.label))
        self.outputs: tuple[TensorSpec, ...] = tuple(_output(_spec(tensor, axes)) for tensor in executor.outputs)
        self._opened = opened
        of_outputs = {spec.batch for spec in self.outputs}
        batched = {spec.name: spec.batch for spec in self.inputs if is_batched(spec)}
        self._rows = Rows(executor.profiles, batched, of_outputs if len(of_outputs) == 1 else ())
        self._closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name; see :meth:`stn_infer.backends.base.Backend.run`.

        Raises:
            InputError: the inputs do not match ``self.inputs``, or a shape is outside of the profiles.
            ModelError: TensorRT failed, or the backend is closed.
        """
        check_inputs(self.inputs, inputs)
        shapes = {name: array.shape for name, array in inputs.items()}
        limits = partial(self._rows.limits, shapes)
        return run_within(self._run, self.inputs, self.outputs, inputs, limits)

    def run_pixels(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        """Outputs by name for images; see :meth:`stn_infer.backends.base.PixelBackend.run_pixels`.

        Raises:
            InputError, ModelError: as for :meth:`run`.
        """
        spec, (tensor,) = pixel_input(self.inputs, pixels), self.executor.inputs
        as_it_is = len(pixels) and nearest(self.executor.profiles, {spec.name: pixels.shape}) is not None
        if not as_it_is or not tensor.dtype.is_floating_point:
            return self.run(as_input(spec, pixels, preprocess))
        check_inputs(self.inputs, {spec.name: np.broadcast_to(np.zeros((), spec.dtype), pixels.shape)})
        array, last = interleaved(pixels)

        def compute(tensors: Sequence[torch.Tensor], slot: Slot) -> Sequence[torch.Tensor]:
            values = slot.memory("values", pixels.shape, tensor.dtype)
            normalize_on_device(tensors[0].permute(0, 3, 1, 2) if last else tensors[0], preprocess, values)
            return self._execute([values])

        return self._named(self._slots.run([array], compute))

    def describe(self) -> dict[str, str]:
        """Runtime and version, GPU, what runs the spatial transformers, the profiles if there are several, and whether
        CUDA graphs are used.
        """
        from stn_infer.backends.graphs import graphs_text

        texts = profile_texts(self.executor.profiles)
        return {
            "engine": self._opened.label,
            "runtime": self._opened.runtime.title,
            "version": self._opened.runtime.version,
            "device": f"{self.device}, {self._opened.gpu}",
            "spatial transformers": f"{self._opened.fused} by the plugin" if self._opened.fused else "native layers",
            **({"profiles": "; ".join(texts)} if len(texts) > 1 else {}),
            **graphs_text(self.executor.graph_problem),
        }

    def close(self) -> None:
        """Release the engine and the buffers."""
        self._slots.close(self._release)

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self.executor.close()

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = [inputs[tensor.name] for tensor in self.executor.inputs]
        return self._named(self._slots.run(arrays, lambda tensors, slot: self._execute(tensors)))

    def _execute(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue the engine; equal memory in equal slots has equal addresses, and so one CUDA graph."""
        import torch

        if self._closed:
            raise ModelError("this backend is closed; open it again")
        given = {}
        for item, tensor in zip(self.executor.inputs, tensors, strict=True):
            given[item.name] = tensor.view(item.dtype) if item.dtype == torch.bfloat16 else tensor
        found = self.executor.run(given)
        return [found[item.name] for item in self.executor.outputs]

    def _named(self, outputs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip((spec.name for spec in self.outputs), outputs, strict=True))


def _axes(executor: Executor, names: Mapping[str, str]) -> dict[str, str]:
    """The batch axis of each input and output; one for all, unless the model is ours and has several."""
    inputs = [tensor.name for tensor in executor.inputs]
    found = {tensor.name: names.get(tensor.name, "batch") for tensor in (*executor.inputs, *executor.outputs)}
    several = own_axes((name, found[name]) for name in inputs)
    return (
        found if several and set(found.values()) <= {found[name] for name in inputs} else dict.fromkeys(found, "batch")
    )


def _spec(tensor: IoTensor, axes: Mapping[str, str]) -> TensorSpec:
    import torch

    kind = "uint16" if tensor.dtype == torch.bfloat16 else str(tensor.dtype).removeprefix("torch.")
    shape = tuple(size if size >= 0 else None for size in tensor.shape)
    return TensorSpec(tensor.name, shape, np.dtype(kind), axes[tensor.name])


def _output(spec: TensorSpec) -> TensorSpec:
    """An output, of which a caller gets any number of rows."""
    if not spec.shape:
        raise ModelError(f"output {spec.name!r} of the engine has no batch axis; expected [batch, ...]")
    return replace(spec, shape=(None, *spec.shape[1:]))
