"""PyTorch's variants: eager, compiled, with the plugin library's kernel, in a CUDA graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from stn_infer.arrays import Array
from stn_infer.benchmarking.harness.cuda import EventTimer, Staging, as_arrays, require_gpu
from stn_infer.benchmarking.harness.variant import BoundVariant, Clock, Inspection, OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.errors import MissingDependencyError, ModelError, one_line


class TorchVariant(OpenVariant):
    """A module, as the variant's name says; see :func:`stn_infer.benchmarking.variants.registry.open_variant`."""

    def __init__(self, name: str, setup: Setup) -> None:
        import torch

        prepared, device = setup.prepared, setup.device
        if prepared.precision == "int8":
            raise ModelError(
                "INT8 is an ONNX file with quantized layers, for which PyTorch has no module; "
                "a suite measures fp32 in PyTorch beside it"
            )
        if device != "cpu":
            require_gpu(device)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(setup.threads)
        self.method, self.device = setup.method, device
        self.graph, self.compiled = name.endswith("graph"), name.startswith("compile")
        self.fused = "fused" in name
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[prepared.precision]
        module = copy.deepcopy(prepared.load().module)
        if self.fused:
            _fuse(module, self.dtype, device)
        # an exported program cannot be cast, but it needs no cast to float32 either
        self.plain: Any = module.to(device) if self.dtype == torch.float32 else module.to(device, self.dtype)
        self.module: Any = self.plain
        self.compiler: Compiler | None = None
        if self.compiled:
            self.compiler = Compiler(len(prepared.batch_sizes))
            self.module = torch.compile(self.plain, dynamic=False)
        self._named = prepared.name, name

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return _BoundTorch(self, inputs)

    def run(self, tensors: Sequence[Any], module: Any = None) -> list[Any]:
        """The module's outputs as a flat list.

        Raises:
            ModelError: the module fails, or the compiler does.
        """
        import torch

        from stn_infer.backends.eager import call_module

        with torch.inference_mode():
            return call_module(module or self.module, tensors, *self._named)

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        import torch

        found = {
            "runtime": "torch.compile" if self.compiled else "PyTorch",
            "version": str(torch.__version__),
            "device": self.device,
            "threads": str(torch.get_num_threads()),
            "plugin": "libstn_plugins.so" if self.fused else "none",
        }
        if self.compiler is not None:
            found |= self.compiler.describe()
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
        """Release the module, and give PyTorch back the number of threads it had."""
        import torch

        self.module = self.plain = None
        if self.compiler is not None:
            self.compiler.close()
        torch.set_num_threads(self._threads_before)


class Compiler:
    """The settings under which every batch size is compiled, and what the compiler did for it.

    Args:
        batch_sizes: how many there are; a compiler that gives up after some would run the rest eagerly and not say so.
    """

    def __init__(self, batch_sizes: int) -> None:
        with warnings.catch_warnings():
            # importing the compiler trips over PyTorch's own deprecations
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch._dynamo import config
        limit = max(config.recompile_limit, 2 * batch_sizes + 2)
        self._settings = config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=True)
        self._settings.__enter__()
        self._counts = {"compiled": 0, "from its cache": 0, "graph breaks": 0}

    def watch(self, call: Callable[[], object]) -> object:
        """The result of a call that may compile; what the compiler does in it is counted."""
        before = self._now()
        found = call()
        after = self._now()
        self._counts = {name: after[name] - before[name] for name in after}
        return found

    def describe(self) -> dict[str, str]:
        """What was made in the call that was watched last, and where parts of the model were left to Python."""
        breaks = self._counts["graph breaks"]
        made = f"{self._counts['compiled']} compiled, {self._counts['from its cache']} from its cache"
        return {"compiler": made, "graph breaks": f"{breaks}: parts of the model run eagerly" if breaks else "none"}

    def close(self) -> None:
        """Give PyTorch its settings back."""
        self._settings.__exit__(None, None, None)

    @staticmethod
    def _now() -> dict[str, int]:
        from torch._dynamo.utils import counters

        made = counters["inductor"]
        return {
            "compiled": made["fxgraph_cache_miss"] + made["fxgraph_cache_bypass"],
            "from its cache": made["fxgraph_cache_hit"],
            "graph breaks": sum(counters["graph_break"].values()),
        }


