"""What ``verify`` runs: a model in one runtime, with what its samplers did, and each sampler on its own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.reference.sampling import coordinate_bound
from stn_infer.reference.taps import Points, SamplerNode, Tapped, isolated, tap, without_other_functions
from stn_infer.samplers import SamplerSpec

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from stn_infer.backends.base import Backend
    from stn_infer.sources.load import LoadedModel

IsolatedSampler = Callable[[Array, Array], Array]
"""A sampler on its own: image [N, C, *in] and theta [N, D, K] or grid [N, *out, D] to the warped image [N, C, *out]."""

#: Name to what it is; the order of the table.
RUNNERS = {
    "eager": "PyTorch, float32",
    "eager-fused": "PyTorch, its spatial transformers by the plugin library",
    "ort": "onnxruntime, the file's own functions",
    "ort-fused": "onnxruntime, its spatial transformers by the plugin library",
    "ort-rounded": "onnxruntime, half-precision files in float32 with every half value rounded",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class Trace:
    """What one sampler did in a run.

    Attributes:
        image: [N, C, *in], what it sampled.
        warped: [N, C, *out], what it returned.
        points: where it should have sampled by the theta or the grid that it was given.
        grid: [N, *out, D], the grid that it used, where that can be seen.
    """

    image: Array
    warped: Array
    points: Points
    grid: Array | None


@dataclass(frozen=True)
class Run:
    """One run: outputs by name in the model's order, and one trace a sampler."""

    outputs: dict[str, Array]
    traces: tuple[Trace, ...]


class Runner(Protocol):
    """A model in one runtime."""

    name: str
    samplers: tuple[SamplerNode, ...]

    def run(self, inputs: Sequence[Array]) -> Run:
        """Outputs and traces for inputs in the model's order."""
        ...

    def isolated(self, index: int, image_shape: tuple[int, ...], placed: tuple[int, ...]) -> IsolatedSampler:
        """A sampler on its own, for inputs of these shapes without batch."""
        ...

    def describe(self) -> str:
        """Runtime, version, device."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class OnnxRunner:
    """An ONNX model in a runtime that takes ONNX.

    Args:
        name: for the table.
        model: the file.
        open_model: opens the bytes of a file.
        inlined: whether the runtime has no kernel for our ops, so that the grids in their functions may be shown.
    """

    def __init__(
        self, name: str, model: onnx.ModelProto, open_model: Callable[[bytes], Backend], *, inlined: bool
    ) -> None:
        self.name = name
        self._open = open_model
        self._flat = without_other_functions(model)
        self._tapped: Tapped = tap(model, inlined=inlined)
        self.samplers: tuple[SamplerNode, ...] = self._tapped.samplers
        self._backend = open_model(self._tapped.model.SerializeToString())
        self._inputs = [spec.name for spec in self._backend.inputs]

    def run(self, inputs: Sequence[Array]) -> Run:
        """See :class:`Runner`."""
        if len(inputs) != len(self._inputs):
            raise ModelError(f"the ONNX model has {len(self._inputs)} inputs, its source {len(inputs)}")
        specs = self._backend.inputs
        feeds = {spec.name: value.astype(spec.dtype, copy=False) for spec, value in zip(specs, inputs, strict=True)}
        values: Mapping[str, Array] = self._backend.run(feeds)
        traces = tuple(
            self._trace(sampler, {what: values[name] for what, name in taps.items()})
            for sampler, taps in zip(self.samplers, self._tapped.taps, strict=True)
        )
        return Run({name: values[name] for name in self._tapped.outputs}, traces)

    def _trace(self, sampler: SamplerNode, values: Mapping[str, Array]) -> Trace:
        image, size = values["image"], values["image"].shape[2:]
        if "grid" in values:
            grid = values["grid"]
            points = Points(grid.astype(np.float64), coordinate_bound(grid.astype(np.float64), size))
            return Trace(image, values["warped"], points, grid)
        return Trace(image, values["warped"], sampler.points(values[sampler.placed_by], size), None)

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
    """A PyTorch module in float32; ``fused``: its spatial transformers sample by the plugin library."""

    def __init__(self, loaded: LoadedModel, device: str, *, fused: bool) -> None:
        import torch

        from stn_infer.backends.device import Device

        self.name = "eager-fused" if fused else "eager"
        target = Device.parse(device)
        if target.kind == "cuda" and not torch.cuda.is_available():
            raise MissingDependencyError(f"device {target} was asked for, but this PyTorch finds no usable GPU")
        self._device = str(target)
        self._module: nn.Module = copy.deepcopy(loaded.module).to(self._device)
        self._fused = fused
        _set_fused(self._module, fused, target.kind)
        self.samplers: tuple[SamplerNode, ...] = ()
        self._calls: list[_Call] = []

    def run(self, inputs: Sequence[Array]) -> Run:
        """See :class:`Runner`."""
        import torch
        from torch.utils import _pytree as pytree

        from stn_infer.backends.eager import numbered

        tensors = [torch.tensor(value, device=self._device) for value in inputs]  # copies: a forward may write in place
        with torch.no_grad(), warnings.catch_warnings(), _observer() as observer:
            warnings.simplefilter("ignore")
            outputs = pytree.tree_leaves(self._module(*tensors))
        self._calls = observer.calls
        names = numbered("output", len(outputs))
        values = {name: output.cpu().numpy() for name, output in zip(names, outputs, strict=True)}
        self.samplers = tuple(call.node for call in self._calls)
        return Run(values, tuple(call.trace() for call in self._calls))

    def isolated(self, index: int, image_shape: tuple[int, ...], placed: tuple[int, ...]) -> IsolatedSampler:
        """See :class:`Runner`."""
        import torch

        call = self._calls[index]

        def warp(image: Array, given: Array) -> Array:
            with torch.no_grad():
                tensors = (torch.from_numpy(value.astype(np.float32)).to(self._device) for value in (image, given))
                return np.asarray(call.again(*tensors).cpu().numpy())

        return warp

    def describe(self) -> str:
        """See :class:`Runner`."""
        import torch

        return f"PyTorch {torch.__version__}" + (" with the plugin library" if self._fused else "")

    def close(self) -> None:
        """See :class:`Runner`."""
        self._module = None  # type: ignore[assignment]


def _set_fused(module: nn.Module, fused: bool, device: str) -> None:
    """Let a module's spatial transformers sample by the plugin library, or by PyTorch's own operators.

    Raises:
        UsageError: it has none that could be fused.
        MissingDependencyError: there is no library, or it has no kernels for the device.
    """
    from stn_infer import plugin
    from stn_infer.layers import SpatialTransformer

    layers = [layer for layer in module.modules() if isinstance(layer, SpatialTransformer)]
    if fused and not layers:
        raise UsageError("the source has no stn_infer.SpatialTransformer that could be fused")
    if fused and not plugin.load().stn_has_cuda() and device == "cuda":
        raise MissingDependencyError("the plugin library has no CUDA kernels; stn-infer plugin build")
    for layer in layers:
        layer.fused = fused


@dataclass(frozen=True)
class _Call:
    """A sampler that eager PyTorch ran: what it was given, and how to run it again on other tensors."""

    node: SamplerNode
    image: Array
    given: Array
    warped: Array
    again: Callable[..., Any]

    def trace(self) -> Trace:
        points = self.node.points(self.given, self.image.shape[2:])
        return Trace(self.image, self.warped, points, None if self.node.transformer is not None else self.given)


def _observer() -> Any:
    """A context in which every sampler that runs is noted, in ``calls``."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    samplers = (aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)

    class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Notes what samplers are given and return."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.calls: list[_Call] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in samplers:
                image, grid, mode, padding, corners = args[:5]
                sampler = SamplerSpec.numbered(mode, padding, corners)
                self._note(sampler, None, image, grid, result, lambda i, g: func(i, g, mode, padding, corners))
            elif str(func) == "stn.spatial_transformer.default":
                image, theta, basis, kind, size, mode, padding_mode, corners = args
                sampler = SamplerSpec(mode, padding_mode, bool(corners))
                self._note(
                    sampler,
                    _transformer(_array(basis), kind, tuple(map(int, size)), sampler),
                    image,
                    theta,
                    result,
                    lambda i, t: func(i, t, basis, kind, size, mode, padding_mode, corners),
                )
            return result

        def _note(
            self, sampler: SamplerSpec, transformer: Any, image: Any, given: Any, result: Any, again: Callable[..., Any]
        ) -> None:
            import onnx

            dtype = str(image.dtype).removeprefix("torch.")
            node = SamplerNode(sampler, transformer, dtype, onnx.NodeProto())
            self.calls.append(_Call(node, _array(image), _array(given), _array(result), again))

    return Observer()


