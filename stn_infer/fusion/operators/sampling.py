"""ONNX's GridSample in float64, for images and volumes."""

from __future__ import annotations

from collections.abc import Sequence

from stn_infer.arrays import Array
from stn_infer.fusion.operators.inputs import Attributes, Operator, present
from stn_infer.samplers import SamplerSpec
from stn_infer.sampling import sample


def _grid_sample(attributes: Attributes, inputs: Sequence[Array | None]) -> list[Array]:
    image, grid = present(inputs)
    spec = SamplerSpec.of(
        str(attributes.get("mode", "linear")),
        str(attributes.get("padding_mode", "zeros")),
        bool(attributes.get("align_corners", 0)),
    )
    return [sample(spec, image, grid)]


SAMPLING: dict[str, Operator] = {"GridSample": _grid_sample}
"""Operator -> function."""
