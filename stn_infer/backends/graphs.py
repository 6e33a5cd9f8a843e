"""A model's work on a GPU as CUDA graphs, one for each shape of its inputs: a batch costs one launch.

A graph reads and writes memory of its own, so that all slots share it. A call copies its inputs there and the outputs
to its slot, on the same stream, and the next replay waits for neither the copy to the GPU nor the copy back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stn_infer.backends.slots import Slot, Streams
from stn_infer.errors import FallbackWarning, ModelError, one_line

#: Graphs of a model. More shapes than that run without; a graph that is not launched may still run, so none is dropped.
MOST_GRAPHS = 4


@dataclass
class _Graph:
    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Callable[[], None]


class Graphs:
    """Runs a model's work, and from the third call with a shape on as a CUDA graph.

    The first call of a shape chooses algorithms and compiles, the second is recorded. A model that cannot be recorded
    runs without graphs, with a warning.

    Args:
        streams: the device's.
        label: the model's name in the warning.
    """

    def __init__(self, streams: Streams, label: str) -> None:
        self._streams, self._label = streams, label
        self._seen: dict[Hashable, list[tuple[torch.Size, torch.dtype]]] = {}  # the outputs of the first call
        self._graphs: dict[Hashable, _Graph] = {}
        #: Why there are no graphs.
        self.problem: str | None = None

    def run(
        self, kind: Hashable, tensors: Sequence[Tensor], slot: Slot, work: Callable[[Sequence[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """What ``work`` returns for ``tensors``, enqueued on the compute stream; for one call at a time.

        Args:
            kind: of the work; what it does depends on nothing else and on the tensors' shapes.
            tensors: inputs on the device, contiguous.
            slot: where the outputs of a graph stay until the slot's next call.
            work: enqueues the model.
        """
        key = kind, *((tensor.shape, tensor.dtype) for tensor in tensors)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._recorded(key, tensors, work)
        if graph is None:
            found = work(tensors)
            if len(self._seen) < MOST_GRAPHS:
                self._seen.setdefault(key, [(output.shape, output.dtype) for output in found])
            return found
        for target, source in zip(graph.inputs, tensors, strict=True):
            target.copy_(source)
        graph.replay()
        return handed_over(graph.outputs, slot)

    def describe(self) -> dict[str, str]:
        """Whether there are graphs, for reports."""
        return graphs_text(self.problem)

    def _recorded(
        self, key: Hashable, tensors: Sequence[Tensor], work: Callable[[Sequence[Tensor]], list[Tensor]]
    ) -> _Graph | None:
        """A new graph; None: not yet, or not for this model."""
        if key not in self._seen or self.problem is not None:
            return None
        memory = self._streams.memory
        inputs = [memory(it.shape, it.dtype) for it in tensors]
        outputs = [memory(shape, dtype) for shape, dtype in self._seen[key]]

        def recorded() -> None:
            for target, source in zip(outputs, work(inputs), strict=True):
                target.copy_(source)

        try:
            self._graphs[key] = _Graph(inputs, outputs, self._streams.capture(recorded))
        except (RuntimeError, ModelError) as error:
            self.problem = one_line(error)
            warnings.warn(f"{self._label} runs without CUDA graphs: {self.problem}", FallbackWarning, stacklevel=2)
        return self._graphs.get(key)


def handed_over(outputs: Sequence[Tensor], slot: Slot) -> list[Tensor]:
    """Copies of a graph's outputs in a slot's memory, where the next replay does not overwrite them."""
    copies = [slot.memory(f"result {index}", it.shape, it.dtype) for index, it in enumerate(outputs)]
    for copy, output in zip(copies, outputs, strict=True):
        copy.copy_(output)
    return copies


def graphs_text(problem: str | None) -> dict[str, str]:
    """How reports say whether CUDA graphs are used, and if not, why."""
    return {"CUDA graphs": "yes" if problem is None else f"no: {problem}"}