def _array(tensor: Any) -> Array:
    return np.array(tensor.detach().float().cpu().numpy())


def _transformer(basis: Array, kind: Any, size: tuple[int, ...], sampler: SamplerSpec) -> Any:
    from stn_infer.fusion.op import SpatialNode

    return SpatialNode("", kind, "", "", "", basis, size, sampler.mode, sampler.padding_mode, sampler.align_corners)


def open_runner(name: str, model: onnx.ModelProto, loaded: LoadedModel | None, device: str) -> Runner:
    """Open one of :data:`RUNNERS`.

    Args:
        model: the file.
        loaded: its PyTorch source; None: there is none.
        device: ``cpu`` or ``cuda:N``; TensorRT takes ``cuda:0`` where it is ``cpu``.

    Raises:
        UsageError: PyTorch without a source, or a fused source that has nothing to fuse.
        MissingDependencyError: the runtime, the plugin library or the GPU is missing.
        ModelError: the runtime refuses the file.
    """
    if name not in RUNNERS:
        raise UsageError(f"a backend is one of {', '.join(RUNNERS)}, not {name!r}")
    if name.startswith("eager"):
        if loaded is None:
            raise UsageError("it runs the PyTorch source, which the file does not name; give --source SOURCE")
        return EagerRunner(loaded, device, fused=name == "eager-fused")
    if name.startswith("ort"):
        from stn_infer.backends.ort import OrtBackend
        from stn_infer.precision.rounding import half_types

        fused = name == "ort-fused"
        if fused and not _has_our_ops(model):
            raise UsageError("the file has no spatial transformer of domain stn; stn-infer optimize")
        if name == "ort-rounded" and not half_types(model):
            raise UsageError("the file has no float16 or bfloat16 values; take ort")

        def open_ort(content: bytes) -> OrtBackend:
            if name == "ort-rounded":
                content = _rounded(content)
            return OrtBackend(content, device, spin="never", plugin=fused)

        return OnnxRunner(name, model, open_ort, inlined=not fused)
    from stn_infer.backends.tensorrt import backend as tensorrt

    gpu = "cuda:0" if device == "cpu" else device
    return OnnxRunner(name, model, lambda content: tensorrt.open_tensorrt(content, name, gpu), inlined=False)


def _rounded(content: bytes) -> bytes:
    import onnx

    from stn_infer.precision.rounding import rounded_in_float32

    rounded: bytes = rounded_in_float32(onnx.ModelProto.FromString(content)).SerializeToString()
    return rounded


def _has_our_ops(model: onnx.ModelProto) -> bool:
    from stn_infer.fusion.op import DOMAIN, OP_TYPES

    return any(node.domain == DOMAIN and node.op_type in OP_TYPES for node in model.graph.node)
