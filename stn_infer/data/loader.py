"""Loading the samples of one batch into arrays for the model; a bad sample fails only its own row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.arrays import ArrayFiles
from stn_infer.data.images import decode, read
from stn_infer.data.inputs import Sample, is_array
from stn_infer.errors import AssumptionWarning, InputError, UsageError
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from stn_infer.preprocess.text import names_values

# Decoding a small image is mostly Python code and holds the GIL: two concurrent threads are slower than one (measured
# with 0.8 kB per image: 117 us with one thread, 227 us with two). From 3 kB on, two threads are faster.
_SMALL = 3000


@dataclass(frozen=True)
class Group:
    """Samples of one batch that can be stacked; several groups occur only if a model takes several sizes.

    Attributes:
        rows: positions of the samples in the batch.
        inputs: by input name, [len(rows), ...].
    """

    rows: tuple[int, ...]
    inputs: dict[str, Array]


@dataclass(frozen=True)
class LoadedBatch:
    """The loaded samples of one batch.

    Attributes:
        groups: the arrays to run.
        errors: by position in the batch, why a sample could not be loaded.
        holds_the_lock: whether loading held the GIL most of the time, because the images are small.
    """

    groups: tuple[Group, ...]
    errors: dict[int, str]
    holds_the_lock: bool = True


class Loader:
    """Reads samples for the model inputs ``specs``; safe to share between threads.

    Args:
        specs: the model's inputs, batch on axis 0.
        preprocess: how pixels become inputs, from :func:`resolve_preprocess`.
        axis: as for :class:`~stn_infer.data.arrays.ArrayFiles`; samples of two files are then never in one group.
    """

    def __init__(self, specs: Sequence[TensorSpec], preprocess: Preprocess | None, axis: str | None = None) -> None:
        self._specs = tuple(specs)
        self._preprocess = preprocess
        self._axis = axis
        self.arrays = ArrayFiles(specs, preprocess, axis)
        #: Whether an image file can be a sample: one input, [N, C, H, W].
        self.takes_images = len(self._specs) == 1 and preprocess is not None

    def load(self, samples: Sequence[Sample]) -> LoadedBatch:
        """Read, decode and pre-process ``samples``; errors are returned, not raised."""
        errors: dict[int, str] = {}
        ready: dict[int, dict[str, Array]] = {}
        images, size = 0, 0
        for position, sample in enumerate(samples):
            try:
                if sample.error:
                    raise InputError(sample.error)
                if is_array(sample.path):
                    ready[position] = self.arrays.load(sample.path, sample.row)
                    continue
                data = read(sample.path)
                images, size = images + 1, size + len(data)
                ready[position] = self._decode(data, sample)
            except InputError as error:
                errors[position] = str(error)
        groups: dict[object, list[int]] = {}
        for position in sorted(ready):
            kind: object = tuple([(array.shape, array.dtype.char) for array in ready[position].values()])
            if self._axis is not None:
                kind = (kind, samples[position].path)
            groups.setdefault(kind, []).append(position)
        return LoadedBatch(tuple(self._stack(rows, ready) for rows in groups.values()), errors, size <= images * _SMALL)

    def _decode(self, data: bytes, sample: Sample) -> dict[str, Array]:
        if not self.takes_images:
            raise InputError(f"{sample.path}: the model takes no images; give .npy or .npz files")
        assert self._preprocess is not None
        spec = self._specs[0]
        return {spec.name: decode(data, self._preprocess, (spec.shape[2], spec.shape[3]), sample.path)}

    def _stack(self, rows: Sequence[int], ready: Mapping[int, dict[str, Array]]) -> Group:
        inputs = {}
        for spec in self._specs:
            if self.arrays.is_shared(spec):
                inputs[spec.name] = ready[rows[0]][spec.name]
                continue
            stacked: Array = np.stack([ready[row][spec.name] for row in rows])
            if stacked.dtype != spec.dtype:  # pixels; other arrays already have the input's dtype
                assert self._preprocess is not None
                stacked = normalize(stacked, self._preprocess).astype(spec.dtype, copy=False)
            inputs[spec.name] = stacked
        return Group(tuple(rows), inputs)


def tell_assumption(
    how: Preprocess | None, own: Preprocess | None, given: Preprocess | str | None, *, strict: bool = False
) -> None:
    """Warn if neither the model's file nor the user says what a pixel value means to the model.

    Args:
        how: the result of :func:`resolve_preprocess` for the other two.
        own: the pre-processing stored in the model's file.
        given: the user's.
        strict: raise an error instead.

    Raises:
        UsageError: it had to be assumed, and ``strict``.
    """
    if how is None or own is not None or isinstance(given, Preprocess) or (given and names_values(given)):
        return
    text = (
        f"nothing says what the model takes; assumed {how.describe()} with values 0..1. Give the preprocessing of its "
        "training, such as --preprocess imagenet, or store it: stn-infer metadata FILE --preprocess ..."
    )
    if strict:
        raise UsageError(text)
    warnings.warn(text, AssumptionWarning, stacklevel=3)


def resolve_preprocess(
    specs: Sequence[TensorSpec], own: Preprocess | None, given: Preprocess | str | None
) -> Preprocess | None:
    """The pre-processing for a model.

    Args:
        specs: the model's inputs.
        own: the pre-processing stored in the model's file.
        given: the user's: a complete pre-processing or, as text, the fields to change.

    Returns:
        The pre-processing; None if no input is an image [N, C, H, W] of 1 or 3 channels. If neither ``own`` nor
        ``given`` is set: gray or rgb by the model's number of channels, scaled to 0..1.

    Raises:
        UsageError: its channels or size are not what the model takes, or the model takes no images.
    """
    image = next((spec for spec in specs if len(spec.shape) == 4 and spec.shape[1] in (1, 3, None)), None)
    if image is None:
        if given is not None:
            raise UsageError("--preprocess was given, but the model takes no images [N, C, H, W] of 1 or 3 channels")
        return None
    if isinstance(given, Preprocess):
        preprocess = given
    else:
        preprocess = own or Preprocess("gray" if image.shape[1] == 1 else "rgb")
        if given is not None:
            preprocess = preprocess.updated(given)
    channels, height, width = image.shape[1:]
    if channels not in (None, preprocess.channels):
        raise UsageError(
            f"the model takes {channels} channels, the pre-processing gives {preprocess.color}; "
            f"use --preprocess {'gray' if channels == 1 else 'rgb'}"
        )
    given_size = preprocess.output_size
    if given_size is not None and not all(
        wanted in (None, got) for wanted, got in zip((height, width), given_size, strict=True)
    ):
        field = "size" if preprocess.crop is None else "crop"
        raise UsageError(
            f"the model takes images of {height}x{width}, the pre-processing makes them "
            f"{given_size[0]}x{given_size[1]}; "
            f"use --preprocess {field}={height}x{width}"
        )
    return preprocess
