"""The runners of ``verify``: a model in one runtime with a record of its samplers, and each sampler in isolation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.fusion.op import is_op
from stn_infer.printing import counted
from stn_infer.reference.calls import TracedRun, recorder
from stn_infer.reference.taps import Tapped, isolated, tap, without_other_functions

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from stn_infer.backends.base import Backend
    from stn_infer.backends.device import Device
    from stn_infer.sources.load import LoadedModel

IsolatedSampler = Callable[[Array, Array], Array]
"""A sampler in isolation: (image [N, C, *in], theta [N, D, K] or grid [N, *out, D]) -> warped image [N, C, *out]."""

#: Name to description, in the order of the table.
RUNNERS = {
    "eager": "PyTorch, float32",
    "eager-fused": "PyTorch, with the plugin library's kernels for spatial transformers",
    "ort": "onnxruntime, with the file's own functions",
    "ort-fused": "onnxruntime, with the plugin library's kernels for the nodes of domain stn",
    "ort-rounded": "onnxruntime, half-precision files emulated in float32: every half-precision value is rounded",
    "openvino": "OpenVINO on the CPU, with the file's functions inlined",
    "openvino-fused": "OpenVINO on the CPU, with its extension's kernels for the nodes of domain stn",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


class Runner(Protocol):
    """A model in one runtime."""

    name: str

    def run(self, inputs: Sequence[Array]) -> TracedRun:
        """Run the model on inputs in its order; returns outputs and sampler calls."""
        ...

    def isolated(self, index: int, image_shape: tuple[int, ...], placed: tuple[int, ...]) -> IsolatedSampler:
        """Open one sampler in isolation, for inputs of these shapes without batch."""
        ...

    def describe(self) -> str:
        """Runtime, version, device."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class OnnxRunner:
    """Runs an ONNX model in a runtime that reads ONNX.

    Args:
        name: its name in the table.
        model: the file.
        open_model: opens the bytes of a file.
        inlined: inline the functions of our ops, which shows the grids inside; for runtimes without a kernel for them.
    """

    def __init__(
        self, name: str, model: onnx.ModelProto, open_model: Callable[[bytes], Backend], *, inlined: bool
    ) -> None:
        self.name = name
        self._open = open_model
        self._flat = without_other_functions(model)
        self._tapped: Tapped = tap(model, inlined=inlined)
        self.samplers = self._tapped.samplers
        self._backend = open_model(self._tapped.model.SerializeToString())
        self._inputs = [spec.name for spec in self._backend.inputs]

    def run(self, inputs: Sequence[Array]) -> TracedRun:
        """See :class:`Runner`."""
        if len(inputs) != len(self._inputs):
            raise ModelError(f"the ONNX model has {counted(len(self._inputs), 'input')}, its source {len(inputs)}")
        specs = self._backend.inputs
        feeds = {spec.name: value.astype(spec.dtype, copy=False) for spec, value in zip(specs, inputs, strict=True)}
        return self._tapped.read(self._backend.run(feeds))

    def isolated(self, index: int, image_shape: tuple[int, ...], placed: tuple[int, ...]) -> IsolatedSampler:
        """See :class:`Runner`."""
        backend = self._open(isolated(self._flat, self.samplers[index], image_shape, placed))

        def warp(image: Array, given: Array) -> Array:
            feeds = {"image": image.astype(np.float32), "points": given.astype(np.float32)}
            return backend.run(feeds)["warped"]

        return warp

    def describe(self) -> str:
        """See :class:`Runner`."""
        about = self._backend.describe()
        return " ".join(filter(None, (about.get("runtime", ""), about.get("version", ""))))

    def close(self) -> None:
        """See :class:`Runner`."""
        self._backend.close()


