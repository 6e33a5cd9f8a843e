"""PyTorch's variants: eager, compiled, with the plugin library's kernel, in a CUDA graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from stn_infer.backends.base import Array
from stn_infer.benchmarking.cuda import EventTimer, Staging, as_arrays
from stn_infer.benchmarking.method import Method
from stn_infer.benchmarking.prepare import Prepared
from stn_infer.benchmarking.result import Sampler
from stn_infer.benchmarking.runner import Bound, Clock, Inspection, Runner
from stn_infer.errors import MissingDependencyError, ModelError, one_line


class TorchRunner(Runner):
    """A module, as the variant's name says; see :func:`stn_infer.benchmarking.variants.open_variant`."""

    def __init__(self, name: str, prepared: Prepared, device: str, threads: int, method: Method) -> None:
        import torch

        if device != "cpu":
            _require_cuda(device)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self.method, self.device = method, device
        self.graph, self.compiled = name.endswith("graph"), name.startswith("compile")
        self.fused = "fused" in name
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[prepared.precision]
        module = copy.deepcopy(prepared.load().module)
        if self.fused:
            _fuse(module, self.dtype, device)
        # an exported program cannot be cast, but it needs no cast to float32 either
        self.plain: Any = module.to(device) if self.dtype == torch.float32 else module.to(device, self.dtype)
        self.module: Any = self.plain
        if self.compiled:
            with warnings.catch_warnings():
                # importing the compiler trips over PyTorch's own deprecations
                warnings.simplefilter("ignore", DeprecationWarning)
                self.module = torch.compile(self.plain, dynamic=False)
        self._label = f"{prepared.name} fails in PyTorch ({name})"

    def bind(self, inputs: Sequence[Array]) -> Bound:
        """See :class:`stn_infer.benchmarking.runner.Runner`."""
        return _TorchBound(self, inputs)

    def run(self, tensors: Sequence[Any], module: Any = None) -> list[Any]:
        """The module's outputs as a flat list.

        Raises:
            ModelError: the module fails, or the compiler does.
        """
        import torch
        from torch.utils import _pytree as pytree

        try:
            with torch.inference_mode():
                return list(pytree.tree_leaves((module or self.module)(*tensors)))
        except Exception as error:
            raise ModelError(f"{self._label}: {type(error).__name__}: {one_line(error)}") from error

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.runner.Runner`."""
        import torch

        found = {
            "runtime": "torch.compile" if self.compiled else "PyTorch",
            "version": str(torch.__version__),
            "device": self.device,
            "threads": str(torch.get_num_threads()),
            "plugin": "libstn_plugins.so" if self.fused else "none",
        }
        if self.device != "cpu":
            found["CUDA graph"] = "yes" if self.graph else "no"
            found["TF32"] = "off"
            if self.method.boundary == "host":
                cast = (
                    "" if self.dtype == torch.float32 else f", images already {str(self.dtype).removeprefix('torch.')}"
                )
                found["copies"] = f"pinned{cast}"
        return found

    def close(self) -> None:
        """Let go of the module, and give PyTorch back the number of threads it had."""
        import torch

        self.module = self.plain = None
        torch.set_num_threads(self._threads_before)


class _TorchBound(Bound):
    def __init__(self, runner: TorchRunner, inputs: Sequence[Array]) -> None:
        import torch

        self._runner = runner
        self._on_gpu = runner.device != "cpu"
        self._resident = runner.method.boundary == "device"
        self.items = len(inputs[0])
        self.concurrent = not self._on_gpu and not runner.compiled
        self._arrays = list(inputs)
        tensors = [torch.from_numpy(array).to(runner.dtype) for array in inputs]
        self._staging = Staging(tensors, runner.device) if self._on_gpu else None
        self._tensors = self._staging.resident if self._staging else tensors
        self._timer = EventTimer(runner.device, runner.method.l2 == "flushed") if self._on_gpu else None
        self._replay: Any = None
        self._static: list[Any] = []
        if runner.graph:
            self._replay, self._static = _capture(runner, self._tensors)

    def _compute(self) -> list[Any]:
        if self._replay is None:
            return self._runner.run(self._tensors)
        self._replay()
        return self._static

    def call(self) -> object:
        if self._staging is None:
            if self._resident:
                return self._runner.run(self._tensors)
            return self._from_arrays()
        if self._resident:
            found = self._compute()
            _synchronize(self._runner.device)
            return found
        self._staging.upload()
        return self._staging.download(self._compute())

    def _from_arrays(self) -> list[Array]:
        import torch

        tensors = [torch.from_numpy(array).to(self._runner.dtype) for array in self._arrays]
        outputs = self._runner.run(tensors)
        return [output.numpy() if output.dtype != torch.bfloat16 else output for output in outputs]

    def burst(self, count: int, clock: Clock) -> list[float]:
        if self._timer is not None and self._resident:
            return self._timer.burst(self._compute, count)
        return super().burst(count, clock)

    def outputs(self) -> Sequence[Array]:
        if self._staging is not None and not self._resident:
            self._staging.upload()
            return as_arrays(self._staging.download(self._compute()))
        return as_arrays(self._compute())

    def inspect(self) -> Inspection:
        """Each sampler that PyTorch dispatches in one eager run; the compiler generates its own code for them."""
        samplers = [
            Sampler(f"call {index}", op, place)
            for index, (op, place) in enumerate(_samplers(self._runner, self._tensors))
        ]
        if self._runner.compiled and not self._runner.fused:
            samplers = [Sampler(it.node, "generated by the compiler", it.place) for it in samplers]
        return Inspection(tuple(samplers))


def _capture(runner: TorchRunner, tensors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A CUDA graph of one run: how to replay it, and the tensors it writes.

    Raises:
        ModelError: something in the model cannot be captured.
    """
    import torch

    try:
        side = torch.cuda.Stream(runner.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(runner.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                runner.run(tensors)
        torch.cuda.current_stream(runner.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = runner.run(tensors)
        return graph.replay, outputs
    except RuntimeError as error:
        raise ModelError(f"the model cannot be captured in a CUDA graph: {one_line(error)}") from error


def _samplers(runner: TorchRunner, tensors: Sequence[Any]) -> list[tuple[str, str]]:
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[tuple[str, str]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Notes samplers and where their images are."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            if "grid_sampler" in name or name.startswith("stn."):
                found.append((name.removesuffix(".default"), str(args[0].device)))
            return func(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        runner.run(tensors, runner.plain)
    return found


def _fuse(module: Any, dtype: Any, device: str) -> None:
    """Switch the module's spatial transformers to the plugin library's kernel.

    Raises:
        ModelError: it has none.
        MissingDependencyError: the library has no kernel for them.
    """
    import torch

    from stn_infer import plugin
    from stn_infer.fused import usable
    from stn_infer.layers import SpatialTransformer

    layers = [layer for layer in module.modules() if isinstance(layer, SpatialTransformer)]
    if not layers:
        raise ModelError("the model has no stn_infer.SpatialTransformer layer that could be fused in PyTorch")
    plugin.load()  # raises with the reason
    if not usable(torch.empty(0, dtype=dtype, device=device)):
        raise MissingDependencyError(f"the plugin library has no kernels for {device}; stn-infer plugin build")
    for layer in layers:
        layer.fused = True


def _require_cuda(device: str) -> None:
    import torch

    from stn_infer.backends.device import Device
    from stn_infer.backends.eager import _require_cuda as require

    require(torch, Device.parse(device))


def _synchronize(device: str) -> None:
    import torch

    torch.cuda.synchronize(device)
