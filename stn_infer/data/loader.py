"""Loading the samples of one batch into arrays for the model; a bad sample fails only its own row.

Pixels stay uint8 until the model is about to run: a batch that waits takes a quarter of the memory.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stn_infer.arrays import Array
from stn_infer.backends.base import TensorSpec
from stn_infer.data.arrays import ArrayFiles, Opened
from stn_infer.data.buffers import Buffers
from stn_infer.data.held import Held
from stn_infer.data.images import decode_interleaved, from_opened, planes, read
from stn_infer.data.inputs import Sample, is_array
from stn_infer.data.pixels import Pixels
from stn_infer.errors import AssumptionWarning, InputError, UsageError
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from stn_infer.preprocess.text import names_values
from stn_infer.printing import counted

if TYPE_CHECKING:
    from stn_infer.data.codecs.nvimgcodec import JpegDecoder

# Decoding a small image is mostly Python code and holds the GIL: two concurrent threads are slower than one (measured
# with 0.8 kB per image: 117 us with one thread, 227 us with two). From 3 kB on, two threads are faster.
_SMALL = 3000
# Reading rows of an array releases the GIL, for long enough that another thread can use it from about here on.
_SMALL_ROWS = 1 << 20
# Images are decoded into one array as long as it is not larger than this.
_MOST_STACKED = 1 << 26


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


@dataclass
class _Pieces:
    """Samples that can be stacked, in order: positions, and by input name arrays [n, ...] that hold them."""

    rows: list[int]
    arrays: list[dict[str, Array]]


class _Images:
    """Images of one size, decoded one after the other into one array, in the layout in which Pillow has them.

    Args:
        first: the pixels of the first image, [H, W, C] with C 1, 3, or 4 with an unused byte.
        most: the largest number of images.
        buffers: where the array is taken from.
    """

    def __init__(self, first: Pixels, most: int, buffers: Buffers) -> None:
        self.rows: list[int] = []
        most = max(1, min(most, _MOST_STACKED // max(1, first.size)))
        self._array = buffers.take((most, *first.shape), first.dtype)

    def is_full(self) -> bool:
        """Whether there is no room for another image."""
        return len(self.rows) == len(self._array)

    def add(self, row: int, pixels: Pixels) -> None:
        """Copy an image of the same size, for position ``row`` of the batch."""
        target = self._array[len(self.rows)]
        if pixels.shape == target.shape:
            target[...] = pixels
        else:
            target[..., :3] = pixels[..., :3]
        self.rows.append(row)

    def pixels(self, preprocess: Preprocess) -> Pixels:
        """The images [n, C, H, W], in the model's order of colors."""
        return planes(self._array[: len(self.rows)], preprocess)


