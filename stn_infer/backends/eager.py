"""PyTorch: runs a loaded module eagerly or through ``torch.compile``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.batching import check_inputs, run_in_fixed_batches, run_on_empty_axes
from stn_infer.backends.device import Device
from stn_infer.backends.pixels import as_input, interleaved, normalize_on_device, pixel_input
from stn_infer.errors import MissingDependencyError, ModelError, batch_advice, one_line
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.printing import counted
from stn_infer.sources.inputs import dtypes_of, input_names, zeros
from stn_infer.torch_export.activation import watch_activations
from stn_infer.torch_export.batches import find_batch_axes, output_axes
from stn_infer.torch_export.outputs import output_names, output_tensors, unique_names

if TYPE_CHECKING:
    import torch

    from stn_infer.backends.graphs import Graphs
    from stn_infer.backends.slots import Slot, Slots, Streams
    from stn_infer.sources.load import LoadedModel

_CLOSED = "this backend is closed; open it again"


class EagerBackend:
    """A PyTorch module; a :class:`~stn_infer.backends.base.Backend`.

    Names are those of the exported file: inputs have the parameter names of ``forward``, outputs
    those of :func:`~stn_infer.torch_export.outputs.output_names`.

    On a GPU, calls of ``run`` from several threads overlap (``slots.py``), ``run_pixels`` normalizes images there, and
    what is called with the same shapes again is one CUDA graph (``graphs.py``).

    Args:
        loaded: the module with its input shapes; it is copied before it is moved to a GPU.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        compile: run through ``torch.compile``, which compiles at the first call with each batch size.
        threads: intra-op threads, a setting of the whole process in PyTorch; None: unchanged.
        streams: the streams to run on; None: those of a GPU, and none on a CPU.

    Raises:
        ModelError: the module fails on inputs of its declared shapes, or does not return tensors.
        MissingDependencyError: CUDA was requested, and PyTorch has no CUDA support or finds no such GPU.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: str = "cpu",
        compile: bool = False,
        threads: int | None = None,
        streams: Streams | None = None,
    ) -> None:
        import torch

        from stn_infer.backends.graphs import Graphs
        from stn_infer.backends.slots import SLOTS, CudaStreams, Slots

        target = Device.parse(device)
        self.name = "compile" if compile else "eager"
        self.device = str(target)
        self.metadata: ModelMetadata = loaded.metadata
        self._label = loaded.name
        self._fixed_batch = loaded.fixed_batch
        self._threads_before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)
        module = loaded.module
        if target.kind == "cuda":
            require_cuda(torch, target)
            module = copy.deepcopy(module).to(self.device)
            streams = streams or CudaStreams(torch.device(self.device))
        self._slots = None if streams is None else Slots(streams)
        self._graphs: Graphs | None = None if streams is None else Graphs(streams, self._label)
        self.in_flight = 1 if streams is None else SLOTS
        self.takes_pixels = streams is not None
        self.full_batches = compile or streams is not None  # each batch size is a program or a graph of its own
        with warnings.catch_warnings():
            # importing the compiler emits PyTorch's own deprecation warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            self._module: Any = torch.compile(module, dynamic=False) if compile else module

        names = input_names(loaded.module, len(loaded.input_shapes))
        loaded = replace(loaded, batch_axes=loaded.batch_axes or find_batch_axes(loaded, names))
        self.inputs: tuple[TensorSpec, ...] = tuple(
            TensorSpec(name, (None, *shape), dtype, axis)
            for name, shape, dtype, axis in zip(names, loaded.input_shapes, dtypes_of(loaded), loaded.axes, strict=True)
        )
        # Running is the only way to get the output shapes. It is eager because compiling is slow.
        probe = [torch.from_numpy(value).to(self.device) for value in zeros(loaded, 2)]
        with torch.inference_mode(), watch_activations() as watch:
            returned = _called(module, probe, self._label, self.name)
        try:
            tensors = output_tensors(returned)
            outputs = [output.cpu().numpy() for output in tensors]
        except ModelError as error:
            raise ModelError(f"{self._label} {error}") from None
        if self.metadata.scores is None and tensors:
            self.metadata = replace(self.metadata, scores=watch.scores(tensors[0]))
        self.outputs: tuple[TensorSpec, ...] = tuple(
            TensorSpec(name, (None, *output.shape[1:]), output.dtype, axis)
            for name, output, axis in zip(
                unique_names(output_names(returned), names),
                outputs,
                output_axes(loaded, [len(output) if output.ndim else 0 for output in outputs]),
                strict=True,
            )
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name; see :meth:`stn_infer.backends.base.Backend.run`.

        Raises:
            InputError: the inputs do not match ``self.inputs``.
            ModelError: the module failed, or the backend is closed.
        """
        batch = check_inputs(self.inputs, inputs)
        # PyTorch's affine_grid, among others, refuses no samples
        empty = run_on_empty_axes(self.run, self.inputs, inputs)
        if empty is not None:
            return empty
        if self._fixed_batch is not None and batch != self._fixed_batch:
            return run_in_fixed_batches(self._run, inputs, batch, self._fixed_batch)
        return self._run(inputs)

    def run_pixels(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        """Outputs by name for images; see :meth:`stn_infer.backends.base.PixelBackend.run_pixels`.

        Raises:
            InputError, ModelError: as for :meth:`run`.
        """
        import torch

        spec = pixel_input(self.inputs, pixels)
        batch = len(pixels)
        if self._slots is None or batch == 0 or self._fixed_batch not in (None, batch):
            return self.run(as_input(spec, pixels, preprocess))
        check_inputs(self.inputs, {spec.name: np.broadcast_to(np.zeros((), spec.dtype), pixels.shape)})
        array, last = interleaved(pixels)
        dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype

        def work(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            given = tensors[0].permute(0, 3, 1, 2) if last else tensors[0]
            values = torch.empty(given.shape, dtype=dtype, device=given.device)
            normalize_on_device(given, preprocess, values)
            return self._call([values])

        return self._run_in_slot(self._slots, [array], (preprocess, last), work)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        if self._slots is not None:
            return self._run_in_slot(self._slots, [inputs[spec.name] for spec in self.inputs], None, self._call)
        tensors = [
            torch.from_numpy(np.require(inputs[spec.name], requirements=["C", "W"])).to(self.device)
            for spec in self.inputs
        ]
        return self._named([output.cpu().numpy() for output in self._call(tensors)])

    def _run_in_slot(
        self,
        slots: Slots,
        arrays: Sequence[Array],
        kind: Hashable,
        work: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    ) -> dict[str, Array]:
        def compute(tensors: Sequence[torch.Tensor], slot: Slot) -> Sequence[torch.Tensor]:
            if self._graphs is None:
                raise ModelError(_CLOSED)
            return self._graphs.run(kind, tensors, slot, work)

        return self._named(slots.run(arrays, compute))

    def _named(self, outputs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip((spec.name for spec in self.outputs), outputs, strict=True))

    def _call(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        module = self._module
        if module is None:
            raise ModelError(_CLOSED)
        with torch.inference_mode():
            return call_module(module, tensors, self._label, self.name)

    def describe(self) -> dict[str, str]:
        """Runtime and version, device, threads, and on a GPU whether CUDA graphs are used."""
        import torch

        return {
            "runtime": "torch.compile" if self.name == "compile" else "PyTorch",
            "version": str(torch.__version__),
            "device": self.device,
            "threads": str(torch.get_num_threads()),
            **({} if self._graphs is None else self._graphs.describe()),
        }

    def close(self) -> None:
        """Release the module, and restore PyTorch's previous number of threads."""
        import torch

        if self._slots is None:
            self._release()
        else:
            self._slots.close(self._release)
        torch.set_num_threads(self._threads_before)

    def _release(self) -> None:
        self._module = self._graphs = None


def call_module(module: Any, tensors: Sequence[Any], label: str = "the model", how: str = "eager") -> list[Any]:
    """Call a module; returns its outputs as :func:`~stn_infer.torch_export.outputs.output_tensors`.

    Does not disable gradients.

    Args:
        module: a module, or any callable that takes tensors.
        tensors: its inputs.
        label, how: the model's name and how it runs, for messages.

    Raises:
        ModelError: its code fails (the message names the inputs), or it returns something that is not a tensor.
    """
    try:
        return output_tensors(_called(module, tensors, label, how))
    except ModelError as error:
        if error.__cause__ is not None:
            raise
        raise ModelError(f"{label} {error}") from None


def _called(module: Any, tensors: Sequence[Any], label: str, how: str) -> Any:
    """What a module returns.

    Raises:
        ModelError: its code fails; the exception is the cause.
    """
    try:
        return module(*tensors)
    except MemoryError:
        raise
    except Exception as error:  # a model's own code may raise anything
        given = " and ".join(str(list(tensor.shape)) for tensor in tensors)
        text = one_line(str(error)) or "no message"
        text += batch_advice(tuple(tensor.shape[1:]) for tensor in tensors)
        raise ModelError(f"{label} fails in PyTorch ({how}) on {given}: {type(error).__name__}: {text}") from error


def require_cuda(torch: Any, target: Device) -> None:
    """Check that PyTorch can use ``target``, and disable TF32.

    Raises:
        MissingDependencyError: PyTorch has no CUDA support, or finds no such GPU.
    """
    if not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds no usable GPU"
        raise MissingDependencyError(f"device {target} was requested, but this PyTorch {torch.__version__} {why}")
    if target.index >= torch.cuda.device_count():
        raise MissingDependencyError(
            f"device {target} was requested, but PyTorch finds {counted(torch.cuda.device_count(), 'GPU')}"
        )
    # TF32 shifts samples by a tenth of a pixel at width 1024; convolutions use it by default.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
