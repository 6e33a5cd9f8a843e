"""Runs two files on the same samples, and measures the deviation of one from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.deviation import Level, largest_error
from stn_infer.reference.calls import TracedRun
from stn_infer.reference.comparison import grid_distance
from stn_infer.reference.taps import tap

if TYPE_CHECKING:
    import onnx


class Probe:
    """An ONNX model in onnxruntime on the CPU that returns its samplers' coordinates besides its outputs.

    Args:
        model: fused or not; coordinates are float32 and have the same names in every precision.
        plain: whether spatial transformers run as the file's functions, even if the plugin library is built.

    Raises:
        ModelError: onnxruntime rejects the model.
    """

    def __init__(self, model: onnx.ModelProto, *, plain: bool = False) -> None:
        self.inputs = tuple(value.name for value in model.graph.input)
        self._tapped = tap(model, inlined=False)
        self._backend = OrtBackend(self._tapped.model.SerializeToString(), plugin=False if plain else None)

    def run(self, feeds: Mapping[str, Array]) -> TracedRun:
        """Runs one batch of inputs by name."""
        return self._tapped.read(self._backend.run(feeds))


class PrecisionLoss:
    """The deviation of one file from another, over any number of batches."""

    def __init__(self) -> None:
        self._errors: dict[str, float] = {}
        self._levels: dict[str, Level] = {}
        self._px: float | None = None
        self._same = self.compared = 0

    def add(
        self, expected: TracedRun, actual: TracedRun, *, scored: bool, alike: Mapping[str, Array] | None = None
    ) -> None:
        """Adds one batch; ``scored``: whether its samples are real images, so that their classes are compared."""
        self.add_outputs(expected.outputs, actual.outputs, alike)
        for want, got in zip(expected.calls, actual.calls, strict=True):
            distance, _ = grid_distance(want.spec, want.grid, got.grid, want.size)
            self._px = max(self._px or 0.0, distance)
        first = next(iter(expected.outputs))
        want_scores, got_scores = expected.outputs[first], actual.outputs[first]
        if scored and want_scores.dtype.kind == "f" and want_scores.ndim == 2 and want_scores.shape[1] > 1:
            self.compared += len(want_scores)
            self._same += int((want_scores.argmax(1) == got_scores.argmax(1)).sum())

    def add_outputs(
        self, expected: Mapping[str, Array], actual: Mapping[str, Array], alike: Mapping[str, Array] | None = None
    ) -> None:
        """Adds one batch's outputs only; ``alike``: ``expected`` with different rounding in the same precision."""
        for name, want in expected.items():
            level = Level.of(want, [alike[name]] if alike and name in alike else [])
            self._levels[name] = self._levels.get(name, level) | level
            self._errors[name] = max(self._errors.get(name, 0.0), largest_error(want, actual[name]))

    @property
    def output_error(self) -> float:
        """The worst output: its largest error over its scale, or for integers the share of different values."""
        return max((error / self._levels[name].scale() for name, error in self._errors.items()), default=0.0)

    @property
    def grid_px(self) -> float | None:
        """The largest distance along an axis between two sampling points, in pixels; None without a sampler."""
        return self._px

    @property
    def agreement(self) -> float | None:
        """The share of scored samples whose first output has the same argmax; None without scores."""
        return self._same / self.compared if self.compared else None


def activation_peaks(model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """Returns the largest magnitude of each float32 tensor of the main graph on ``batches``; NaN if it contains NaN.

    Raises:
        ModelError: onnxruntime rejects the model.
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
            peaks[name] = float(np.maximum(peaks[name], found[f"stn_peak_{index}"]))  # propagates NaN
    return peaks
