"""Run two files side by side on the same samples, and measure how far one is from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.deviation import Level, largest_error
from stn_infer.reference.comparison import grid_distance
from stn_infer.reference.model import Sampling

if TYPE_CHECKING:
    import onnx

    from stn_infer.fusion.op import SpatialNode


@dataclass(frozen=True)
class Run:
    """What a file made of one batch.

    Attributes:
        outputs: by name.
        samplings: where each sampler reads, in graph order.
    """

    outputs: dict[str, Array]
    samplings: tuple[Sampling, ...]


@dataclass(frozen=True)
class _Sampler:
    """Where to see what a sampler does: the tensor with theta or the grid, and the one with the sampled size."""

    coordinates: str
    shape: str
    mode: str
    align_corners: bool
    node: SpatialNode | None  # None: ``coordinates`` is a grid


class Probe:
    """An ONNX model in onnxruntime on the CPU that shows its samplers' coordinates beside its outputs.

    Args:
        model: fused or not; coordinates are float32 whatever the features are, and keep their names in every precision.
        plain: whether spatial transformers run by the file's functions, even where the plugin library is built.

    Raises:
        ModelError: onnxruntime refuses the model.
    """

    def __init__(self, model: onnx.ModelProto, *, plain: bool = False) -> None:
        import onnx
        from onnx import helper

        from stn_infer.fusion.op import spatial_nodes
        from stn_infer.proto.edit import copy_of
        from stn_infer.proto.names import Names
        from stn_infer.proto.traversal import attributes_of, is_standard
        from stn_infer.samplers import spell_mode

        probe = copy_of(model)
        self.inputs = tuple(value.name for value in probe.graph.input)
        self._outputs = tuple(value.name for value in probe.graph.output)
        spatial = {node.output: node for node in spatial_nodes(model)}
        self._samplers: list[_Sampler] = []
        names = Names(probe.graph)
        shown: dict[str, None] = {}
        for index, node in enumerate(model.graph.node):
            ours = spatial.get(node.output[0]) if node.output else None
            if ours is None and not is_standard(node, "GridSample"):
                continue
            attributes = attributes_of(node)
            mode = spell_mode(attributes.get("mode", "bilinear"))
            shape = names.fresh(f"stn_probe_shape_{index}")
            probe.graph.node.append(helper.make_node("Shape", [node.input[0]], [shape]))
            corners = bool(attributes.get("align_corners", 0))
            self._samplers.append(_Sampler(node.input[1], shape, mode, corners, ours))
            shown[node.input[1]] = shown[shape] = None
        for name in shown:
            if name not in (*self.inputs, *self._outputs):
                probe.graph.output.append(onnx.ValueInfoProto(name=name))
        self._backend = OrtBackend(probe.SerializeToString(), plugin=False if plain else None)

    def run(self, feeds: Mapping[str, Array]) -> Run:
        """Run one batch of inputs by name."""
        results: Mapping[str, Array] = {**feeds, **self._backend.run(feeds)}
        samplings = []
        for sampler in self._samplers:
            grid = results[sampler.coordinates]
            if sampler.node is not None:
                grid = sampler.node.grid(grid)
            size = tuple(int(axis) for axis in results[sampler.shape][2:])
            samplings.append(Sampling(grid, size, sampler.mode, sampler.align_corners))
        return Run({name: results[name] for name in self._outputs}, tuple(samplings))


class PrecisionLoss:
    """How far one file is from another, over any number of batches."""

    def __init__(self) -> None:
        self._errors: dict[str, float] = {}
        self._levels: dict[str, Level] = {}
        self._px: float | None = None
        self._same = self.compared = 0

    def add(self, expected: Run, actual: Run, *, scored: bool, alike: Mapping[str, Array] | None = None) -> None:
        """Count one batch; ``scored``: whether its samples are real, so that the class they get means something."""
        self.add_outputs(expected.outputs, actual.outputs, alike)
        for want, got in zip(expected.samplings, actual.samplings, strict=True):
            distance, _ = grid_distance(want.sampler, want.grid, got.grid, want.size)
            self._px = max(self._px or 0.0, distance)
        first = next(iter(expected.outputs))
        want_scores, got_scores = expected.outputs[first], actual.outputs[first]
        if scored and want_scores.dtype.kind == "f" and want_scores.ndim == 2 and want_scores.shape[1] > 1:
            self.compared += len(want_scores)
            self._same += int((want_scores.argmax(1) == got_scores.argmax(1)).sum())

    def add_outputs(
        self, expected: Mapping[str, Array], actual: Mapping[str, Array], alike: Mapping[str, Array] | None = None
    ) -> None:
        """Count one batch's outputs alone; ``alike``: what rounding in the same precision may make of ``expected``."""
        for name, want in expected.items():
            level = Level.of(want, [alike[name]] if alike and name in alike else [])
            self._levels[name] = self._levels.get(name, level) | level
            self._errors[name] = max(self._errors.get(name, 0.0), largest_error(want, actual[name]))

    @property
    def output_error(self) -> float:
        """The worst output: largest error over its scale; of whole numbers, the share that differs."""
        return max((error / self._levels[name].scale() for name, error in self._errors.items()), default=0.0)

    @property
    def grid_px(self) -> float | None:
        """The largest distance along an axis between two sampling points, in pixels; None without a sampler."""
        return self._px

    @property
    def agreement(self) -> float | None:
        """The share of scored samples whose first output has its maximum in the same place; None without scores."""
        return self._same / self.compared if self.compared else None


def activation_peaks(model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """The largest magnitude that each float32 tensor of the main graph reaches on ``batches``; NaN where it holds one.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    import onnx
    from onnx import TensorProto, helper

    from stn_infer.proto.edit import copy_of

    known = onnx.shape_inference.infer_shapes(model).graph
    values = (*known.value_info, *known.input, *known.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    made = {value.name for value in model.graph.input} | {name for node in model.graph.node for name in node.output}
    probe = copy_of(model)
    del probe.graph.output[:]
    names = sorted(floats & made)
    for index, name in enumerate(names):
        peak = f"stn_peak_{index}"
        probe.graph.node.append(helper.make_node("Abs", [name], [f"{peak}_abs"]))
        probe.graph.node.append(helper.make_node("ReduceMax", [f"{peak}_abs"], [peak], keepdims=0))
        probe.graph.output.append(onnx.ValueInfoProto(name=peak))
    backend = OrtBackend(probe.SerializeToString())
    peaks = dict.fromkeys(names, 0.0)
    for feeds in batches:
        found = backend.run(feeds)
        for index, name in enumerate(names):
            peaks[name] = float(np.maximum(peaks[name], found[f"stn_peak_{index}"]))  # keeps not-a-number
    return peaks
