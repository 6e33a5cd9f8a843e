"""What ``run --save-images`` watches: the samplers of a model, and what each of them reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend, TensorSpec
from stn_infer.errors import ModelError
from stn_infer.fusion.samplers import SamplerNode
from stn_infer.metadata import ModelMetadata
from stn_infer.proto.embed import LAST_NODE
from stn_infer.proto.traversal import given_inputs, is_standard, names_read
from stn_infer.reference.taps import Tapped, tap
from stn_infer.sampling import Doubles

Reads = Literal["picture", "other"]
# What hands values on as they are.
_KEEPS = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class WatchedSampler:
    """A sampler of images.

    Attributes:
        node: the sampler.
        outputs: the names of the outputs ``image``, ``warped``, and ``theta`` or ``grid`` of the watched model.
        reads: ``picture``: it samples the model's input, or a crop of it; its result has the input's values.
        first: whether no other sampler comes before it, so that its region is one of the input.
    """

    node: SamplerNode
    outputs: Mapping[str, str]
    reads: Reads
    first: bool

    def outline(self, values: Mapping[str, Array]) -> Doubles | None:
        """The edge of each sampled region, [N, L, 2], clockwise from the top left of the result.

        Coordinates are (x, y) in [0, 1] of the sampled image, from the outer edge of its first pixel. None: the region
        is one of another sampler's result.
        """
        if not self.first:
            return None
        size = values[self.outputs["image"]].shape[2:]
        if "grid" in self.outputs or self.node.basis is None:
            grid = values[self.outputs["grid"]].astype(np.float64)
        else:
            grid = self.node.basis.exact().grid(values[self.outputs["theta"]])
        sides = (grid[:, 0], grid[:, 1:, -1], grid[:, -1, -2::-1], grid[:, -2:0:-1, 0])
        pixels = self.node.spec.pixels(np.concatenate(sides, axis=1), size)
        found: Doubles = (pixels + 0.5) / np.array(size[::-1], np.float64)
        return found


class WatchedBackend:
    """A backend whose model has outputs for what its samplers read and return; ``outputs`` are those of the original.

    Args:
        opened: the backend with the model of ``tapped``.
        tapped: the model.
        warps: its samplers, from :func:`watch`.
    """

    def __init__(self, opened: Backend, tapped: Tapped, warps: tuple[WatchedSampler, ...]) -> None:
        self._opened = opened
        self.name, self.device = opened.name, opened.device
        self.inputs: tuple[TensorSpec, ...] = opened.inputs
        self.outputs: tuple[TensorSpec, ...] = tuple(spec for spec in opened.outputs if spec.name in tapped.outputs)
        self.metadata: ModelMetadata = opened.metadata
        self.warps = warps

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs; raises as the backend does."""
        return self._opened.run(inputs)

    def describe(self) -> dict[str, str]:
        """The runtime's description."""
        return self._opened.describe()

    def close(self) -> None:
        """Release the backend."""
        self._opened.close()


def watch(model: onnx.ModelProto) -> tuple[Tapped, tuple[WatchedSampler, ...]]:
    """The model with outputs for its samplers of images, and these in graph order.

    Raises:
        ModelError: it has none, or its functions cannot be inlined.
    """
    tapped = tap(model, inlined=False)
    graph = _Graph(tapped)
    warps = []
    for node, outputs in zip(tapped.samplers, tapped.taps, strict=True):
        if _is_flat(node):
            warps.append(WatchedSampler(node, outputs, graph.reads(node.input), graph.is_first(node.input)))
    if not warps:
        raise ModelError("the model has no sampler of images in its main graph, so there are no warped images to save")
    return tapped, tuple(warps)


def read_pictures(tapped: Tapped) -> tuple[bool, ...]:
    """Of each sampler, whether it samples the model's input, or a crop of it."""
    graph = _Graph(tapped)
    return tuple(graph.reads(node.input) == "picture" for node in tapped.samplers)


def _is_flat(node: SamplerNode) -> bool:
    """Whether a sampler's results are images, as far as the file says it."""
    return node.basis is None or len(node.basis.output_size) == 2


class _Graph:
    def __init__(self, tapped: Tapped) -> None:
        graph = tapped.model.graph
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._inputs = {value.name for value in given_inputs(graph)}
        self._samplers = {node.output: node for node in tapped.samplers}

    def reads(self, name: str) -> Reads:
        """Whether a tensor is the model's input, as it is or warped."""
        while name not in self._inputs:
            if name in self._samplers:
                name = self._samplers[name].input
                continue
            node = self._producers.get(name)
            if node is not None and node.name == LAST_NODE:
                return "picture"
            if node is None or not node.input or not is_standard(node, *_KEEPS):
                return "other"
            name = node.input[0]
        return "picture"

    def is_first(self, name: str) -> bool:
        """Whether a tensor does not depend on any sampler."""
        seen, rest = {name}, [name]
        while rest:
            current = rest.pop()
            if current in self._samplers:
                return False
            if current in self._producers:
                new = set(names_read(self._producers[current])) - seen
                seen |= new
                rest += new
        return True
