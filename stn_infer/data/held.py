"""Samples that a program holds: pictures, arrays and tensors, beside paths; and what an array of pixels is.

| an array for a model of images | is |
|---|---|
| uint8 | pixels of RGB, RGBA or gray, which are preprocessed like those of a file |
| float | an input that is preprocessed already: [C, H, W], or a batch [N, C, H, W] |
| any other type | refused |

uint8 [H, W] is one gray picture. A last axis of length 1, 3 or 4 holds colors ([H, W, C], [N, H, W, C]), and so does an
axis of 1 or 3 before the last two ([C, H, W], [N, C, H, W]). For a model of gray images, [N, H, W] are gray pictures.
What has two readings, or none, is refused, unless ``layout`` says what is meant.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from stn_infer import remote
from stn_infer.arrays import Array
from stn_infer.data.images import loaded, opened_bytes
from stn_infer.data.inputs import Inputs, Sample, is_array, is_input
from stn_infer.data.scaled import Scaled
from stn_infer.errors import InputError, UsageError, one_line

if TYPE_CHECKING:
    from stn_infer.backends.base import TensorSpec
    from stn_infer.data.arrays import ArrayFiles, Opened
    from stn_infer.preprocess.rule import Preprocess

Layout = Literal["HW", "HWC", "CHW", "NHW", "NHWC", "NCHW"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_LAST, _FIRST = (1, 3, 4), (1, 3)  # lengths of an axis of colors


class Held(NamedTuple):
    """One sample in memory.

    Attributes:
        name: what it is called in messages and results.
        source: a loaded picture, the bytes of an image file, or arrays.
        row: the row in the arrays; None for a picture, a file, or arrays that are one sample.
        error: why it cannot be used; else empty.
        scaled: what a picture was that was decoded at a smaller size.
    """

    name: str
    source: Image.Image | bytes | Opened
    row: int | None = None
    error: str = ""
    scaled: Scaled | None = None


class Samples:
    """Turns what a user gives into samples, lazily and in order; what cannot be used becomes a sample with an error.

    Args:
        arrays: of the loader that will read the samples.
        specs: the model's inputs.
        preprocess: how pixels become inputs; None if the model takes no images.
    """

    def __init__(self, arrays: ArrayFiles, specs: Sequence[TensorSpec], preprocess: Preprocess | None) -> None:
        self._arrays, self._specs, self._preprocess = arrays, tuple(specs), preprocess

    def of(self, given: object, layout: Layout | None = None) -> Iterator[Sample | Held]:
        """The samples in ``given``.

        Args:
            given: a path (a file, a folder, a pattern or ``@list.txt``), a Pillow image, the bytes of an image file,
                an array, a tensor, a mapping of arrays by the model's inputs, or an iterable of these. What another
                iterable than a list or a tuple gives is copied, because it may use the memory again.
            layout: what the axes of uint8 arrays are; None: see this module.

        Raises:
            UsageError: it is none of these, or there is no such layout.
        """
        if layout is not None and layout not in LAYOUTS:
            raise UsageError(f"a layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
        if _is_item(given):
            return self._numbered([given], layout, copy=False)
        if not isinstance(given, Iterable):
            raise UsageError(
                "expected a path, a picture, an array, a tensor or an iterable of these, got "
                f"{getattr(given, '__name__', type(given).__name__)}"
            )
        return self._numbered(given, layout, copy=not isinstance(given, Sequence))

    def _numbered(self, items: Iterable[object], layout: Layout | None, copy: bool) -> Iterator[Sample | Held]:
        count = 0
        for item in items:
            if isinstance(item, (str, os.PathLike)):
                for sample in self._of_path(os.fspath(item)):
                    yield sample
                    count += 1
                continue
            name = f"[{count}]"
            try:
                in_bytes = isinstance(item, (bytes, bytearray, memoryview))
                if isinstance(item, (bytes, bytearray, memoryview)):
                    if self._preprocess is not None and self._preprocess.jpeg == "nvimgcodec":
                        yield Held(name, bytes(item))  # decoded with its batch
                        count += 1
                        continue
                    item = opened_bytes(bytes(item), name)
                if isinstance(item, Image.Image):
                    shown = str(getattr(item, "filename", "") or name)
                    rule = self._preprocess if in_bytes else None  # a picture that the caller has opened stays whole
                    picture, scaled = loaded(item, shown, copy=copy and not in_bytes, preprocess=rule)
                    yield Held(shown, picture, scaled=scaled)
                    count += 1
                    continue
                opened, rows = self._opened(item, name, layout, copy)
            except InputError as error:
                yield Sample(name, name, None, str(error))
                count += 1
                continue
            if rows is None:
                yield Held(name, opened)
                count += 1
                continue
            for row in range(rows):
                yield Held(f"[{count}]", opened, row)
                count += 1

    def _of_path(self, path: str) -> Iterator[Sample]:
        """The samples of a path; one that is missing is a sample, too."""
        is_list = path.startswith("@") and not os.path.lexists(path)
        is_folder = (
            not is_input(path) if remote.is_url(path) else os.path.isdir(path)
        )  # a store is asked where it may be
        if not is_list and not is_folder and not is_array(path) and not _is_pattern(path):
            yield Sample(path, path)  # a missing file has the error when it is read
            return
        samples = iter(Inputs([path], self._arrays.count_rows))
        while True:
            try:
                sample = next(samples, None)
            except InputError as error:
                sample = Sample(path, path, None, str(error))
                samples = iter(())
            if sample is None:
                return
            yield sample

    def _opened(self, item: object, name: str, layout: Layout | None, copy: bool) -> tuple[Opened, int | None]:
        if isinstance(item, Mapping):
            given = {str(key): self._array(value, f"{name}[{key!r}]") for key, value in item.items()}
            specs = {spec.name: spec for spec in self._specs}
        else:
            given = {"": self._array(item, name)}
            specs = {"": self._specs[0]} if len(self._specs) == 1 else {}
        arrays = {
            key: self._pixels(array, name, layout) if key in specs and self._takes_pixels(specs[key], array) else array
            for key, array in given.items()
        }
        for key, array in arrays.items():
            if key in specs:
                self._check(specs[key], array, name)
        return self._arrays.open_arrays(name, {key: np.array(it) if copy else it for key, it in arrays.items()})

    @staticmethod
    def _array(value: object, name: str) -> Array:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            dense: Any = value.detach()
            try:
                if dense.layout is not torch.strided:
                    dense = dense.to_dense()
                if dense.dtype == torch.bfloat16:
                    dense = dense.float()
                return np.asarray(dense.cpu().numpy())
            except (TypeError, RuntimeError) as error:
                raise InputError(f"{name}: a tensor of {value.dtype} cannot be read: {one_line(error)}") from None
        if not isinstance(value, np.ndarray | np.generic) and not hasattr(value, "__array__"):
            raise InputError(
                f"{name}: expected a path, a picture, an array or a tensor, got {type(value).__name__}"
                + ("; give its elements one after the other" if isinstance(value, list | tuple) else "")
            )
        try:
            return np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name}: {type(value).__name__} cannot be read as an array: {one_line(error)}") from None

    def _takes_pixels(self, spec: TensorSpec, array: Array) -> bool:
        """Whether an array is of pixels, for an input that is an image."""
        return array.dtype == np.uint8 and _is_image(spec) and self._preprocess is not None

    def _check(self, spec: TensorSpec, array: Array, name: str) -> None:
        """Raises where an array is neither of pixels nor an input, for an input that is an image."""
        if not _is_image(spec) or self._preprocess is None or array.dtype == np.uint8:
            return
        wanted = ", ".join("any" if axis is None else str(axis) for axis in spec.shape[1:])
        if array.dtype.kind != "f":
            raise InputError(
                f"{name}: an array of {array.dtype} is neither pixels, which are uint8, nor an input, which is "
                f"{spec.dtype} [N, {wanted}]; convert it"
            )
        sizes = array.shape[array.ndim - 3 :]
        fits = array.ndim in (3, 4) and all(
            axis in (None, got) for axis, got in zip(spec.shape[1:], sizes, strict=True)
        )
        if not fits:
            raise InputError(
                f"{name}: an array of {array.dtype} is an input that is preprocessed already, [{wanted}] or "
                f"[N, {wanted}]; found {list(array.shape)}; pixels of any size are uint8"
            )

    def _pixels(self, array: Array, name: str, layout: Layout | None) -> Array:
        """An array of pixels as [N, H, W, C]."""
        assert self._preprocess is not None
        layout = layout or _layout_of(array.shape, name, self._preprocess.color == "gray")
        if len(layout) != array.ndim:
            raise InputError(
                f"{name}: the layout {layout} has {len(layout)} axes, but the array is {list(array.shape)}"
            )
        if "N" not in layout:
            array = array[None]
        if "C" not in layout:
            array = array[..., None]
        elif layout.endswith("CHW"):
            array = np.moveaxis(array, 1, 3)
        if array.shape[3] not in _LAST:
            raise InputError(
                f"{name}: {layout} pixels have 1, 3 or 4 colors, found {list(array.shape)} as [N, H, W, C]"
            )
        return array


def _layout_of(shape: tuple[int, ...], name: str, gray: bool) -> Layout:
    """What the axes of an array of pixels are.

    Raises:
        InputError: it has two readings, or none.
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) not in (3, 4):
        raise InputError(f"{name}: pixels are [H, W], [H, W, C], [C, H, W] or a batch of these, found {list(shape)}")
    last, first = shape[-1] in _LAST, shape[-3] in _FIRST
    batch = len(shape) == 4
    readings: list[Layout] = []
    if last:
        readings.append("NHWC" if batch else "HWC")
    if first:
        readings.append("NCHW" if batch else "CHW")
    if gray and not (batch or last or (first and shape[0] == 1)):
        readings.append("NHW")
    if len(readings) == 1:
        return readings[0]
    if not readings:
        raise InputError(
            f"{name}: uint8 {list(shape)} has no axis of 1, 3 or 4 colors at the end, or of 1 or 3 before the last "
            "two; say what its axes are with layout='NHW' or another"
        )
    raise InputError(
        f"{name}: uint8 {list(shape)} can be {' or '.join(readings)}; say which with layout={readings[0]!r} or "
        f"layout={readings[1]!r}"
    )


def _is_item(given: object) -> bool:
    """Whether ``given`` is one item, not several."""
    torch = sys.modules.get("torch")
    one = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, np.generic, Mapping)
    return (
        isinstance(given, one) or hasattr(given, "__array__") or (torch is not None and isinstance(given, torch.Tensor))
    )


def _is_image(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and spec.shape[1] in (1, 3, None) and spec.dtype.kind == "f"


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)
