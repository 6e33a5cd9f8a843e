"""TensorRT's variants: engines built from the portable file, with TensorRT's own layers or the plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stn_infer.arrays import Array
from stn_infer.backends.batching import is_shared, row_axis
from stn_infer.benchmarking.harness.cuda import EventTimer, Staging
from stn_infer.benchmarking.harness.variant import BoundVariant, Clock, Inspection, OpenVariant
from stn_infer.benchmarking.prepare.case import Setup, onnx_file
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.benchmarking.variants.stages import RECORDED, UNRECORDED
from stn_infer.benchmarking.variants.tensorrt_stages import engine_stages, layer_times, names_of

if TYPE_CHECKING:
    import onnx

    from stn_infer.backends.tensorrt.backend import TensorRTBackend
    from stn_infer.backends.tensorrt.options import BuildOptions
    from stn_infer.backends.tensorrt.runtime import RuntimeName


class TrtVariant(OpenVariant):
    """One engine per batch size, as torch.compile compiles for each; from the engine cache where it is there."""

    def __init__(self, name: str, setup: Setup) -> None:
        from stn_infer.backends.tensorrt.backend import open_tensorrt
        from stn_infer.backends.tensorrt.engine import engine_for
        from stn_infer.proto.load import load_model

        self.device, self.method, self.cuts = setup.device, setup.method, setup.prepared.cuts
        self.fused = name == "trt-fused"
        file = Path(onnx_file(name, setup.prepared))
        self.model = load_model(file)
        self.backends: dict[int, TensorRTBackend] = {}
        self._built = []
        for batch in setup.prepared.batch_sizes:
            options = build_options(name, setup, self.model, batch)
            self._built.append(engine_for(file, options).built)  # the next line finds it in the cache
            self.backends[batch] = open_tensorrt(file, options.runtime, setup.device, options=options)

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return _BoundTensorRT(self, inputs)

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        copies = {"copies": "pinned"} if self.method.boundary == "host" else {}
        built = f"{sum(self._built)} built, {len(self._built) - sum(self._built)} from the engine cache"
        described = self.backends[max(self.backends)].describe()
        return {**described, "TF32": "off", "engines": "one per batch size", "compiler": built, **copies}

    def close(self) -> None:
        """Release the engines."""
        for backend in self.backends.values():
            backend.close()


def runtime_of(name: str) -> RuntimeName:
    """Which runtime a variant needs."""
    return "tensorrt-rtx" if name == "trt-rtx" else "tensorrt"


def build_options(name: str, setup: Setup, model: onnx.ModelProto, batch: int) -> BuildOptions:
    """How a variant's engine is built for a batch size; a file of fixed shapes takes no profile."""
    from stn_infer.backends.tensorrt.options import BuildOptions
    from stn_infer.backends.tensorrt.profiles import Profile, resolve_profiles

    return BuildOptions(
        runtime=runtime_of(name),
        profile=Profile((batch,), (batch,), (batch,)) if resolve_profiles(model, None) else None,
        plugin=name == "trt-fused",
        device=setup.device_index,
    )


class _BoundTensorRT(BoundVariant):
    def __init__(self, variant: TrtVariant, inputs: Sequence[Array]) -> None:
        import torch

        self._variant = variant
        self.alone = "its buffers on the GPU serve one caller"
        largest = max(variant.backends)
        specs = variant.backends[largest]
        axis = row_axis(specs.inputs, specs.outputs)
        pairs = zip(specs.inputs, inputs, strict=True)
        rows = (len(array) for spec, array in pairs if not is_shared(spec, axis))
        self._backend = variant.backends[next(rows, largest)]
        self._executor = self._backend.executor
        tensors = [
            torch.from_numpy(array).to(it.dtype) for array, it in zip(inputs, self._executor.inputs, strict=True)
        ]
        self._staging = Staging(tensors, variant.device)
        names = [it.name for it in self._executor.inputs]
        self._feeds = dict(zip(names, self._staging.resident, strict=True))
        self._resident = variant.method.boundary == "device"
        self._timer = EventTimer(variant.device, variant.method.l2 == "flushed")

    def _compute(self) -> list[Any]:
        return list(self._executor.run(self._feeds).values())

    def call(self) -> object:
        import torch

        if self._resident:
            found = self._compute()
            torch.cuda.synchronize(self._variant.device)
            return found
        return self._staging.call(self._compute)

    def burst(self, count: int, clock: Clock) -> list[float]:
        if self._resident:
            return self._timer.burst(self._compute, count)
        return super().burst(count, clock)

    def outputs(self) -> Sequence[Array]:
        return self._staging.outputs(self._compute)

    def inspect(self) -> Inspection:
        """TensorRT runs everything on the GPU: the samplers from the sidecar, the times from its profiler."""
        variant = self._variant
        described = self._backend.describe()
        sampler = SamplerPlacement("all", described["spatial transformers"], f"TensorRT on {variant.device}")
        reporter = layer_times(self._executor.module)
        runs = UNRECORDED + RECORDED
        self._executor.profile(self._feeds, reporter, runs)
        names = names_of(variant.model, variant.fused, variant.cuts)
        return replace(engine_stages(reporter.layers, runs, names), samplers=(sampler,))
