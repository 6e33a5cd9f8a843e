"""TensorRT's variants: engines built from the portable file, with TensorRT's own layers or the plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stn_infer.backends.base import Array
from stn_infer.benchmarking.cuda import EventTimer, Staging, as_arrays
from stn_infer.benchmarking.method import Method
from stn_infer.benchmarking.prepare import Prepared
from stn_infer.benchmarking.result import Sampler
from stn_infer.benchmarking.runner import Bound, Clock, Inspection, Runner
from stn_infer.benchmarking.variants import onnx_file


class TrtRunner(Runner):
    """An engine out of the cache, or built into it: opening says how long that took."""

    def __init__(self, name: str, prepared: Prepared, device: str, method: Method) -> None:
        from stn_infer.backends.tensorrt import open_tensorrt
        from stn_infer.engines.building import BuildOptions

        options = BuildOptions(
            runtime="tensorrt-rtx" if name == "trt-rtx" else "tensorrt",
            plugin=name == "trt-fused",
            device=int(device.partition(":")[2] or 0),
        )
        self.device, self.method = device, method
        self.backend = open_tensorrt(Path(onnx_file(name, prepared)), options.runtime, device, options=options)

    def bind(self, inputs: Sequence[Array]) -> Bound:
        """See :class:`stn_infer.benchmarking.runner.Runner`."""
        return _TrtBound(self, inputs)

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.runner.Runner`."""
        copies = {"copies": "pinned"} if self.method.boundary == "host" else {}
        return {**self.backend.describe(), "TF32": "off", **copies}

    def close(self) -> None:
        """Let go of the engine."""
        self.backend.close()


class _TrtBound(Bound):
    def __init__(self, runner: TrtRunner, inputs: Sequence[Array]) -> None:
        import torch

        self._runner = runner
        self.items = len(inputs[0])
        self._executor = runner.backend.executor
        tensors = [
            torch.from_numpy(array).to(it.dtype) for array, it in zip(inputs, self._executor.inputs, strict=True)
        ]
        self._staging = Staging(tensors, runner.device)
        names = [it.name for it in self._executor.inputs]
        self._feeds = dict(zip(names, self._staging.resident, strict=True))
        self._resident = runner.method.boundary == "device"
        self._timer = EventTimer(runner.device, runner.method.l2 == "flushed")

    def _compute(self) -> list[object]:
        return list(self._executor.run(self._feeds).values())

    def call(self) -> object:
        import torch

        if self._resident:
            found = self._compute()
            torch.cuda.synchronize(self._runner.device)
            return found
        self._staging.upload()
        return self._staging.download(self._compute())

    def burst(self, count: int, clock: Clock) -> list[float]:
        if self._resident:
            return self._timer.burst(self._compute, count)
        return super().burst(count, clock)

    def outputs(self) -> Sequence[Array]:
        self._staging.upload()
        return as_arrays(self._staging.download(self._compute()))

    def inspect(self) -> Inspection:
        """TensorRT runs everything on the GPU; what the sidecar says of the spatial transformers."""
        described = self._runner.backend.describe()
        return Inspection((Sampler("all", described["spatial transformers"], f"TensorRT on {self._runner.device}"),))