class EagerRunner:
    """Runs a PyTorch module in float32; ``fused``: its spatial transformers use the plugin library's kernels."""

    def __init__(self, loaded: LoadedModel, device: str, *, fused: bool) -> None:
        import torch

        from stn_infer.backends.device import Device

        self.name = "eager-fused" if fused else "eager"
        target = Device.parse(device)
        if target.kind == "cuda" and not torch.cuda.is_available():
            raise MissingDependencyError(f"device {target} was requested, but this PyTorch finds no usable GPU")
        self._device, self._label = str(target), loaded.name
        self._module: nn.Module = copy.deepcopy(loaded.module).to(self._device)
        self._fused = fused
        _set_fused(self._module, fused, target)
        self._again: list[Callable[..., Any]] = []

    def run(self, inputs: Sequence[Array]) -> TracedRun:
        """See :class:`Runner`."""
        import torch

        from stn_infer.backends.eager import call_module
        from stn_infer.sources.inputs import numbered

        tensors = [torch.tensor(value, device=self._device) for value in inputs]  # copies: a forward may write in place
        with torch.no_grad(), warnings.catch_warnings(), recorder() as recorded:
            warnings.simplefilter("ignore")
            outputs = call_module(self._module, tensors, self._label, self.name)
        self._again = recorded.again
        names = numbered("output", len(outputs))
        values = {name: output.cpu().numpy() for name, output in zip(names, outputs, strict=True)}
        return TracedRun(values, tuple(recorded.calls))

    def isolated(self, index: int, image_shape: tuple[int, ...], placed: tuple[int, ...]) -> IsolatedSampler:
        """See :class:`Runner`."""
        import torch

        from stn_infer.backends.eager import call_module

        again = self._again[index]

        def warp(image: Array, given: Array) -> Array:
            with torch.no_grad():
                tensors = [torch.from_numpy(value.astype(np.float32)).to(self._device) for value in (image, given)]
                (warped,) = call_module(again, tensors, f"a sampler of {self._label}", self.name)
                return np.asarray(warped.cpu().numpy())

        return warp

    def describe(self) -> str:
        """See :class:`Runner`."""
        import torch

        return f"PyTorch {torch.__version__}" + (" with the plugin library" if self._fused else "")

    def close(self) -> None:
        """See :class:`Runner`."""
        self._module = None  # type: ignore[assignment]


def _set_fused(module: nn.Module, fused: bool, device: Device) -> None:
    """Make a module's spatial transformers use the plugin library's kernels, or PyTorch's own operators.

    Raises:
        UsageError: the module has no spatial transformer that can be fused.
        MissingDependencyError: the library is missing, or its kernels do not run on the device.
    """
    from stn_infer import plugin
    from stn_infer.layers import SpatialTransformer

    layers = [layer for layer in module.modules() if isinstance(layer, SpatialTransformer)]
    if fused and not layers:
        raise UsageError("the source has no stn_infer.SpatialTransformer that can be fused")
    if fused:
        plugin.require(device.kind, device.index)
    for layer in layers:
        layer.fused = fused


def open_runner(name: str, model: onnx.ModelProto, loaded: LoadedModel | None, device: str) -> Runner:
    """Open one of :data:`RUNNERS`.

    Args:
        name: a key of :data:`RUNNERS`.
        model: the file.
        loaded: its PyTorch source; None if there is none.
        device: ``cpu`` or ``cuda:N``; TensorRT uses ``cuda:0`` for ``cpu``.

    Raises:
        UsageError: the name is unknown, an eager runner has no source, a fused one has nothing to fuse, or the file has
            no half-precision values for ``ort-rounded``.
        MissingDependencyError: the runtime, the plugin library or the GPU is missing.
        ModelError: the runtime cannot load the file.
    """
    if name not in RUNNERS:
        raise UsageError(f"unknown backend {name!r}: expected one of {', '.join(RUNNERS)}")
    if name.startswith("eager"):
        if loaded is None:
            raise UsageError("this backend runs the PyTorch source, which the file does not name; give --source SOURCE")
        return EagerRunner(loaded, device, fused=name == "eager-fused")
    if name.startswith("ort"):
        from stn_infer.backends.ort import OrtBackend
        from stn_infer.precision.rounding import half_types

        fused = name == "ort-fused"
        if fused:
            _check_fused(model)
        if name == "ort-rounded" and not half_types(model):
            raise UsageError("the file has no float16 or bfloat16 values; use the backend ort")

        def open_ort(content: bytes) -> OrtBackend:
            if name == "ort-rounded":
                content = _rounded(content)
            return OrtBackend(content, device, spin="never", plugin=fused)

        return OnnxRunner(name, model, open_ort, inlined=not fused)
    if name.startswith("openvino"):
        from stn_infer.backends.openvino.backend import OpenVinoBackend

        with_extension = name == "openvino-fused"
        if with_extension:
            _check_fused(model)
        return OnnxRunner(
            name,
            model,
            lambda content: OpenVinoBackend(content, "cpu", plugin=with_extension),
            inlined=not with_extension,
        )
    from stn_infer.backends.tensorrt import backend as tensorrt

    gpu = "cuda:0" if device == "cpu" else device
    return OnnxRunner(name, model, lambda content: tensorrt.open_tensorrt(content, name, gpu), inlined=False)


def _check_fused(model: onnx.ModelProto) -> None:
    if not any(map(is_op, model.graph.node)):
        raise UsageError("the file has no node of domain stn; run stn-infer optimize to write them")


def _rounded(content: bytes) -> bytes:
    import onnx

    from stn_infer.precision.rounding import rounded_in_float32

    rounded: bytes = rounded_in_float32(onnx.ModelProto.FromString(content)).SerializeToString()
    return rounded