class Loader:
    """Reads samples for the model inputs ``specs``; safe to share between threads.

    Args:
        specs: the model's inputs, batch on axis 0.
        preprocess: how pixels become inputs, from :func:`resolve_preprocess`.
        axis: as for :class:`~stn_infer.data.arrays.ArrayFiles`; samples of two files are then never in one group.
        device: of the model, where JPEG files are decoded if ``preprocess`` says so.

    Raises:
        MissingDependencyError, UsageError: they cannot be decoded there.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        preprocess: Preprocess | None,
        axis: str | None = None,
        device: str = "cpu",
    ) -> None:
        self._specs = tuple(specs)
        self.preprocess = preprocess
        self._buffers = Buffers()
        self._any_size = any(None in spec.shape[1:] for spec in self._specs)
        self.arrays = ArrayFiles(specs, preprocess, axis)
        #: Whether an image file can be a sample: one input, [N, C, H, W].
        self.takes_images = len(self._specs) == 1 and preprocess is not None
        self._jpeg: JpegDecoder | None = None
        if self.takes_images and preprocess is not None and preprocess.jpeg == "nvimgcodec":
            from stn_infer.data.codecs.nvimgcodec import JpegDecoder

            self._jpeg = JpegDecoder(device)
        #: Whether nvImageCodec decodes JPEG files.
        self.decodes_jpeg = self._jpeg is not None

    def has_pixels(self, samples: Sequence[Sample | Held]) -> bool:
        """Whether there are images among ``samples``, or pixels in arrays that were counted or read."""
        return self.arrays.pixels or any(
            not isinstance(sample.source, Opened) if isinstance(sample, Held) else not is_array(sample.path)
            for sample in samples
            if not sample.error
        )

    def load(self, samples: Sequence[Sample | Held]) -> LoadedBatch:
        """Read, decode and pre-process ``samples``; errors are returned, not raised.

        Raises:
            MissingDependencyError, ModelError: as for :meth:`read`.
        """
        loaded = self.read(samples)
        return replace(loaded, groups=tuple(self.prepare(group) for group in loaded.groups))

    def read(self, samples: Sequence[Sample | Held]) -> LoadedBatch:
        """Read and decode ``samples``; images are uint8 [n, C, H, W] in any memory layout, for :meth:`prepare`.

        Raises:
            MissingDependencyError, ModelError: nvImageCodec, which the rule asks for, fails.
        """
        contents, decoded = self._decoded(samples)
        errors: dict[int, str] = {}
        found: dict[object, _Pieces] = {}
        images: dict[tuple[int, ...], list[_Images]] = {}
        count, size, array_size = 0, 0, 0
        for first, length in _runs(samples):
            sample = samples[first]
            try:
                if sample.error:
                    raise InputError(sample.error)
                if _is_file(sample):
                    data = contents[first] if first in contents else _content(sample)
                    count, size = count + 1, size + len(data)
                    ready = decoded.get(first)
                    name = sample.name if isinstance(sample, Held) else sample.path
                    pixels = decode_interleaved(data, *self._image_input(name)) if ready is None else ready
                elif isinstance(sample, Held) and isinstance(sample.source, Image.Image):
                    count, size = count + 1, size + sample.source.width * sample.source.height
                    pixels = from_opened(sample.source, *self._image_input(sample.name), sample.scaled)
                else:
                    array_size += self._read_rows(samples, first, length, found, errors)
                    continue
            except InputError as error:
                errors.update(dict.fromkeys(range(first, first + length), str(error)))
                continue
            same = images.setdefault(pixels.shape[:2], [])
            if not same or same[-1].is_full():
                most = 2 * len(same[-1].rows) if same else 1 if self._any_size else len(samples) - first
                same.append(_Images(pixels, most, self._buffers))
            same[-1].add(first, pixels)
        for stacked in itertools.chain.from_iterable(images.values()):
            assert self.preprocess is not None
            arrays = {self._specs[0].name: stacked.pixels(self.preprocess)}
            self._add(found, _place(samples[stacked.rows[0]]) if self.arrays.shares else "", stacked.rows, arrays)
        small = size <= count * _SMALL and array_size < _SMALL_ROWS
        groups = sorted(found.values(), key=lambda pieces: min(pieces.rows))
        return LoadedBatch(tuple(map(self._stacked, groups)), errors, small)

    def _decoded(self, samples: Sequence[Sample | Held]) -> tuple[dict[int, bytes], dict[int, Pixels | None]]:
        """By position the bytes of image files, and the pixels that nvImageCodec decoded; empty without it."""
        contents: dict[int, bytes] = {}
        if self._jpeg is None or self.preprocess is None:
            return contents, {}
        for row, sample in enumerate(samples):
            if not sample.error and _is_file(sample):
                with suppress(InputError):  # is read again, and raised, in its turn
                    contents[row] = _content(sample)
        size = self._specs[0].shape[2], self._specs[0].shape[3]
        pixels = self._jpeg.decode(list(contents.values()), self.preprocess, size)
        return contents, dict(zip(contents, pixels, strict=True))

    def _read_rows(
        self,
        samples: Sequence[Sample | Held],
        first: int,
        length: int,
        found: dict[object, _Pieces],
        errors: dict[int, str],
    ) -> int:
        """Reads consecutive rows of an array file; the number of bytes."""
        sample = samples[first]
        if isinstance(sample, Held):
            assert isinstance(sample.source, Opened)
            read_rows = self.arrays.rows_of(sample.source, sample.name, sample.row, length, self._buffers)
        else:
            read_rows = self.arrays.load_rows(sample.path, sample.row, length, self._buffers)
        for row, reason in read_rows.errors.items():
            own = samples[first + row].name if isinstance(sample, Held) else ""  # a file's rows have its name
            errors[first + row] = f"{own}{reason.removeprefix(sample.name)}" if own else reason
        rows: Sequence[int] = range(first, first + length)
        if read_rows.errors:
            rows = [row for row in rows if row - first not in read_rows.errors]
        if rows:
            self._add(found, _place(sample) if self.arrays.shares else "", rows, read_rows.inputs)
        return sum(array.nbytes for array in read_rows.inputs.values())

    @staticmethod
    def _add(found: dict[object, _Pieces], path: str, rows: Sequence[int], arrays: dict[str, Array]) -> None:
        """Add samples to those of the same shapes and types, and of the same file unless ``path`` is empty."""
        kind = (path, *[(array.shape[1:], array.dtype.char) for array in arrays.values()])
        pieces = found.setdefault(kind, _Pieces([], []))
        pieces.rows += rows
        pieces.arrays.append(arrays)

    def prepare(self, group: Group) -> Group:
        """The group as inputs of the model: pixels are normalized. ``group`` cannot be used afterwards."""
        inputs = dict(group.inputs)
        for name, pixels in self._pixels(group).items():
            assert self.preprocess is not None
            dtype = next(spec.dtype for spec in self._specs if spec.name == name)
            values = self._buffers.take(pixels.shape, np.dtype(np.float32))
            normalize(pixels, self.preprocess, values)
            self._buffers.give_back(pixels)
            inputs[name] = values.astype(dtype, copy=False)
            if inputs[name] is not values:
                self._buffers.give_back(values)
        return Group(group.rows, inputs)

    def release(self, group: Group) -> None:
        """Let the memory of ``group`` be used for another batch; its arrays cannot be used afterwards."""
        for array in group.inputs.values():
            self._buffers.give_back(array)
        group.inputs.clear()

    def pixels_of(self, group: Group) -> Pixels | None:
        """The pixels of a group of :meth:`read`, if the model's only input is made of them."""
        return next(iter(self._pixels(group).values()), None) if len(self._specs) == 1 else None

    def _pixels(self, group: Group) -> dict[str, Pixels]:
        """The arrays that are not in the input's dtype yet: pixels."""
        return {
            spec.name: group.inputs[spec.name] for spec in self._specs if group.inputs[spec.name].dtype != spec.dtype
        }

    def _image_input(self, name: str) -> tuple[Preprocess, tuple[int | None, int | None], str]:
        """How an image of this name becomes the model's only input."""
        if not self.takes_images or self.preprocess is None:
            raise InputError(f"{name}: the model takes no images; give .npy or .npz files, or arrays")
        return self.preprocess, (self._specs[0].shape[2], self._specs[0].shape[3]), name

    def _stacked(self, pieces: _Pieces) -> Group:
        inputs = {}
        for spec in self._specs:
            arrays = [piece[spec.name] for piece in pieces.arrays]
            if len(arrays) == 1 or self.arrays.is_shared(spec):
                inputs[spec.name] = arrays[0]
                continue
            stacked = self._buffers.take((len(pieces.rows), *arrays[0].shape[1:]), arrays[0].dtype)
            np.concatenate(arrays, out=stacked)
            for array in arrays:
                self._buffers.give_back(array)
            if pieces.rows != sorted(pieces.rows):  # image files between arrays of pixels
                stacked = stacked[np.argsort(pieces.rows)]
            inputs[spec.name] = stacked
        return Group(tuple(sorted(pieces.rows)), inputs)


