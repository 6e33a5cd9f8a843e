"""onnxruntime's CUDA graphs: a session's inputs and outputs bound to fixed memory, one graph for each shape.

A session keeps its graphs by number and by thread, and replays a number's graph whatever is bound. It records in
CUDA's strictest mode, in which no other thread of the process may allocate or wait. So one thread of ours runs the
session, a graph is recorded while no other call is on its way, and a number is never used for a second shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.device import Device
from stn_infer.backends.eager import require_cuda
from stn_infer.backends.gate import Gate
from stn_infer.backends.graphs import MOST_GRAPHS, graphs_text, handed_over
from stn_infer.backends.ort import OrtBackend
from stn_infer.backends.pixels import as_input, interleaved, normalize_on_device
from stn_infer.backends.slots import SLOTS, CudaStreams, Slot, Slots, Streams
from stn_infer.errors import FallbackWarning, MissingDependencyError, ModelError, one_line
from stn_infer.preprocess.rule import Preprocess
from stn_infer.proto.session import Session, import_onnxruntime

Shapes = tuple[tuple[int, ...], ...]
#: Writes a call's tensors on the device into the memory of the model's inputs, on the compute stream.
Fill = Callable[[Sequence[Tensor], Sequence[Tensor]], None]

_NUMBER = "gpu_graph_id"
_NO_GRAPH = "-1"
_GATE = Gate()  # of all backends of this process


@dataclass
class _Graph:
    inputs: list[Tensor]
    outputs: list[Tensor]
    binding: Any
    options: Any


class OrtGraphs:
    """Runs a session that was opened with ``enable_cuda_graph`` on the compute stream of ``streams``.

    Args:
        session: the session.
        streams: the device's.
        place: onnxruntime's name and index of the device.
    """

    def __init__(self, session: Session, streams: Streams, place: tuple[str, int]) -> None:
        self._session, self._streams, self._place = session, streams, place
        self._slots = Slots(streams)
        self._thread = ThreadPoolExecutor(1, "onnxruntime")
        self._plain = _options(_NO_GRAPH)
        self._seen: set[Shapes] = set()
        self._graphs: dict[Shapes, _Graph] = {}

    def has(self, shapes: Shapes) -> bool:
        """Whether there is a graph for inputs of these shapes."""
        return shapes in self._graphs

    def wants(self, shapes: Shapes) -> bool:
        """Told of each call without a graph: whether to record one, as these shapes have come before."""
        known = shapes in self._seen
        if not known and len(self._seen) < MOST_GRAPHS and all(map(all, shapes)):
            self._seen.add(shapes)
        return known

    def run(self, arrays: Sequence[Array], shapes: Shapes, fill: Fill) -> list[Array]:
        """The outputs by the graph for ``shapes``.

        Args:
            arrays: what is copied to the device.
            shapes: of the model's inputs.
            fill: makes the inputs of what was copied.

        Raises:
            ModelError: onnxruntime fails.
        """
        graph = self._graphs[shapes]

        def compute(given: Sequence[Tensor], slot: Slot) -> Sequence[Tensor]:
            fill(given, graph.inputs)
            self._launch(graph)
            return handed_over(graph.outputs, slot)

        return self._slots.run(arrays, compute)

    def run_without(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs without a graph.

        Raises:
            ModelError: onnxruntime fails.
        """
        try:
            return list(self._thread.submit(self._session.raw.run, None, dict(feeds), self._plain).result())
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise self._session.failure(error, feeds) from error

    def record(self, feeds: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        """Record the graph for inputs of these shapes; no other call is on its way.

        Args:
            feeds: inputs by name; the model runs on them.
            outputs: the outputs for them.

        Raises:
            ModelError: onnxruntime fails, and the session cannot be used any more.
        """
        arrays = [feeds[name] for name in self._session.inputs]
        shapes = tuple(array.shape for array in arrays)
        if shapes in self._graphs:  # recorded by another call meanwhile
            return
        binding = self._session.raw.io_binding()
        graph = _Graph(
            [self._memory(array) for array in arrays],
            [self._memory(array) for array in outputs],
            binding,
            _options(str(len(self._graphs) + 1)),  # 0 is onnxruntime's own
        )
        for bind, names, values, tensors in (
            (binding.bind_input, self._session.inputs, arrays, graph.inputs),
            (binding.bind_output, self._session.outputs, outputs, graph.outputs),
        ):
            for name, value, tensor in zip(names, values, tensors, strict=True):
                bind(name, *self._place, value.dtype.type, list(value.shape), tensor.data_ptr())

        def work() -> None:
            for target, array in zip(graph.inputs, arrays, strict=True):
                target.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])))
            self._launch(graph)

        self._streams.enqueue("compute", work)
        self._streams.synchronize(self._streams.record("compute"))
        self._graphs[shapes] = graph

    def close(self) -> None:
        """Release the session's thread and the memory; no call is on its way."""
        self._thread.shutdown()
        self._graphs.clear()

    def _launch(self, graph: _Graph) -> None:
        try:
            self._thread.submit(self._session.raw.run_with_iobinding, graph.binding, graph.options).result()
        except Exception as error:  # onnxruntime's exceptions have no common base class
            given: dict[str, Any] = dict(zip(self._session.inputs, graph.inputs, strict=True))
            raise self._session.failure(error, given) from error

    def _memory(self, array: Array) -> Tensor:
        return self._streams.memory(array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)


