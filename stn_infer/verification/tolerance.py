"""Measure float32's rounding error on a model, because no runtime can be more exact than float32 in PyTorch itself.

Rounding matters for images of 100 pixels and more: coordinates have 24 bits, and an error of a hundred-thousandth of a
pixel on an edge between black and white is a hundred-thousandth of the output.
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
from stn_infer.progress import step
from stn_infer.reference.calls import SamplerCall
from stn_infer.reference.model import ReferenceModel
from stn_infer.reference.onnx_file import OrtReference
from stn_infer.reference.samples import Batch

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources.load import LoadedModel

Float32Model = Callable[[Sequence[Array]], tuple[list[Array], list[Array], list[Array]]]
"""A model in float32: maps inputs to outputs, the images that the samplers read, and the warped images."""


@dataclass(frozen=True)
class Expectation:
    """A batch, with the reference's outputs and sampler calls for it."""

    batch: Batch
    outputs: list[Array]
    calls: list[SamplerCall]


def expect(reference: ReferenceModel, batches: Sequence[Batch]) -> list[Expectation]:
    """Run the reference on each batch."""
    step(f"verifying: running {reference.title}")
    return [Expectation(batch, *reference.run(batch.inputs)) for batch in batches]


@dataclass(frozen=True)
class Float32Levels:
    """The level of each array over all batches, with float32's error as its noise if it was measured.

    Attributes:
        outputs: one per output.
        images: one per sampler, of the image that it reads.
        nearest: whether a sampler is ``nearest``. Such a sampler may turn a rounding error into another pixel, which
            does not count as noise: the noise of the outputs is measured with the same pixels in both runs.
    """

    outputs: tuple[Level, ...] = ()
    images: tuple[Level, ...] = ()
    nearest: bool = False

    @property
    def rounding(self) -> float:
        """The largest noise of an output over its scale; 0 with a nearest sampler, for which none is allowed."""
        return 0.0 if self.nearest else max((level.rounding for level in self.outputs), default=0.0)

    @property
    def image_rounding(self) -> float:
        """The largest noise of an image that a sampler reads, over its scale."""
        return max((level.rounding for level in self.images), default=0.0)


def eager_float32(loaded: LoadedModel) -> Float32Model:
    """Open a PyTorch source in float32, without ``torch.autocast``."""
    from stn_infer.torch_export.autocast import autocast_off
    from stn_infer.verification.runners import EagerRunner

    runner = EagerRunner(loaded, "cpu", fused=False)

    def run(inputs: Sequence[Array]) -> tuple[list[Array], list[Array], list[Array]]:
        with autocast_off():
            found = runner.run(inputs)
        images, warps = [call.image for call in found.calls], [call.warped for call in found.calls]
        return list(found.outputs.values()), images, warps

    return run


def file_float32(model: onnx.ModelProto) -> Float32Model | None:
    """Open an ONNX file in onnxruntime without optimizations; None if onnxruntime cannot load it."""
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
    single: Float32Model | None,
    *,
    own_warps: bool = False,
) -> Float32Levels:
    """Measure the magnitudes of the reference's arrays, and float32's error on them.

    Args:
        reference: the model that ``expectations`` come from.
        expectations: the batches and the reference's results for them.
        single: the same model in float32; if it is None, or the reference is not in float64, no noise is measured.
        own_warps: give the reference float32's own warped images. This excludes the effect of a coordinate's last
            digits on a warped image, and leaves the noise of the downstream network.
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