def _is_file(sample: Sample | Held) -> bool:
    """Whether it is an image file, or the bytes of one."""
    return isinstance(sample.source, bytes) if isinstance(sample, Held) else not is_array(sample.path)


def _content(sample: Sample | Held) -> bytes:
    """The bytes of an image file; raises InputError."""
    if isinstance(sample, Sample):
        return read(sample.path)
    assert isinstance(sample.source, bytes)
    return sample.source


def _place(sample: Sample | Held) -> str:
    """What is different for samples of two files, or of two arrays."""
    return f"{id(sample.source)}" if isinstance(sample, Held) else sample.path


def _runs(samples: Sequence[Sample | Held]) -> Iterator[tuple[int, int]]:
    """Position and length of each run of consecutive rows of one file; 1 for what is not a row."""
    if not samples:
        return
    _, paths, rows, errors, *_ = zip(*samples, strict=False)  # a held one has a field more
    if (
        rows[0] is not None
        and rows == tuple(range(rows[0], rows[0] + len(rows)))
        and paths.count(paths[0]) == len(paths)
        and not any(errors)
    ):
        yield 0, len(rows)  # the whole batch, as nearly always
        return
    first = 0
    while first < len(rows):
        end = first + 1
        if rows[first] is not None and not errors[first]:
            while end < len(rows) and (paths[end], rows[end]) == (paths[first], rows[first] + end - first):
                end += 1
        yield first, end - first
        first = end


def tell_assumption(
    how: Preprocess | None,
    own: Preprocess | None,
    given: Preprocess | str | None,
    *,
    strict: bool = False,
    takes: bool = True,
) -> None:
    """Warn if neither the model's file nor the user says what a pixel value means to the model.

    Args:
        how: the result of :func:`resolve_preprocess` for the other two.
        own: the pre-processing stored in the model's file.
        given: the user's.
        strict: raise an error instead.
        takes: whether the function takes a pre-processing.

    Raises:
        UsageError: it had to be assumed, and ``strict``.
    """
    if how is None or own is not None or isinstance(given, Preprocess) or (given and names_values(given)):
        return
    text = f"nothing says what the model takes; assumed {how.describe()} with values 0..1. "
    if takes:
        text += (
            "Give the preprocessing of its training, such as --preprocess imagenet, or store it: stn-infer metadata "
            "FILE --preprocess ..."
        )
    else:
        text += (
            "Store the preprocessing of its training in the ONNX file, for example: stn-infer metadata FILE "
            "--preprocess imagenet"
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
    if image.raw and not preprocess.is_raw:
        raise UsageError(
            "the file has its preprocessing in its graph, so --preprocess cannot change the values; export it again"
        )
    channels, height, width = image.shape[1:]
    if channels not in (None, preprocess.channels):
        raise UsageError(
            f"the model takes {counted(channels, 'channel')}, the preprocessing gives {preprocess.color}; "
            f"use --preprocess {'gray' if channels == 1 else 'rgb'}"
        )
    given_size = preprocess.output_size
    if given_size is not None and not all(
        wanted in (None, got) for wanted, got in zip((height, width), given_size, strict=True)
    ):
        field = "size" if preprocess.crop is None else "crop"
        raise UsageError(
            f"the model takes images of {height}x{width}, the preprocessing makes them "
            f"{given_size[0]}x{given_size[1]}; "
            f"use --preprocess {field}={height}x{width}"
        )
    return preprocess
