"""OpenVINO's variants: which file, with its extension or without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from stn_infer.arrays import Array
from stn_infer.backends.openvino.backend import OpenVinoBackend
from stn_infer.benchmarking.harness.variant import BoundVariant, Inspection, OpenVariant
from stn_infer.benchmarking.prepare.case import Setup, onnx_file
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.benchmarking.variants.stages import LONGEST_S, NO_SAMPLER, RECORDED, UNRECORDED, add_up
from stn_infer.errors import ModelError

#: The operators of samplers in OpenVINO; nodes of an extension have the type Reference.
_SAMPLERS = ("GridSample", "Reference")
_NO_GRID = "OpenVINO's profile does not tell which nodes compute the sampling grid"


class OpenVinoVariant(OpenVariant):
    """A compiled model in OpenVINO, for one caller: latency is what it is compiled for."""

    def __init__(self, name: str, setup: Setup) -> None:
        if setup.method.boundary == "device":
            raise ModelError("OpenVINO has no device boundary: it runs on the CPU")
        file = Path(onnx_file(name, setup.prepared))
        self.open = partial(
            OpenVinoBackend, file, setup.device, setup.threads, callers=1, plugin=name == "openvino-fused"
        )
        self.backend = self.open()

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return _Arrays(self, inputs)

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return self.backend.describe()

    def close(self) -> None:
        """Release the model."""
        self.backend.close()


class _Arrays(BoundVariant):
    """Arrays in, arrays out; inputs are not copied, outputs are."""

    alone = "the model is compiled for one caller"

    def __init__(self, variant: OpenVinoVariant, inputs: Sequence[Array]) -> None:
        self._variant = variant
        self._feeds = dict(zip((spec.name for spec in variant.backend.inputs), inputs, strict=True))

    def call(self) -> object:
        return self._variant.backend.run(self._feeds)

    def outputs(self) -> Sequence[Array]:
        return list(self._variant.backend.run(self._feeds).values())

    def inspect(self) -> Inspection:
        """By OpenVINO's counters, in a model compiled with them."""
        backend = self._variant.open(profile=True)
        try:
            return inspect_backend(backend, self._feeds)
        finally:
            backend.close()


def inspect_backend(backend: OpenVinoBackend, feeds: dict[str, Array]) -> Inspection:
    """Where the samplers of a backend that was opened with ``profile`` ran, and their share of the time."""
    times: dict[str, list[float]] = {}
    nodes = {}
    began = time.monotonic()
    for run in range(UNRECORDED + RECORDED):
        if run and time.monotonic() - began > LONGEST_S:
            break
        for node in backend.profile(feeds):
            nodes[node.name] = node
            if run >= UNRECORDED or not run:
                times.setdefault(node.name, []).append(node.ms)
    samplers = tuple(
        SamplerPlacement(
            name, "GridSample" if node.operator == "GridSample" else "stn op", f"OpenVINO, {node.implementation}"
        )
        for name, node in nodes.items()
        if node.operator in _SAMPLERS
    )
    if not samplers:
        return NO_SAMPLER
    stages = (("sampling" if nodes[name].operator in _SAMPLERS else "rest", median(ms)) for name, ms in times.items())
    return add_up(stages, samplers, _NO_GRID)
