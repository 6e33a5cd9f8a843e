"""What a benchmark's outputs are verified against: eager float64 PyTorch, or onnxruntime without optimizations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array
from stn_infer.benchmarking.request import Case
from stn_infer.deviation import Level, float32_tolerance
from stn_infer.errors import ModelError, UsageError
from stn_infer.metadata import Precision
from stn_infer.reference.samples import Batch
from stn_infer.verification.tolerance import Float32Levels

if TYPE_CHECKING:
    from stn_infer.sources.load import LoadedModel

Run = Callable[[Sequence[Array]], list[Array]]

_LEAST_SPREAD_PX = 0.5
# Of the scale: a half type has 11 or 8 bits, and a network adds up many of their roundings.
_HALF_TOLERANCE: dict[Precision, float] = {"fp16": 1e-2, "bf16": 5e-2}

# Quantized alike, outputs differ where a rounding went to the next of 127 steps.
_INT8_OF_ITSELF = 1e-2


@dataclass
class Seen:
    """What the reference showed.

    Attributes:
        nearest: whether a sampler is.
        alike: whether all samples of a batch have the same grid.
        levels: of the outputs, over all batches.
        rounding: float32's own error over the outputs' magnitude, as ``verify`` measures it.
    """

    nearest: bool = False
    alike: bool = False
    levels: tuple[Level, ...] = ()
    rounding: float = 0.0

    def note(self, found: Float32Levels) -> None:
        """Add a batch."""
        self.levels = tuple(map(or_, self.levels or found.outputs, found.outputs))
        self.rounding = max(self.rounding, found.rounding)


def torch_reference(loaded: LoadedModel) -> tuple[Run, str, Seen]:
    """Eager PyTorch in float64 where that works: how to run it, what it is, and what is seen on the way."""
    from stn_infer.reference.model import Reference
    from stn_infer.verification.tolerance import Expectation, eager_float32, float32_levels

    reference = Reference.of(loaded)
    seen, single = Seen(), eager_float32(loaded)

    def run(inputs: Sequence[Array]) -> list[Array]:
        outputs, calls = reference.run(inputs)
        seen.nearest |= any(call.spec.mode == "nearest" for call in calls)
        spreads = [float(np.ptp(call.pixels, axis=0).max(initial=0.0)) for call in calls if len(call.pixels) > 1]
        seen.alike |= any(spread < _LEAST_SPREAD_PX for spread in spreads)
        found = Expectation(Batch("bench", tuple(inputs)), outputs, calls)
        seen.note(float32_levels(reference, [found], single))
        return outputs

    return run, f"{reference.dtype} eager", seen


#: The types of inputs that there are samples for.
_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


def file_reference(path: Path, case: Case) -> tuple[Run, str, Seen, LoadedModel]:
    """onnxruntime without optimizations, for a file without a source."""
    from torch import nn

    from stn_infer.metadata import ModelMetadata
    from stn_infer.proto.load import load_model
    from stn_infer.proto.session import open_session
    from stn_infer.sources.load import LoadedModel

    session = open_session(path, optimized=False)
    given = session.raw.get_inputs()
    if not given:
        raise ModelError(f"{path}: expected a model with inputs; it has none")
    wrong = [value for value in given if value.type not in _TYPES]
    if wrong:
        raise UsageError(
            f"{path}: bench feeds float32 and uint8, input {wrong[0].name!r} takes {wrong[0].type}; "
            "put a Cast before it, or use a variant of your own"
        )
    shapes = case.input_shapes or tuple(tuple(value.shape[1:]) for value in given)
    if any(not isinstance(axis, int) for shape in shapes for axis in shape):
        raise UsageError(f"{path}: it has dynamic axes other than the batch; add --input-shape C,H,W")
    metadata = ModelMetadata.from_props(session.raw.get_modelmeta().custom_metadata_map)
    nearest = any(
        attribute.name == "mode" and attribute.s == b"nearest"
        for node in load_model(path).graph.node
        for attribute in node.attribute
    )

    seen = Seen(nearest)

    def run(inputs: Sequence[Array]) -> list[Array]:
        outputs = [np.asarray(value) for value in session.run(dict(zip(session.inputs, inputs, strict=True)))]
        seen.note(Float32Levels(tuple(map(Level.of, outputs))))
        return outputs

    types = tuple(_TYPES[value.type] for value in given)
    stand_in = LoadedModel(path.stem, nn.Identity(), shapes, metadata, "factory", dtypes=types)
    return run, "float32 onnxruntime without optimizations", seen, stand_in


def tolerance_of(reference: str, precision: Precision, rounding: float, *, of_itself: bool = False) -> float:
    """On each output's error over its scale, where the user names none.

    Args:
        reference: what outputs are compared with, as :func:`torch_reference` and :func:`file_reference` call it.
        precision: of the weights and images; int8 is held to what ``export`` and ``verify`` hold it to.
        rounding: float32's own, see :class:`Seen`.
        of_itself: whether outputs are compared with those of the very file, in that precision already.
    """
    from stn_infer.precision.lower import TOLERANCES
    from stn_infer.verification.model import TOLERANCE, TOLERANCE_FP32_REFERENCE

    if precision == "int8" and of_itself:
        return _INT8_OF_ITSELF
    if precision == "int8":
        return TOLERANCES["int8"][0]
    if precision in _HALF_TOLERANCE:
        return _HALF_TOLERANCE[precision]
    return float32_tolerance(TOLERANCE, rounding) if reference.startswith("float64") else TOLERANCE_FP32_REFERENCE
