"""How exact float32 can be on a model: a runtime can't be held to less than what float32 reaches in PyTorch itself.

A warped image of 100 pixels and more is such a case: coordinates have 24 bits, and a hundred-thousandth of a pixel on
an edge between black and white is a hundred-thousandth of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from operator import or_
from typing import TYPE_CHECKING

from stn_infer.arrays import Array
from stn_infer.deviation import Level
from stn_infer.errors import ModelError
from stn_infer.reference.calls import SamplerCall
from stn_infer.reference.model import ReferenceModel
from stn_infer.reference.onnx_file import OrtReference
from stn_infer.reference.samples import Batch

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources.load import LoadedModel

Single = Callable[[Sequence[Array]], tuple[list[Array], list[Array], list[Array]]]
"""A model in float32: inputs to outputs, what each sampler reads, and what it returns."""


@dataclass(frozen=True)
class Expectation:
    """A batch, and what the reference makes of it."""

    batch: Batch
    outputs: list[Array]
    calls: list[SamplerCall]


def expect(reference: ReferenceModel, batches: Sequence[Batch]) -> list[Expectation]:
    """Run the reference."""
    return [Expectation(batch, *reference.run(batch.inputs)) for batch in batches]


@dataclass(frozen=True)
class Float32Levels:
    """The level of each array over all batches, with what float32 is off by where that can be told.

    Attributes:
        outputs: one an output.
        images: one a sampler, of what it reads.
        nearest: whether a sampler is ``nearest``. Where one turns a rounding error into another pixel, that is no noise
            of what comes after: the noise of outputs is what the rest of the network makes of the same pixels.
    """

    outputs: tuple[Level, ...] = ()
    images: tuple[Level, ...] = ()
    nearest: bool = False

    @property
    def rounding(self) -> float:
        """Of the outputs, over their magnitude; 0 with a nearest sampler, which no tolerance allows for."""
        return 0.0 if self.nearest else max((level.rounding for level in self.outputs), default=0.0)

    @property
    def image_rounding(self) -> float:
        """Of what samplers read, over its magnitude."""
        return max((level.rounding for level in self.images), default=0.0)


def eager_float32(loaded: LoadedModel) -> Single:
    """A PyTorch source in float32."""
    from stn_infer.verification.runners import EagerRunner

    runner = EagerRunner(loaded, "cpu", fused=False)

    def run(inputs: Sequence[Array]) -> tuple[list[Array], list[Array], list[Array]]:
        found = runner.run(inputs)
        images, warps = [call.image for call in found.calls], [call.warped for call in found.calls]
        return list(found.outputs.values()), images, warps

    return run


def file_float32(model: onnx.ModelProto) -> Single | None:
    """An ONNX file in onnxruntime without optimizations; None where that can't run it."""
    try:
        session = OrtReference(model)
    except ModelError:
        return None

    def run(inputs: Sequence[Array]) -> tuple[list[Array], list[Array], list[Array]]:
        outputs, calls = session.run(inputs)
        return outputs, [call.image for call in calls], []

    return run


def float32_levels(
    reference: ReferenceModel,
    expectations: Sequence[Expectation],
    single: Single | None,
    *,
    own_warps: bool = False,
) -> Float32Levels:
    """How large the reference's arrays are, and how far float32 is from them.

    Args:
        reference: what ``expectations`` are of.
        expectations: what was run.
        single: the same model in float32; where it is None or the reference is no float64, no noise is measured.
        own_warps: whether the reference is given float32's own warped images. That leaves out what the last digits of
            a coordinate do to a warped image: it is what the rest of the network needs.
    """
    single = single if reference.dtype == "float64" else None
    modes = [call.spec.mode for call in expectations[0].calls] if expectations else []
    nearest = "nearest" in modes
    outputs: list[list[Level]] = []
    images: list[list[Level]] = []
    for found in expectations:
        values, read, warps = single(found.batch.inputs) if single is not None else ([], [], [])
        wanted = found.outputs
        if warps and (own_warps or nearest):
            wanted = reference.run(found.batch.inputs, warps)[0]
        outputs.append(_levels(wanted, values))
        images.append(
            _levels([call.image for call in found.calls], read[: modes.index("nearest") + 1 if nearest else None])
        )
    return Float32Levels(_joined(outputs), _joined(images), nearest)


def _levels(expected: Sequence[Array], actual: Sequence[Array]) -> list[Level]:
    return [Level.of(wanted, actual[index : index + 1]) for index, wanted in enumerate(expected)]


def _joined(batches: Sequence[Sequence[Level]]) -> tuple[Level, ...]:
    return tuple(reduce(or_, levels) for levels in zip_longest(*batches, fillvalue=Level()))