def _options(number: str) -> Any:
    """How a session runs: with the graph of a number, and without waiting for the device."""
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry(_NUMBER, number)
    if number != _NO_GRAPH:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


class GraphedOrtBackend(OrtBackend):
    """:class:`~stn_infer.backends.ort.OrtBackend` on a GPU with CUDA graphs; copies overlap with the model.

    While a graph is recorded, no other thread of the process may use a GPU, but through backends of this class. A model
    with inputs of dynamic sizes gets no graphs. One that cannot be recorded runs without, with a warning.

    Args:
        model, device, threads, plugin: as there.
        streams: the streams to run on; None: those of the GPU.

    Raises:
        ModelError, MissingDependencyError: as there.
    """

    def __init__(
        self,
        model: Path | bytes,
        device: str = "cuda",
        threads: int | None = None,
        *,
        plugin: bool | None = None,
        streams: Streams | None = None,
    ) -> None:
        self._open = partial(super().__init__, model, device, threads, plugin=plugin)
        self._graphs: OrtGraphs | None = None
        #: Why there are no CUDA graphs.
        self.graph_problem: str | None = None
        target = Device.parse(device)
        found = streams or _cuda_streams(target)
        if isinstance(found, str):
            self.graph_problem = found
            self._open()
            return
        options = {"enable_cuda_graph": "1", "user_compute_stream": str(getattr(found, "address", 0))}
        try:
            self._open(cuda_options=options)
        except ModelError as error:  # as where an operator has no CUDA kernel
            self._open_without(error)
            return
        if any(None in spec.shape[1:] for spec in self.inputs):
            self.graph_problem = "the model has inputs of dynamic sizes"
            self._open()
            return
        self._graphs = OrtGraphs(self.session, found, (target.kind, target.index))
        self.in_flight, self.takes_pixels = SLOTS, True

    def describe(self) -> dict[str, str]:
        """As there, and whether CUDA graphs are used."""
        return {**super().describe(), **graphs_text(self.graph_problem)}

    def close(self) -> None:
        """Wait for all calls, and release the session."""
        with _GATE.alone():
            self._release()
            super().close()

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        def copied(given: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
            for target, source in zip(tensors, given, strict=True):
                target.copy_(source)

        arrays = [inputs[spec.name] for spec in self.inputs]
        shapes = tuple(array.shape for array in arrays)
        return self._run_gated(arrays, shapes, copied, lambda: inputs, partial(super()._run, inputs))

    def _run_pixels(self, spec: TensorSpec, pixels: NDArray[np.uint8], preprocess: Preprocess) -> dict[str, Array]:
        array, last = interleaved(pixels)

        def normalized(given: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
            normalize_on_device(given[0].permute(0, 3, 1, 2) if last else given[0], preprocess, tensors[0])

        feeds = partial(as_input, spec, pixels, preprocess)
        return self._run_gated(
            [array], (pixels.shape,), normalized, feeds, partial(super()._run_pixels, spec, pixels, preprocess)
        )

    def _run_gated(
        self,
        arrays: Sequence[Array],
        shapes: Shapes,
        fill: Fill,
        feeds: Callable[[], Mapping[str, Array]],
        ungraphed: Callable[[], dict[str, Array]],
    ) -> dict[str, Array]:
        """The outputs by a CUDA graph; or without one for shapes that are new, which may then get one.

        Args:
            arrays: what is copied to the device.
            shapes: of the model's inputs.
            fill: see :data:`Fill`.
            feeds: gives the model's inputs by name.
            ungraphed: gives the outputs if the model has no graphs.
        """
        with _GATE.shared():
            graphs, names = self._graphs, self.session.outputs
            if graphs is None:
                return ungraphed()
            if graphs.has(shapes):
                return dict(zip(names, graphs.run(arrays, shapes, fill), strict=True))
            given = feeds()
            outputs = graphs.run_without(given)
            wanted = graphs.wants(shapes)
        if wanted:
            with _GATE.alone():
                if self._graphs is graphs:  # neither closed nor failed meanwhile
                    self._record(graphs, given, outputs)
        return dict(zip(names, outputs, strict=True))

    def _record(self, graphs: OrtGraphs, given: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        try:
            graphs.record(given, outputs)
        except ModelError as error:
            self._release()
            self._open_without(error)

    def _open_without(self, error: ModelError) -> None:
        self._open()  # raises what is wrong with the model itself
        self.graph_problem = one_line(error)
        label = self.session.label
        warnings.warn(f"{label} runs without CUDA graphs: {self.graph_problem}", FallbackWarning, stacklevel=2)

    def _release(self) -> None:
        if self._graphs is not None:
            self._graphs.close()
        self._graphs = self._session = None


def _cuda_streams(target: Device) -> CudaStreams | str:
    """Streams of a GPU, on which a session can run; or why there are none."""
    try:
        require_cuda(torch, target)
    except MissingDependencyError as error:
        return str(error)
    return CudaStreams(torch.device(str(target)))