class _BoundTorch(BoundVariant):
    def __init__(self, variant: TorchVariant, inputs: Sequence[Array]) -> None:
        import torch

        self._variant = variant
        self._on_gpu = variant.device != "cpu"
        self._resident = variant.method.boundary == "device"
        self.concurrent = not self._on_gpu and not variant.compiled
        self.alone = "its buffers on the GPU serve one caller" if self._on_gpu else "torch.compile serves one caller"
        self._arrays = list(inputs)
        tensors = [torch.from_numpy(array).to(variant.dtype) for array in inputs]
        self._staging = Staging(tensors, variant.device) if self._on_gpu else None
        self._tensors = self._staging.resident if self._staging else tensors
        self._timer = EventTimer(variant.device, variant.method.l2 == "flushed") if self._on_gpu else None
        self._compiler = variant.compiler
        self._replay: Any = None
        self._static: list[Any] = []
        if variant.graph:
            self._replay, self._static = _capture(variant, self._tensors)

    def _compute(self) -> list[Any]:
        if self._replay is None:
            return self._variant.run(self._tensors)
        self._replay()
        return self._static

    def call(self) -> object:
        if self._compiler is not None:  # the first call of this batch size
            compiler, self._compiler = self._compiler, None
            return compiler.watch(self._call)
        return self._call()

    def _call(self) -> object:
        import torch

        if self._staging is None:
            if self._resident:
                return self._variant.run(self._tensors)
            return self._from_arrays()
        if self._resident:
            found = self._compute()
            torch.cuda.synchronize(self._variant.device)
            return found
        return self._staging.call(self._compute)

    def _from_arrays(self) -> list[Array]:
        import torch

        tensors = [torch.from_numpy(array).to(self._variant.dtype) for array in self._arrays]
        outputs = self._variant.run(tensors)
        return [output.numpy() if output.dtype != torch.bfloat16 else output for output in outputs]

    def burst(self, count: int, clock: Clock) -> list[float]:
        if self._timer is not None and self._resident:
            return self._timer.burst(self._compute, count)
        return super().burst(count, clock)

    def outputs(self) -> Sequence[Array]:
        if self._staging is not None and not self._resident:
            return self._staging.outputs(self._compute)
        return as_arrays(self._compute())

    def inspect(self) -> Inspection:
        """What PyTorch dispatches in eager runs; the compiler generates its own code for it."""
        from stn_infer.benchmarking.variants.torch_stages import inspect_module

        variant = self._variant
        plain = partial(variant.run, self._tensors, variant.plain)
        return inspect_module(plain, variant.plain, self._tensors, compiled=variant.compiled)


def _capture(variant: TorchVariant, tensors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A CUDA graph of one run: how to replay it, and the tensors it writes.

    Raises:
        ModelError: something in the model cannot be captured.
    """
    import torch

    try:
        with torch.cuda.device(variant.device):
            side = torch.cuda.Stream(variant.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(variant.device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    variant.run(tensors)
            torch.cuda.current_stream(variant.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # other runtimes in this process have threads of their own, whose calls are none of the capture's business
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                outputs = variant.run(tensors)
        return graph.replay, outputs
    except RuntimeError as error:
        raise ModelError(f"the model cannot be captured in a CUDA graph: {one_line(error)}") from error


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
    target = torch.device(device)
    plugin.require(target.type, target.index or 0)
    if not usable(torch.empty(0, dtype=dtype, device=target)):
        raise MissingDependencyError(f"the plugin library has no kernels for {dtype} on {device}")
    for layer in layers:
        layer.fused = True
